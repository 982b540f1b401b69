"""The plan: what the trainer will do and why, said before it begins."""

from __future__ import annotations

from dataclasses import dataclass

from fastdb.checkpoints.progress import STAGES, Standing, is_joint, steps_of
from fastdb.console import sentence
from fastdb.runtime.device import Device
from fastdb.sessions.session import Session


@dataclass(frozen=True)
class Plan:
    """Where training begins: `stage` and the steps done in it, or no stage when all is done."""

    stage: str | None
    step: int
    lines: tuple[str, ...]

    @property
    def begins(self) -> str:
        """Where it begins, as the session's history has it."""
        return f"{self.stage} step {self.step}" if self.stage else "finished"


def next_stage(session: Session, standing: Standing) -> tuple[str | None, int]:
    """The first stage that is not over, and the steps done in it."""
    for stage in STAGES:
        done = standing.done(stage)
        if done < steps_of(session, stage):
            return stage, done
    return None, 0


def make_plan(session: Session, standing: Standing, device: Device, optimizer: tuple[str, str], images: int) -> Plan:
    """Put together what was decided, each decision with its reason."""
    stage, step = next_stage(session, standing)
    config, lines = session.config, [sentence(note) for note in standing.skipped]
    lines += [_stage(name, session, standing.done(name)) for name in STAGES]
    if is_joint(config):
        last = min(config.text_encoder.steps, config.unet.all_steps)
        rate = config.text_encoder.learning_rate
        lines.append(f"text encoder: trains beside the UNet until step {last}, from rate {rate:g}")
    if config.unet.ema_decay:
        lines.append(f"result: the running average of the UNet's weights (EMA), decay {config.unet.ema_decay:g}")
    lines.append(f"images: {images} at {config.resolution} px{_prior(session)}")
    if config.captions.dropout and config.captions.caption_files:
        lines.append(f"captions: left out in {config.captions.dropout:.0%} of an image's turns")
    if config.min_snr_gamma:
        lines.append(f"loss: timesteps weighted by Min-SNR, gamma {config.min_snr_gamma:g}")
    lines.append(f"device: {device.name} in {device.precision} ({device.reason})")
    lines.append(f"optimizer: {optimizer[0]} ({optimizer[1]})")
    saves = config.checkpoints
    kept = f"; those at multiples of {saves.keep_every} steps stay" if saves.keep_every else ""
    lines.append(
        f"checkpoint: every {saves.every_steps} steps or {saves.every_minutes:g} minutes, and when stopped{kept}"
    )
    return Plan(stage, step, tuple(lines))


def _stage(name: str, session: Session, done: int) -> str:
    """What is to be done in a stage, or why nothing is."""
    config, steps = session.config, steps_of(session, name)
    if name == "text_encoder" and is_joint(config):
        return f"{name} stage: none, it trains in the unet stage"
    if steps == 0:
        return f"{name} stage: left out, 0 steps are set"
    if done >= steps:
        return f"{name} stage: done, {steps} steps"
    more = "".join(f" + {one}" for one in config.unet.extensions) if name == "unet" else ""
    own = config.unet if name == "unet" else config.text_encoder
    went_on = f", going on after step {done}" if done else ""
    return f"{name} stage: {own.steps} steps from rate {own.learning_rate:g}{more}{went_on}"


def _prior(session: Session) -> str:
    """The class images as the end of a line: how many, and of how many prompts where there are several."""
    prior = session.config.prior
    if not prior.class_images:
        return ""
    prompts = f" of {len(session.class_prompts)} prompts" if len(session.class_prompts) > 1 else ""
    return f", {prior.class_images} class images{prompts} beside them"
