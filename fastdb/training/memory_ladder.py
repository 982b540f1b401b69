"""Settings that need less memory, taken one after another where memory runs out.

A step down changes results at most by rounding, so a run takes it by itself, from the step that failed. Latents are in
the memory of the CPU in every case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from fastdb.checkpoints.progress import is_joint
from fastdb.config import Config
from fastdb.errors import FastDBError, TrainingError, first_line
from fastdb.reporting import Note, argument, format_bytes
from fastdb.sessions.events import Emit
from fastdb.sessions.session import Session


@dataclass(frozen=True)
class Shortage:
    """Memory that ran out in a stage.

    Attributes:
        done: steps of the stage whose state is saved or was never changed.
        share: the share of the memory that was being allocated, "weights", "activations", "moments" or "average".
        problem: the clause of the error.
        shares: predicted bytes by share; empty if unknown.
    """

    stage: str
    done: int
    share: str
    problem: str
    shares: Mapping[str, int] = field(default_factory=dict)


def next_step_down(config: Config, stage: str, on_gpu: bool) -> dict[str, Any]:
    """Return the next setting that lowers the memory a stage needs, and its value; empty past the last."""
    rows = config.batch_size + (config.prior.batch_size or config.batch_size) * bool(config.prior.class_images)
    if not config.gradient_checkpointing:
        return {"gradient_checkpointing": True}
    if rows > 1 and not config.split_batches:
        return {"split_batches": True}
    if on_gpu and stage == "unet" and config.unet.ema_decay and not config.unet.ema_on_cpu:
        return {"unet.ema_on_cpu": True}
    return {}


def step_down(session: Session, shortage: Shortage, on_gpu: bool, emit: Emit) -> Session:
    """Take the next step down, record it in the session's history, and return the changed session.

    Raises:
        TrainingError: there is none, naming the share and the settings that need less memory.
    """
    setting = next_step_down(session.config, shortage.stage, on_gpu)
    if not setting:
        raise _past_the_last(session, shortage)
    (name, value), config = next(iter(setting.items())), session.config.changed(setting)
    after = f"{shortage.stage} step {shortage.done}"
    reason = f"out of memory for {shortage.share}"
    change = f"{name}={str(value).lower()}"
    emit("note", **asdict(Note("memory stepped down", f"{after}: {shortage.problem}", change)))
    try:
        return session.with_revision(config, after, [change], reason)
    except (FastDBError, OSError) as error:
        emit("note", **asdict(Note("history not written", reason=first_line(error))))
    return replace(session, record=session.record.model_copy(update={"config": config}))


def _past_the_last(session: Session, shortage: Shortage) -> TrainingError:
    """Return the error of a run that needs more memory with every setting that keeps the result."""
    config, name, shares = session.config, argument(session.name), shortage.shares
    again = "--restart" if shortage.stage == "text_encoder" or is_joint(config) else "--from-step 0"
    settings = []
    if config.optimizer.name != "adamw8bit":
        saved = _saves(shares.get("moments", 0) * 3 // 4)
        settings.append(f"8-bit moments{saved}: fastdb train {name} --set optimizer.name=adamw8bit")
    if config.unet.ema_decay and shortage.stage == "unet" and not config.unet.ema_on_cpu:
        saved = _saves(shares.get("average", 0))
        settings.append(f"no running average{saved}: fastdb train {name} {again} --set unet.ema_decay=0")
    if (smaller := config.resolution * 3 // 4 // 64 * 64) >= 64:
        saved = _saves(int(shares.get("activations", 0) * (1 - (smaller / config.resolution) ** 2)))
        settings.append(f"smaller pictures{saved}: fastdb train {name} --restart --set resolution={smaller}")
    need = f", which need about {format_bytes(shares[shortage.share])}" if shares.get(shortage.share) else ""
    whole = f" of {format_bytes(sum(shares.values()))} in all" if need else ""
    return TrainingError(
        f"{shortage.problem}: it ran out for {shortage.share}{need}{whole}, and every setting that keeps the result is "
        "used already",
        where=f"{shortage.stage} stage after step {shortage.done}",
        fix=f"Change the result: {', or '.join(settings)}" if settings else "Use a machine with more memory.",
    )


def _saves(count: int) -> str:
    return f" (about {format_bytes(count)} less)" if count else ""
