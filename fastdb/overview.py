"""What there is: the sessions, and what one of them holds. Needs no torch."""

from __future__ import annotations

from pathlib import Path

from fastdb import console
from fastdb.config import Config
from fastdb.errors import FastDBError
from fastdb.sessions.lease_status import in_use
from fastdb.sessions.session import Session

SessionLike = Session | str | Path


def open_session(session: SessionLike, root: str | Path | None = None) -> Session:
    """A session by its name, its folder, or itself.

    Raises:
        SessionError: there is none, or it cannot be opened.
    """
    # A session that was opened a while ago is read again: the trainer has written into its history since.
    return Session.open(session.path if isinstance(session, Session) else session, root)


def list_sessions(root: str | Path | None = None) -> list[Session]:
    """List the sessions below `root` and show them; one that cannot be opened is shown with its reason."""
    from fastdb.runtime.paths import sessions_root

    good, rows, bad = [], [], []
    for session in Session.list(root):
        if isinstance(session, FastDBError):
            bad.append(str(session))
            continue
        good.append(session)
        stand = ", ".join(filter(None, (_stand(session), in_use(session.path))))
        rows.append((session.name, stand, str(len(_files(session.instance_images))), session.record.created))
    console.say(
        f"{len(good)} session{'s'[: len(good) != 1]} in {sessions_root(root)}"
        if good
        else f"no sessions in {sessions_root(root)}"
    )
    if rows:
        console.table(("name", "training", "images", "created"), rows)
    for line in bad:
        console.say(f"cannot be opened: {line}")
    return good


def show(session: SessionLike, root: str | Path | None = None) -> Session:
    """Say what a session holds."""
    from fastdb.checkpoints.leftovers import leftovers
    from fastdb.sessions.file_hashes import changes

    session = open_session(session, root)
    record, config = session.record, session.config
    facts = [
        ("folder", str(session.path)),
        ("base model", record.base_model.folder),
        ("subject", f"{record.subject.token} {record.subject.class_word}".strip() or "none set"),
        ("instance prompt", config.captions.instance_prompt or "from file names"),
        ("instance images", str(len(_files(session.instance_images)))),
        ("class images", f"{len(_files(session.class_images))} of {config.prior.class_images}"),
        ("training", _stand(session)),
        ("runs", ", ".join(run.outcome or "no end noted" for run in record.runs) or "none"),
        *(("extended", f"{one}, {one.when}") for one in record.extended),
        ("exports", ", ".join(path.name for path in exports_of(session)) or "none"),
    ]
    if alone := _alone(session):
        facts.append(("not published", f"{', '.join(alone)}: on this machine alone; fastdb publish {session.name}"))
    facts += [("passed over", line.replace(" is passed over", "")) for line in leftovers(session)]
    facts += [("changed", line) for line in changes(session.path, quick=True)]
    if used := in_use(session.path):
        facts.insert(1, ("trained now", used))
    if waiting := _waiting(session):
        some = f"{', '.join(waiting[:3])}{f' and {len(waiting) - 3} more' if len(waiting) > 3 else ''}"
        facts.append(("not uploaded", f"{some}: on this machine alone until Google Drive has taken them"))
    changed = config.differences(Config())
    facts.append(("set", "; ".join(f"{line.split(' -> ')[0]}" for line in changed) or "all as the classic recipe"))
    console.table(("session", session.name), facts)
    return session


def exports_of(session: Session) -> list[Path]:
    """The exported files of a session."""
    return [path for path in sorted(session.path.glob(f"{session.name}*")) if path.suffix in {".safetensors", ".ckpt"}]


def _alone(session: Session) -> list[str]:
    """The checkpoints that lie on this machine only and that another would need to go on."""
    from fastdb.checkpoints.pending import pending

    return [one.path.name for one in pending(session)]


def _waiting(session: Session) -> list[str]:
    """What of a session would go with this machine, as far as Google Drive's mount tells: the newest first."""
    from fastdb.checkpoints.checkpoint import complete
    from fastdb.storage.atomic_write import explained
    from fastdb.storage.drive_uploads import waits_for_upload

    there = [checkpoint.path for checkpoint in reversed(complete(session.checkpoints))]
    there += [*exports_of(session), session.instance_images]
    with explained(session.path):
        return [path.name for path in there if path.exists() and waits_for_upload(path)]


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if path.suffix.lower() != ".txt" and not path.name.startswith(".")]


def _stand(session: Session) -> str:
    from fastdb.checkpoints.progress import how_far, progress_of

    return how_far(session, progress_of(session))
