"""A loaded Stable Diffusion that draws pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders.single_file_utils import SingleFileComponentError
from diffusers.utils import logging as diffusers_logging
from PIL import Image

from fastdb.errors import ConfigError, ModelError
from fastdb.inference.request import Request
from fastdb.inference.samplers import make_sampler
from fastdb.models.diffusers_folder import BaseModel, open_base_model
from fastdb.models.loading import load_part, load_scheduler, load_tokenizer
from fastdb.models.lora.merging import check_fit, merge_into_module
from fastdb.models.lora.reading import LoRAFile
from fastdb.runtime.device import Device, choose_device

Embeddings = tuple[torch.Tensor, torch.Tensor]
"""Embeddings of a prompt and a negative prompt, each (77, width)."""


class Engine:
    """Draws pictures by prompt, seed, steps, guidance and sampler.

    Noise is drawn on the CPU, so that every device draws the same picture.
    """

    remedy = "Use other weights, or train again with a lower learning rate."
    """Remedy for weights that draw no picture."""

    def __init__(self, pipeline: StableDiffusionPipeline) -> None:
        self._pipeline = pipeline
        self._noise_schedule = pipeline.scheduler.config
        pipeline.set_progress_bar_config(disable=True)

    @classmethod
    def from_base(
        cls, base: BaseModel, *, trained: Mapping[str, Path] | None = None, device: Device | None = None
    ) -> Engine:
        """Load an opened base model.

        Args:
            trained: raw safetensors files that replace its weights, by part ("unet", "text_encoder").

        Raises:
            ModelError: the weights cannot be used.
        """
        device = device or choose_device()
        folder, dtype, trained = base.folder, device.half, trained or {}
        parts = {
            "unet": load_part(folder, "unet", dtype, weights=trained.get("unet")),
            "vae": load_part(folder, "vae", dtype),
            "text_encoder": load_part(folder, "text_encoder", dtype, weights=trained.get("text_encoder")),
        }
        for part in parts.values():
            part.to(device.kind).eval()
        return cls.from_parts(**parts, tokenizer=load_tokenizer(folder), scheduler=load_scheduler(folder))

    @classmethod
    def from_export(cls, file: Path, *, base: Path, device: Device | None = None) -> Engine:
        """Load an exported `.safetensors` or `.ckpt`; `base` has the tokenizer and the sizes of the parts.

        Raises:
            ModelError: the file does not exist, or is not a Stable Diffusion of these sizes.
        """
        device = device or choose_device()
        if not file.is_file():
            raise ModelError("there is no such file", where=file, fix="Create it with: fastdb export SESSION")
        open_base_model(base)
        try:
            with _quiet_diffusers():
                pipeline = StableDiffusionPipeline.from_single_file(
                    str(file),
                    config=str(base),
                    local_files_only=True,
                    torch_dtype=device.half,
                    safety_checker=None,
                )
        except (SingleFileComponentError, ValueError, RuntimeError, KeyError, OSError) as error:
            raise ModelError(
                f"cannot be loaded as a Stable Diffusion with the sizes of {base} ({_reason(error)})",
                subject=file,
                fix="Name the base model that it was trained from, or export it again.",
            ) from error
        if device.kind == "cpu":
            _copy_weights(pipeline)
        return cls(pipeline.to(device.kind))

    @classmethod
    def from_parts(cls, *, unet: Any, vae: Any, text_encoder: Any, tokenizer: Any, scheduler: Any) -> Engine:
        """Use loaded parts; without a text encoder, `generate` needs embeddings."""
        return cls(
            StableDiffusionPipeline(
                vae=vae,
                text_encoder=text_encoder,
                tokenizer=tokenizer,
                unet=unet,
                scheduler=scheduler,
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
        )

    def merge(self, loras: Sequence[LoRAFile]) -> None:
        """Add the differences of LoRAs to the weights.

        Raises:
            ModelError: a LoRA was trained on a base model of another prediction type or size.
        """
        if not loras:
            return
        check_fit(loras, str(self._noise_schedule.get("prediction_type", "epsilon")), "the base model")
        for part in ("unet", "text_encoder"):
            merge_into_module(getattr(self._pipeline, part), part, loras)

    @torch.no_grad()
    def generate(
        self,
        request: Request,
        *,
        embeddings: Embeddings | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Image.Image]:
        """Draw the pictures of a request singly, so that each depends on its own seed alone.

        `progress(done, total)` counts sampler steps over all pictures.

        Raises:
            ModelError: numbers are not finite, because the weights diverged in training.
        """
        pipeline, total = self._pipeline, request.count * request.steps
        conditioning: dict[str, Any] = {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
        if embeddings is not None:
            conditioning = {
                name: tensor[None].to(pipeline.unet.device, pipeline.unet.dtype)
                for name, tensor in zip(("prompt_embeds", "negative_prompt_embeds"), embeddings, strict=True)
            }
        pictures: list[Image.Image] = []
        for number in range(request.count):
            pipeline.scheduler = make_sampler(request.sampler, self._noise_schedule)

            def report(_pipeline: Any, step: int, _time: Any, values: dict[str, Any], before: int = number) -> Any:
                self._check_finite(values["latents"], request)
                if progress is not None:
                    progress(min(before * request.steps + step + 1, total), total)
                return values

            drawn = pipeline(
                **conditioning,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance,
                width=request.width,
                height=request.height,
                generator=torch.Generator().manual_seed(request.seed + number),
                callback_on_step_end=report,
                output_type="pt",
            ).images
            pictures += self._as_pictures(drawn, request)
        return pictures

    @torch.no_grad()
    def generate_together(self, requests: Sequence[Request]) -> list[Image.Image]:
        """Draw a picture per request in a single pass, which is faster, above all for small pictures.

        A picture's last bits depend on the number of requests and its place among them, but not on the prompts and
        seeds of the others.

        Raises:
            ConfigError: requests differ in more than prompt, negative prompt and seed, or ask for several pictures.
            ModelError: numbers are not finite, because the weights diverged in training.
        """
        first = requests[0]
        for request in requests:
            alike = replace(request, prompt=first.prompt, negative_prompt=first.negative_prompt, seed=first.seed)
            if alike != first or request.count != 1:
                raise ConfigError(
                    "pictures of a pass must have the same size, sampler, steps and guidance, and count 1",
                    where=request.prompt,
                    fix="Draw different requests separately.",
                )
        self._pipeline.scheduler = make_sampler(first.sampler, self._noise_schedule)
        drawn = self._pipeline(
            prompt=[request.prompt for request in requests],
            negative_prompt=[request.negative_prompt for request in requests],
            num_inference_steps=first.steps,
            guidance_scale=first.guidance,
            width=first.width,
            height=first.height,
            generator=[torch.Generator().manual_seed(request.seed) for request in requests],
            output_type="pt",
        ).images
        return self._as_pictures(drawn, first)

    def _as_pictures(self, drawn: torch.Tensor, request: Request) -> list[Image.Image]:
        """Convert pictures in 0..1, (pictures, 3, height, width), as the pipeline does."""
        self._check_finite(drawn, request)
        processor = self._pipeline.image_processor
        pictures: list[Image.Image] = processor.numpy_to_pil(processor.pt_to_numpy(drawn))
        return pictures

    def _check_finite(self, numbers: torch.Tensor, request: Request) -> None:
        if not torch.isfinite(numbers).all():
            raise ModelError(
                "the model draws no picture, only numbers that are not finite: its weights are ruined",
                where=repr(request.prompt),
                fix=self.remedy,
            )


@contextmanager
def _quiet_diffusers() -> Iterator[None]:
    """Suppress the progress bar and the log messages of diffusers while it loads a file."""
    level, bars = diffusers_logging.get_verbosity(), diffusers_logging.is_progress_bar_enabled()
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)
        if bars:
            diffusers_logging.enable_progress_bar()


def _copy_weights(pipeline: StableDiffusionPipeline) -> None:
    """Copy the weights out of the mapped file, which may be deleted.

    At its unaligned addresses some kernels also round differently.
    """
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        for weight in part.parameters():
            weight.data = weight.data.clone()


def _reason(error: Exception) -> str:
    """Return the first sentence of a library's message."""
    lines = str(error).strip().splitlines()
    return lines[0].split(". ")[0].rstrip(".") if lines else type(error).__name__
