"""Settings that need less memory, taken one after another where memory runs out.

A step down changes results at most by rounding, so a run takes it by itself, from the step that failed. Latents are in
the memory of the CPU in every case.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from fastdb.checkpoints.progress import is_joint
from fastdb.config import Config
from fastdb.errors import FastDBError, TrainingError, first_line
from fastdb.reporting import Note, argument, format_bytes
from fastdb.sessions.events import Emit
from fastdb.sessions.session import Session
from fastdb.training.memory_estimate import needed

_MARGIN = 1.1
"""Settings fit if a tenth more than their predicted memory is available; benchmarks/memory.py measures the error."""


@dataclass(frozen=True)
class Alternative:
    """Settings that change the result, offered as a command and never taken by a run itself.

    Attributes:
        again: option of `train` that goes back to a state before them; empty if training continues from its step.
        combined: whether it contains other alternatives.
    """

    title: str
    again: str
    settings: Mapping[str, Any]
    combined: bool = False

    def command(self, session: str) -> str:
        """Return the command that trains a session with these settings."""
        options = [self.again, *(f"--set {name}={value}" for name, value in self.settings.items())]
        return f"fastdb train {argument(session)} {' '.join(filter(None, options))}"


@dataclass(frozen=True)
class Shortage:
    """Memory that ran out in a stage.

    Attributes:
        done: steps of the stage whose state is saved or was never changed.
        share: the share of the memory that was being allocated, "weights", "activations", "moments" or "average".
        problem: the clause of the error.
        shares: predicted bytes by share; empty if unknown.
        alternatives: settings that change the result, each with the bytes that it needs in all; 0 if unknown.
    """

    stage: str
    done: int
    share: str
    problem: str
    shares: Mapping[str, int] = field(default_factory=dict)
    alternatives: Sequence[tuple[Alternative, int]] = ()


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


def step_down(session: Session, shortage: Shortage, on_gpu: bool, available: int | None, emit: Emit) -> Session:
    """Take the next step down, record it in the session's history, and return the changed session.

    Args:
        available: bytes of memory without the models of the failed attempt; None if unknown.

    Raises:
        TrainingError: there is none, naming the share and the settings that fit.
    """
    setting = next_step_down(session.config, shortage.stage, on_gpu)
    if not setting:
        raise _past_the_last(session, shortage, available)
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


def alternatives(config: Config, stage: str, optimizer: str, precision: str) -> Iterator[Alternative]:
    """Yield settings that change the result and need less memory, single ones first.

    Args:
        optimizer: in use, "adamw" or "adamw8bit".
    """
    again = "--restart" if stage == "text_encoder" or is_joint(config) else "--from-step 0"
    moments = Alternative("8-bit moments", "", {"optimizer.name": "adamw8bit"})
    average = Alternative("no running average", again, {"unet.ema_decay": 0})
    fused = {"optimizer.max_grad_norm": 0, "optimizer.fused_backward_pass": True}
    sizes = dict.fromkeys(config.resolution * part // 4 // 64 * 64 for part in (3, 2, 1))
    smaller = [
        Alternative(f"pictures of {size} px", "--restart", {"resolution": size})
        for size in sizes
        if 64 <= size < config.resolution
    ]
    singles = []
    if optimizer != "adamw8bit":
        # Its moments are converted, so the stage continues from its step.
        singles.append(moments)
    if config.unet.ema_decay and stage == "unet":
        singles.append(average)
    if precision != "fp16" and not config.optimizer.fused_backward_pass:
        singles.append(Alternative("updates in the backward pass without clipping", "--restart", fused))
    yield from (*singles, *smaller)
    if singles and smaller:
        every = {name: value for single in singles for name, value in single.settings.items()}
        yield Alternative("all of these", "--restart", {**every, **smaller[-1].settings}, combined=True)


def _past_the_last(session: Session, shortage: Shortage, available: int | None) -> TrainingError:
    """Return the error of a run that needs more memory with every setting that keeps the result."""
    shares, priced = shortage.shares, shortage.alternatives
    fitting = [(each, need) for each, need in priced if available is None or need * _MARGIN <= available]
    offered, resized = [], False
    for each, need in [pair for pair in fitting if not pair[0].combined] or fitting:
        # The largest pictures that fit.
        if not (resized and "resolution" in each.settings):
            about = f" (about {format_bytes(need)} in all)" if need else ""
            offered.append(f"{each.title}{about}: {each.command(session.name)}")
        resized = resized or "resolution" in each.settings
    figures = ""
    if own := shares.get(shortage.share):
        figures = f", which need about {format_bytes(own)} of {format_bytes(needed(shares))} in all"
        figures += f" ({format_bytes(available)} are available)" if available is not None else ""
    lacking = "Use a machine with more memory" + (
        f"; the settings that need least need about {format_bytes(min(need for _, need in priced))}." if priced else "."
    )
    return TrainingError(
        f"{shortage.problem}: it ran out for {shortage.share}{figures}, and every setting that keeps the "
        "result is used already",
        where=f"{shortage.stage} stage after step {shortage.done}",
        fix=f"Change the result: {', or '.join(offered)}" if offered else lacking,
    )
