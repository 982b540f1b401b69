"""Verb about a session's token: try-token."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fastdb.commands.differences import has_begun
from fastdb.errors import ConfigError, SessionBusy
from fastdb.models.resolve import check_present_base, ensure_base
from fastdb.reporting import SILENT, Note, Report, argument
from fastdb.runtime.library_settings import prepare_libraries
from fastdb.sessions.lease_status import refuse_elsewhere
from fastdb.sessions.session import Session, SessionLike
from fastdb.sessions.token_trial import SHEET, TokenTrial
from fastdb.training import process

if TYPE_CHECKING:
    from fastdb.inference.engine import Engine

_OUT_OF_MEMORY = "Close other programs that use the GPU and run the same command again."


def try_token(
    session: SessionLike,
    tokens: Sequence[str] = (),
    *,
    measure: Literal["auto", "drawn", "clip"] = "auto",
    first_seed: int | None = None,
    root: str | Path | None = None,
    report: Report = SILENT,
) -> TokenTrial:
    """Draw pictures of tokens with the untrained base, and count how often the class still appears.

    Args:
        tokens: by default the session's own, whose pictures are kept as samples of step 0.
        measure: "drawn" reads pictures by mini's judge, whatever the base model is, "clip" by CLIP, "auto" by what
            fits and is on this machine.
        first_seed: another number gives other pictures.

    Raises:
        ConfigError: there is no token, or the prompts do not contain it.
        SessionBusy: the session is being trained.
        ImageError: there are no instance images to take prompts from.
        ModelError, StorageError: the base model cannot be loaded, or the session's folder cannot be written.
    """
    session = Session.open(session, root)
    own, tokens = session.record.subject.token, [tokens] if isinstance(tokens, str) else list(tokens)
    _check(session, tokens or [own])
    report.note(Note("trying token", ", ".join(map(repr, tokens or [own])), session.name))
    with report.progress("base model", "B") as update:
        base = ensure_base(session, update)
    prepare_libraries()
    from fastdb.inference.engine import Engine
    from fastdb.runtime.device import choose_device, explain_out_of_memory, release_memory
    from fastdb.training.token_try import TokenTest, class_reader

    device = choose_device(session.config.precision)

    @cache
    def load_engine() -> Engine:
        return Engine.from_base(base, device=device)

    reader = class_reader(session, session.record.subject.class_word, measure, device.kind)
    with report.progress("token pictures", "picture") as progress, explain_out_of_memory("pictures", _OUT_OF_MEMORY):
        test = TokenTest(session, base, load_engine, reader, progress, first_seed=first_seed)
        trial = test.run([token.strip() for token in tokens])
    load_engine.cache_clear()
    release_memory()
    if trial is None:
        raise ConfigError(
            f"no prompt contains the token {own!r}, or there is no class to compare with",
            where=session.name,
            fix=f"Set both: fastdb change {argument(session.name)} --token sks --class dog",
        )
    for note in trial.notes(session, begins=has_begun(session)):
        report.note(note)
    kept = not tokens and first_seed is None
    report.note(Note("token pictures", str(session.samples / (SHEET if kept else f"tokens-{SHEET}"))))
    return trial


def _check(session: Session, tokens: Sequence[str]) -> None:
    """Raise if a token is empty, the base model was replaced, or the session is being trained."""
    if not all(token.strip() for token in tokens):
        raise ConfigError(
            "there is no token to try",
            where=session.name,
            fix=f"Name one: fastdb try-token {argument(session.name)} TOKEN",
        )
    check_present_base(session)
    if process.find(session) is not None:
        raise SessionBusy("is being trained", subject=session.name, fix="Try tokens when training has ended.")
    refuse_elsewhere(session.path, "Or stop it there, and try tokens then.")
