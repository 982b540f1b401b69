"""The trainer: everything one life of it does, from the session it opens to the end it reports."""

from __future__ import annotations

import gc
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler

from fastdb.errors import TrainingError
from fastdb.inference.engine import Engine
from fastdb.models.base_model import BaseModel, fingerprint, open_base_model
from fastdb.models.loading import load_scheduler, load_vae
from fastdb.runtime.device import Device, choose_device, make_deterministic
from fastdb.sessions import checkpoints
from fastdb.sessions.checkpoints import Checkpoint
from fastdb.sessions.session import Session
from fastdb.sessions.trained import STAGES, Standing, standing, steps_of
from fastdb.training.batches import Batches, Group
from fastdb.training.caches import LatentCache, cache_latents
from fastdb.training.checkpointing import Saver, restore
from fastdb.training.class_images import class_images
from fastdb.training.events import Tell
from fastdb.training.loop import Loop, StepReport
from fastdb.training.optimizers import choose_optimizer, make_optimizer
from fastdb.training.plan import make_plan
from fastdb.training.preflight import instances
from fastdb.training.recipe import check_recipe, make_recipe
from fastdb.training.samples import Sampler
from fastdb.training.stages import Stage, text_encoder_stage, unet_stage


@dataclass
class Trainer:
    """Trains a session from where it stands. `stop` may be set by a signal at any time.

    Only the one process that holds the session's lock may run this.
    """

    session: Session
    tell: Tell
    stop: threading.Event

    def run(self) -> str:
        """Train until everything is done or `stop` is set; returns "finished" or "stopped".

        Raises:
            FastDBError: training cannot start or go on; checkpoints made so far are good.
        """
        session = self.session
        checkpoints.clear_unfinished(session.checkpoints)
        self.base = check_base(session)
        self.images = instances(session)
        self.device = choose_device(session.config.precision)
        self.standing = standing(session)
        chosen = choose_optimizer(session.config.optimizer.name, self.device.kind)
        plan = make_plan(session, self.standing, self.device, chosen, len(self.images))
        self.tell(
            "plan",
            lines=list(plan.lines),
            begins=plan.begins,
            stages={name: {"steps": steps_of(session, name), "done": self._done(name)} for name in STAGES},
        )
        if plan.stage is None:
            return "finished"
        self.optimizer_name = chosen[0]
        self._settle()
        prior = class_images(session, self._base_engine, self._progress("class images"), self.stop.is_set)
        if self.stop.is_set():
            return "stopped"
        self.recipe = make_recipe(session, self.images, prior)
        if self.standing.last is not None:
            state = self.standing.last.state
            check_recipe(state["recipe"], self.recipe, state["stage"], state["step"], session.name)
        self.session = session.with_run_begun(plan.begins)
        outcome = self._train(self._groups(prior))
        self.session = self.session.with_run_ended(outcome)
        return outcome

    def _train(self, groups: tuple[Group, ...]) -> str:
        accelerator = Accelerator(
            mixed_precision={"fp32": "no"}.get(self.device.precision, self.device.precision),
            gradient_accumulation_steps=self.session.config.gradient_accumulation,
            cpu=self.device.kind == "cpu",
        )
        for name in STAGES:
            if self._done(name) < steps_of(self.session, name):
                done = self._stage(name, accelerator, groups)
                if done < steps_of(self.session, name):
                    return "stopped"
                # The next stage begins from what lies on the disk, whether this process wrote it or another.
                self.standing = standing(self.session)
                if name not in self.standing.checkpoints:
                    raise TrainingError(
                        "its last checkpoint does not verify when read back",
                        where=f"{name} stage",
                        fix="Check the disk and run the same command again.",
                    )
        return "finished"

    def _stage(self, name: str, accelerator: Accelerator, groups: tuple[Group, ...]) -> int:
        """Run one stage from its newest checkpoint on; everything it held is free again when it returns."""
        config, start = self.session.config, self._done(name)
        batches = Batches(
            groups,
            seed=config.seed,
            stage=name,
            size=config.batch_size,
            microbatches=config.gradient_accumulation,
            timesteps=self._noise().config["num_train_timesteps"],
            process=accelerator.process_index,
            processes=accelerator.num_processes,
        )
        sampler = Sampler(self.session, self.base, [image.prompt for image in self.images], self.tell)
        stage = self._build(name, [*batches.prompts, *sampler.prompts, ""])
        optimizer = make_optimizer(
            self.optimizer_name, stage.trained.parameters(), stage.settings.learning_rate, config.optimizer
        )
        whole = stage.unet is stage.trained
        stage.trained, optimizer = accelerator.prepare(stage.trained, optimizer)
        stage.unet = stage.trained if whole else stage.unet
        if name in self.standing.checkpoints:
            restore(self.standing.checkpoints[name], optimizer, accelerator)
        saver = Saver(self.session.checkpoints, config.checkpoints, self.recipe, self._host(), self.tell)
        self.tell("stage", stage=name, step=start, steps=stage.steps)
        loop = Loop(accelerator, stage, optimizer, batches, self._noise(), config)

        def after_step(report: StepReport) -> bool:
            self._report(name, stage.steps, report, batches.size * len(groups) * config.gradient_accumulation)
            stopping = self.stop.is_set()
            if accelerator.is_main_process and (stopping or saver.due(report.step, stage.steps)):
                saver.save(stage, report.step, optimizer, accelerator)
            if accelerator.is_main_process and not stopping and sampler.due(report.step, stage.steps):
                sampler.make(stage, report.step, accelerator)
            return stopping

        done = loop.run(start, after_step)
        accelerator.free_memory()
        del loop, stage, optimizer, after_step
        gc.collect()
        return done

    def _build(self, name: str, prompts: Sequence[str]) -> Stage:
        config, weights = self.session.config, self.standing.weights
        if name == "text_encoder":
            return text_encoder_stage(self.base, config, self.device, weights.get(name))
        encoder = weights.get("text_encoder")
        return unet_stage(self.base, config, self.device, weights.get(name), encoder, prompts)

    def _groups(self, prior: Sequence[Path]) -> tuple[Group, ...]:
        """Latents and prompts of the instance images and, with prior preservation, of the class images."""
        latents = self._latents([image.path for image in self.images], "latents")
        instance = Group("instance", latents, tuple(image.prompt for image in self.images))
        if not prior:
            return (instance,)
        other = self._latents(prior, "class latents")
        return instance, Group("class", other, (self.session.class_prompt,) * len(prior))

    def _latents(self, paths: Sequence[Path], task: str) -> LatentCache:
        return cache_latents(
            paths,
            size=self.session.config.resolution,
            scale=self.base.latent_scale,
            vae_hash=self.session.record.base_model.fingerprint,
            load_vae=lambda: load_vae(self.base.folder, torch.float32).to(self.device.kind).eval(),
            progress=self._progress(task),
        )

    def _settle(self) -> None:
        """Make results repeatable; on a CPU that needs the same number of threads as before."""
        make_deterministic(self.device)
        before = self.standing.last.state["host"] if self.standing.last else {}
        if self.device.kind == "cpu" and before.get("threads"):
            torch.set_num_threads(before["threads"])
        now = self._host()
        changed = [f"{name} {before[name]} -> {now[name]}" for name in now if before.get(name, now[name]) != now[name]]
        if changed:
            self.tell(
                "warning",
                message=f"going on with other arithmetic ({', '.join(changed)}): "
                "the result equals an uninterrupted run up to rounding, not to the bit",
            )

    def _host(self) -> dict[str, Any]:
        return {
            "device": self.device.name,
            "precision": self.device.precision,
            "optimizer": self.optimizer_name,
            "threads": torch.get_num_threads() if self.device.kind == "cpu" else 0,
            "torch": torch.__version__,
        }

    def _done(self, stage: str) -> int:
        checkpoint: Checkpoint | None = self.standing.checkpoints.get(stage)
        return checkpoint.step if checkpoint else 0

    def _noise(self) -> DDPMScheduler:
        noise: DDPMScheduler = DDPMScheduler.from_config(load_scheduler(self.base.folder).config)
        return noise

    def _base_engine(self) -> Engine:
        return Engine.from_folder(self.base.folder, device=self.device)

    def _progress(self, task: str) -> Any:
        def progress(done: int, total: int) -> None:
            self.tell("progress", task=task, done=done, total=total)

        return progress

    def _report(self, stage: str, steps: int, report: StepReport, images: int) -> None:
        self.tell(
            "step",
            stage=stage,
            step=report.step,
            steps=steps,
            loss=round(report.loss, 6),
            prior_loss=round(report.prior_loss, 6),
            learning_rate=report.learning_rate,
            seconds=round(report.seconds, 4),
            images=images,
        )


def check_base(session: Session) -> BaseModel:
    """Open the session's base model and make sure that it is still the one the session began with.

    Raises:
        ModelError: it cannot be used.
        TrainingError: it is another one.
    """
    base = open_base_model(Path(session.record.base_model.folder))
    if fingerprint(base.folder) != session.record.base_model.fingerprint:
        raise TrainingError(
            "its weights are not those this session began with",
            where=base.folder,
            fix="Put the same base model back there, or make a new session.",
        )
    return base
