"""The engine: a loaded Stable Diffusion that turns a request into pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders.single_file_utils import SingleFileComponentError
from diffusers.utils import logging as remarks
from PIL import Image

from fastdb.errors import ConfigError, ModelError
from fastdb.inference.samplers import DEFAULT, check_sampler, make_sampler
from fastdb.models.diffusers_folder import BaseModel, open_base_model
from fastdb.models.loading import load_part, load_scheduler, load_tokenizer
from fastdb.runtime.device import Device, choose_device


@dataclass(frozen=True)
class Request:
    """What to draw. Width and height in pixels, multiples of 8; picture i of `count` has seed + i."""

    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    count: int = 1
    steps: int = 20
    guidance: float = 7.5
    sampler: str = DEFAULT
    width: int = 512
    height: int = 512

    def __post_init__(self) -> None:
        """Check everything that costs time to find out later, and spell the sampler as we do.

        Raises:
            ConfigError: a value is out of bounds.
        """
        for name, value in (("width", self.width), ("height", self.height)):
            if value % 8 or not 64 <= value <= 4096:
                near = min(max(64, value // 8 * 8), 4096)
                raise ConfigError(f"{value} is no multiple of 8 between 64 and 4096", where=name, fix=f"Try {near}.")
        for name, value in (("steps", self.steps), ("count", self.count)):
            if not 1 <= value <= 1000:
                raise ConfigError(f"{value} is not between 1 and 1000", where=name, fix="Try 20.")
        if not 0 <= self.guidance <= 50:
            raise ConfigError(f"{self.guidance} is not between 0 and 50", where="guidance", fix="Try 7.5.")
        if not 0 <= self.seed < 2**63 - self.count:
            raise ConfigError(f"{self.seed} is not between 0 and 2^63", where="seed", fix="Try 0.")
        object.__setattr__(self, "sampler", check_sampler(self.sampler))


Embeddings = tuple[torch.Tensor, torch.Tensor]
"""A prompt's and a negative prompt's embedding, each (77, width)."""


class Engine:
    """Pictures by prompt, seed, steps, guidance and sampler. Seeds are drawn on the CPU: devices agree."""

    def __init__(self, pipeline: StableDiffusionPipeline) -> None:
        self._pipeline = pipeline
        self._noise_schedule = pipeline.scheduler.config
        pipeline.set_progress_bar_config(disable=True)

    @classmethod
    def from_folder(
        cls, folder: Path, *, trained: Mapping[str, Path] | None = None, device: Device | None = None
    ) -> Engine:
        """Load a diffusers folder; see `from_base`.

        Raises:
            ModelError: the folder or the weights cannot be used.
        """
        return cls.from_base(open_base_model(folder), trained=trained, device=device)

    @classmethod
    def from_base(
        cls, base: BaseModel, *, trained: Mapping[str, Path] | None = None, device: Device | None = None
    ) -> Engine:
        """Load an opened base model.

        Args:
            trained: raw safetensors files that replace its weights, by part: "unet", "text_encoder".

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
        """Load an exported `.safetensors` or `.ckpt`; `base` gives the tokenizer and the sizes of the parts.

        Raises:
            ModelError: the file is not there, or is no Stable Diffusion of that shape.
        """
        device = device or choose_device()
        if not file.is_file():
            raise ModelError("there is no such file", where=file, fix="Export one with: fastdb export SESSION")
        open_base_model(base)
        try:
            with _quietly():
                pipeline = StableDiffusionPipeline.from_single_file(
                    str(file),
                    config=str(base),
                    local_files_only=True,
                    torch_dtype=device.half,
                    safety_checker=None,
                )
        except (SingleFileComponentError, ValueError, RuntimeError, KeyError, OSError) as error:
            raise ModelError(
                f"cannot be loaded as a Stable Diffusion of the shape of {base} ({_reason(error)})",
                where=file,
                fix="Name the base model it was trained from, or export it again.",
            ) from error
        if device.kind == "cpu":
            _settle(pipeline)
        return cls(pipeline.to(device.kind))

    @classmethod
    def from_parts(cls, *, unet: Any, vae: Any, text_encoder: Any, tokenizer: Any, scheduler: Any) -> Engine:
        """Use parts that are loaded already; without a text encoder, `generate` needs embeddings."""
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

    @torch.no_grad()
    def generate(
        self,
        request: Request,
        *,
        embeddings: Embeddings | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Image.Image]:
        """Make the pictures of a request, one after the other, so that each depends on its own seed alone.

        `progress(done, total)` counts sampler steps over all pictures.
        """
        pipeline, total = self._pipeline, request.count * request.steps
        said: dict[str, Any] = {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
        if embeddings is not None:
            said = {
                name: tensor[None].to(pipeline.unet.device, pipeline.unet.dtype)
                for name, tensor in zip(("prompt_embeds", "negative_prompt_embeds"), embeddings, strict=True)
            }
        pictures: list[Image.Image] = []
        for number in range(request.count):
            pipeline.scheduler = make_sampler(request.sampler, self._noise_schedule)

            def report(_pipeline: Any, step: int, _time: Any, values: dict[str, Any], before: int = number) -> Any:
                if progress is not None:
                    progress(min(before * request.steps + step + 1, total), total)
                return values

            pictures += pipeline(
                **said,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance,
                width=request.width,
                height=request.height,
                generator=torch.Generator().manual_seed(request.seed + number),
                callback_on_step_end=report,
            ).images
        return pictures

    @torch.no_grad()
    def generate_together(self, requests: Sequence[Request]) -> list[Image.Image]:
        """Make one picture for each request, all in one pass: faster than one by one, most so where they are small.

        A picture's last bits depend on how many are made at once and on its place among them, and on nothing
        of the others: neither their prompts nor their seeds.

        Raises:
            ConfigError: they differ in more than prompt, negative prompt and seed, or one wants several pictures.
        """
        first = requests[0]
        for one in requests:
            alike = replace(one, prompt=first.prompt, negative_prompt=first.negative_prompt, seed=first.seed)
            if alike != first or one.count != 1:
                raise ConfigError(
                    "pictures made together have one size, sampler, number of steps and guidance, and a request each",
                    where=one.prompt,
                    fix="Make those that differ one after the other.",
                )
        self._pipeline.scheduler = make_sampler(first.sampler, self._noise_schedule)
        pictures: list[Image.Image] = self._pipeline(
            prompt=[one.prompt for one in requests],
            negative_prompt=[one.negative_prompt for one in requests],
            num_inference_steps=first.steps,
            guidance_scale=first.guidance,
            width=first.width,
            height=first.height,
            generator=[torch.Generator().manual_seed(one.seed) for one in requests],
        ).images
        return pictures


@contextmanager
def _quietly() -> Iterator[None]:
    """Hold back what diffusers says while it loads a file: a bar of five parts, remarks nobody can act on."""
    level, bars = remarks.get_verbosity(), remarks.is_progress_bar_enabled()
    remarks.set_verbosity_error()
    remarks.disable_progress_bar()
    try:
        yield
    finally:
        remarks.set_verbosity(level)
        if bars:
            remarks.enable_progress_bar()


def _settle(pipeline: StableDiffusionPipeline) -> None:
    """Copy the weights out of the mapped file: at its odd addresses some kernels round otherwise, and it may go."""
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        for weight in part.parameters():
            weight.data = weight.data.clone()


def _reason(error: Exception) -> str:
    """The first sentence of what a library said."""
    said = str(error).strip().splitlines()
    return said[0].split(". ")[0].rstrip(".") if said else type(error).__name__
