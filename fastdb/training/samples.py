"""Samples: pictures made on the way, from the result as it is, without touching the training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator

from fastdb.config import SampleConfig
from fastdb.errors import StorageError
from fastdb.inference.engine import Engine, Request
from fastdb.inference.pictures import parameters, png
from fastdb.models.diffusers_folder import BaseModel
from fastdb.models.loading import load_part, load_scheduler, load_tokenizer
from fastdb.sessions.events import Emit
from fastdb.sessions.session import Session
from fastdb.storage.atomic_write import make_folder, write_bytes
from fastdb.training.stages import Stage


class Sampler:
    """Makes the samples of one stage."""

    def __init__(self, session: Session, base: BaseModel, prompts: Sequence[str], emit: Emit) -> None:
        self.config: SampleConfig = session.config.samples
        self.prompts = list(self.config.prompts) or list(prompts[:1])
        self._session, self._base, self._emit = session, base, emit
        self._vae: Any = None

    def due(self, step: int, steps: int) -> bool:
        """Whether to make samples after `step`."""
        every = self.config.every_steps
        return every > 0 and (step % every == 0 or step == steps)

    @torch.no_grad()
    def make(self, stage: Stage, step: int, accelerator: Accelerator) -> None:
        """Write one picture a prompt to `samples/<stage>-<step>-<number>.png`; where that fails, tell why and go on."""
        try:
            self._session.check_there()
            self._make(stage, step, accelerator)
        except (StorageError, torch.OutOfMemoryError) as error:
            self._emit("warning", message=f"no samples of step {step}: {str(error).splitlines()[0]}")

    def _make(self, stage: Stage, step: int, accelerator: Accelerator) -> None:
        device = accelerator.device
        self._vae = self._vae if self._vae is not None else load_part(self._base.folder, "vae", torch.float32)
        self._vae.to(device)
        unet = accelerator.unwrap_model(stage.unet)
        training = {module: module.training for module in (unet, *stage.trained.values())}
        for module in training:
            module.eval()
        engine = Engine.from_parts(
            unet=unet,
            vae=self._vae,
            text_encoder=None,
            tokenizer=load_tokenizer(self._base.folder),
            scheduler=load_scheduler(self._base.folder),
        )
        try:
            with stage.averaged(), accelerator.autocast():
                for number, prompt in enumerate(self.prompts, start=1):
                    self._one(stage, step, number, prompt, engine)
        finally:
            for module, was in training.items():
                module.train(was)
            self._vae.to("cpu")

    def _one(self, stage: Stage, step: int, number: int, prompt: str, engine: Engine) -> None:
        config, size = self.config, self._session.config.resolution
        request = Request(
            prompt, seed=config.seed + number - 1, steps=config.steps, guidance=config.guidance, width=size, height=size
        )
        embedded = stage.condition([prompt, ""])
        picture = engine.generate(request, embeddings=(embedded[0], embedded[1]))[0]
        path = self._session.samples / f"{stage.name}-{step:06d}-{number}.png"
        make_folder(path.parent)
        write_bytes(path, png(picture, parameters(request, request.seed)))
        self._emit("sample", stage=stage.name, step=step, path=str(path), prompt=prompt)
