"""The verbs about sessions: new, list, show, add-images, check. None of them needs torch before it trains or draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdb import console
from fastdb.checkpoints.checkpoint import Checkpoint, complete, fault_in
from fastdb.checkpoints.leftovers import leftovers
from fastdb.config import Config, build
from fastdb.errors import FastDBError, ImageError, SessionBusy, SessionNotFound, StorageError
from fastdb.images.photo_files import find_photos, photos_in, png_fault
from fastdb.sessions import file_hashes
from fastdb.sessions.lease_status import in_use, refuse_elsewhere
from fastdb.sessions.session import Session, check_free, check_name
from fastdb.sessions.session_yaml import BaseModelRecord, Subject
from fastdb.storage.atomic_write import explained
from fastdb.storage.delete import bytes_of
from fastdb.storage.set_aside import ASIDE

SessionLike = Session | str | Path


def open_session(session: SessionLike, root: str | Path | None = None) -> Session:
    """A session by its name, its folder, or itself.

    Raises:
        SessionError: there is none, or it cannot be opened.
    """
    # A session that was opened a while ago is read again: the trainer has written into its history since.
    return Session.open(session.path if isinstance(session, Session) else session, root)


def new(
    name: str,
    base: str | Path,
    photos: Sequence[str | Path] = (),
    *,
    token: str = "",
    class_word: str = "",
    root: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Session:
    """Make a session: `base` is a file or diffusers folder, a link or a repository or file on the Hub, which is
    fetched, a name such as `sd15`, or `mini`; `settings` are dotted names and values.

    With a token or class word and no prompt set, every instance image is called `a photo of <token> <class>`.

    Raises:
        SessionError, ModelError, ConfigError: with nothing made; so too where a photo is not there.
        ImageError: a photo cannot be used; the session is made and the others are in it.
        StorageError: the folder cannot be written.
    """
    from fastdb.models.diffusers_folder import fingerprint, open_base_model
    from fastdb.models.mini_settings import recommended
    from fastdb.models.registry import check_choice
    from fastdb.models.resolve import MINI, known_base, resolve_base

    check_name(name)
    config = Config().changed({**recommended(base, class_word), **(settings or {})})
    subject = " ".join(word for word in (token, class_word) if word)
    if subject and not config.captions.instance_prompt:
        config = config.changed({"captions.instance_prompt": f"a photo of {subject}"})
        console.say(f"instance prompt: {config.captions.instance_prompt!r}, from the token and the class word")
    named = build(Subject, {"token": token, "class_word": class_word}, where="subject")
    found = _found(photos)
    # Before gigabytes are fetched for it.
    check_free(name, root)
    if known := known_base(base):
        check_choice(known, resolution=config.resolution)
    with console.bar("base model", "B") as update:
        model = resolve_base(base, update)
    opened = open_base_model(model.folder)
    if "resolution" not in (settings or {}) and config.resolution != opened.sample_size:
        config = config.changed({"resolution": opened.sample_size})
        console.say(f"resolution: {opened.sample_size} px, which the base model was made for")
    record = BaseModelRecord(folder=model.named, fingerprint=fingerprint(model.folder), source=model.source)
    session = Session.create(name, base_model=record, subject=named, config=config, root=root)
    console.say(f"new session: {session.path}")
    if model.named == MINI:
        console.say(
            "its base model is mini, which knows a small drawn world only, to try things out: "
            "name a real one with --base"
        )
    if found:
        add_images(session, found)
    return session


def open_or_new(
    name: str,
    base: str | Path,
    *,
    token: str = "",
    class_word: str = "",
    root: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Session:
    """Open the session of this name, which keeps its own base model, subject and settings, or make it: see `new`.

    Raises:
        FastDBError: it cannot be opened, or cannot be made.
    """
    try:
        session = open_session(name, root)
    except SessionNotFound:
        session = new(name, base, token=token, class_word=class_word, root=root, settings=settings)
    else:
        console.say("going on with a session that is there already, as it was made:")
    return show(session)


def add_images(session: SessionLike, photos: Sequence[str | Path], root: str | Path | None = None) -> Path:
    """Clean, crop and add photos to a session; returns a picture of the crops to look at.

    Photos that cannot be used are named, and the others added.

    Raises:
        ImageError: nothing was found, or some could not be used (after the others were added).
        SessionBusy: the session is being trained.
    """
    from fastdb.images.contact_sheet import review_sheet
    from fastdb.images.intake import add_photos
    from fastdb.images.photos import save_png
    from fastdb.sessions.file_hashes import record_files
    from fastdb.training.process import find

    session = open_session(session, root)
    found = _found(photos)
    if not found:
        raise ImageError("no photos were named", where=session.name, fix="Name files or a folder of photos.")
    if find(session) is not None:
        raise SessionBusy("is being trained", where=session.name, fix="Add photos when that is over.")
    refuse_elsewhere(session.path, "Or stop it there, and add photos then.")
    with console.bar("crop", "photo") as update:
        intake = add_photos(
            session.originals,
            session.instance_images,
            session.captions,
            found,
            session.config.resolution,
            update,
        )
    for added in intake.added:
        size, resolution = added.crop.size, session.config.resolution
        if added.crop.whole:
            console.say(f"{added.name}: used whole ({size} x {size}), trained at {resolution}")
        else:
            console.say(f"{added.name}: cropped to {size} x {size} ({added.crop.reason}), trained at {resolution}")
    sheet = session.path / "instance_images.png"
    if intake.added:
        save_png(review_sheet(session.name, intake.added), sheet)
        console.say(f"look at the crops: {sheet}")
        record_files(session.path, [*_files_of(session, [added.name for added in intake.added]), sheet])
    if intake.refused:
        for refused in intake.refused:
            console.say(f"not added: {refused.source}: {refused.reason}")
        raise ImageError(
            f"{len(intake.refused)} of {len(found)} photos could not be used, {len(intake.added)} were added",
            where=session.name,
            fix="Fix or remove the photos named above.",
        )
    return sheet


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
        rows.append((session.name, stand, str(len(_photos(session.instance_images))), session.record.created))
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
        ("instance images", str(len(_photos(session.instance_images)))),
        ("class images", f"{len(_photos(session.class_images))} of {config.prior.class_images}"),
        ("training", _stand(session)),
        ("runs", ", ".join(run.outcome or "no end noted" for run in record.runs) or "none"),
        *(("extended", f"{one}, {one.when}") for one in record.extended),
        ("exports", ", ".join(path.name for path in exports_of(session)) or "none"),
    ]
    if alone := _alone(session):
        facts.append(("not published", f"{', '.join(alone)}: on this machine alone; fastdb publish {session.name}"))
    facts += [("skipped", f"{note.subject}: {note.reason}") for note in leftovers(session)]
    facts += [("changed", console.sentence(note)) for note in changes(session.path, quick=True)]
    if used := in_use(session.path):
        facts.insert(1, ("trained now", used))
    if waiting := _waiting(session):
        some = f"{', '.join(waiting[:3])}{f' and {len(waiting) - 3} more' if len(waiting) > 3 else ''}"
        facts.append(("not uploaded", f"{some}: on this machine alone until Google Drive has taken them"))
    changed = config.differences(Config())
    facts.append(("set", "; ".join(f"{line.split(' -> ')[0]}" for line in changed) or "all as the classic recipe"))
    console.table(("session", session.name), facts)
    return session


def check(
    session: SessionLike, *, quick: bool = False, accept: bool = False, root: str | Path | None = None
) -> list[str]:
    """Hold every file of a session against what is known of it, and say what is not as it was, a line each.

    Args:
        quick: look at sizes only, but for small files.
        accept: take what was changed since it came for right, checkpoints aside.

    Returns the lines of what is only worth knowing.

    Raises:
        SessionError: there is no such session, or it cannot be opened.
        StorageError: something is damaged, was changed or is gone; or the disk does not answer.
    """
    session = open_session(session, root)
    if accept:
        file_hashes.accept_changes(session.path)
        console.say(f"taken for right: the files of {session.name} as they are now")
    there = [*complete(session.checkpoints), *_set_aside(session)]
    remarks = _remarks(session)
    with explained(session.path), console.bar("check", "B") as update:
        total, done = bytes_of(session.path), 0

        def more(size: int) -> None:
            nonlocal done
            done = min(done + size, total)
            update(done, total)

        wrong = [console.sentence(note) for note in file_hashes.changes(session.path, quick=quick, progress=more)]
        wrong += [line for path in file_hashes.unlisted(session.path) if (line := _unlisted(session, path))]
        for checkpoint in there:
            if clause := fault_in(checkpoint, quick=quick):
                wrong.append(f"{checkpoint.path.relative_to(session.path).as_posix()}: {clause}")
            more(bytes_of(checkpoint.path))
    for line in (*wrong, *remarks):
        console.say(line)
    if wrong:
        raise StorageError(
            f"{len(wrong)} of its files {'is' if len(wrong) == 1 else 'are'} not as they were",
            where=session.name,
            fix=f"Put them back from a copy; what you changed yourself is taken for right with: "
            f"fastdb check {session.name} --accept",
        )
    console.say(f"{session.name}: all is as it was{', by the sizes' if quick else ', every byte of it'}")
    return remarks


def exports_of(session: Session) -> list[Path]:
    """The exported files of a session."""
    return [path for path in sorted(session.path.glob(f"{session.name}*")) if path.suffix in {".safetensors", ".ckpt"}]


def _files_of(session: Session, stems: Sequence[str]) -> list[Path]:
    """The files that came in under those stems."""
    folders = (session.originals, session.instance_images, session.captions)
    return [path for folder in folders for path in folder.iterdir() if path.stem in stems]


def _found(photos: Sequence[str | Path]) -> list[Path]:
    from fastdb.runtime.paths import expanded

    return find_photos([expanded(photo) for photo in photos]) if photos else []


def _alone(session: Session) -> list[str]:
    """The checkpoints that lie on this machine only and that another would need to go on."""
    from fastdb.checkpoints.publish import pending

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


def _photos(folder: Path) -> list[Path]:
    return photos_in(folder) if folder.is_dir() else []


def _stand(session: Session) -> str:
    from fastdb.checkpoints.progress import how_far, progress_of

    return how_far(session, progress_of(session))


def _set_aside(session: Session) -> list[Checkpoint]:
    folders = sorted(session.checkpoints.glob(f"{ASIDE}*")) if session.checkpoints.is_dir() else []
    return [checkpoint for folder in folders for checkpoint in complete(folder)]


def _remarks(session: Session) -> list[str]:
    """Return the sentences of skipped files that are no damaged checkpoints."""
    return [console.sentence(note) for note in leftovers(session) if note.kind != "checkpoint skipped"]


def _unlisted(session: Session, path: Path) -> str:
    """What is wrong with a file of which nothing is known, as far as it says itself."""
    clause = png_fault(path.read_bytes()) if path.suffix.lower() == ".png" else ""
    return f"{path.relative_to(session.path).as_posix()} {clause}" if clause else ""
