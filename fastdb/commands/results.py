"""The verbs that use what was trained: the file, pictures, measurements. As in `workflow`, torch is loaded late."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fastdb import console
from fastdb.commands.sessions import SessionLike, open_session
from fastdb.reporting import format_bytes
from fastdb.sessions.session import Session

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastdb.evaluation.report import Report


def export(
    session: SessionLike,
    *,
    formats: Sequence[str] = ("safetensors", "ckpt"),
    precision: Literal["fp16", "bf16", "fp32"] = "fp16",
    step: int | None = None,
    render: bool = False,
    root: str | Path | None = None,
) -> list[Path]:
    """Write the trained model as one file a format, in the original layout, verified by reading it back.

    `step` names a checkpoint of the UNet stage, whose files are called `<name>_step_<step>`; else it is the newest.
    `render` makes a picture with the session and with each file, and compares them.

    Raises:
        ConfigError: there is no checkpoint of that step.
        ModelError: it cannot be exported, did not verify, or draws something else.
        TrainingError: nothing was trained yet.
        StorageError: the disk is full or read-only.
    """
    from fastdb.checkpoints.export_parts import export_metadata, export_parts
    from fastdb.models.export import export_model
    from fastdb.models.resolve import ensure_base
    from fastdb.sessions.file_hashes import record_files

    session = open_session(session, root)
    with console.bar("base model", "B") as update:
        base = ensure_base(session, update)
    parts, stands = export_parts(session, base, step)
    console.say(f"exporting {session.name} as trained so far: {stands}")
    made = []
    for kind in formats:
        target = session.path / f"{session.name}{'' if step is None else f'_step_{step}'}.{kind}"
        with console.bar(target.name, "tensor") as update:
            done = export_model(
                parts, target, dtype=precision, metadata=export_metadata(session, base, stands), progress=update
            )
        console.say(f"verified {target}: {done.tensors} tensors, {precision}, {format_bytes(done.bytes)}")
        if render:
            from fastdb.inference.compare import check_render

            check_render(
                parts,
                target,
                base.folder,
                prompt=session.config.captions.instance_prompt,
                report=console.ConsoleReport(),
            )
        made.append(target)
        record_files(session.path, {target: done.sha256})
        if render:
            record_files(session.path, list(session.path.glob("*.render.png")))
    return made


def generate(
    source: SessionLike,
    prompt: str,
    *,
    base: str | Path | None = None,
    output: str | Path | None = None,
    root: str | Path | None = None,
    **request: Any,
) -> list[Path]:
    """Make pictures from a session (its trained weights so far) or from an exported file.

    For a file outside a session, `base` names the base model it was trained from. Other arguments are
    those of `fastdb.inference.engine.Request`.

    Raises:
        FastDBError: a value is out of bounds, or the model cannot be loaded.
    """
    from fastdb.inference.samplers import DEFAULT, check_sampler
    from fastdb.runtime.library_logging import hush_libraries
    from fastdb.runtime.paths import expanded

    # Before torch is loaded, which takes seconds.
    check_sampler(request.get("sampler", DEFAULT))
    if isinstance(source, Session) or not str(source).endswith((".safetensors", ".ckpt")):
        source = open_session(source, root)
    hush_libraries()
    from fastdb.inference.pictures import save_pictures
    from fastdb.inference.source import open_source
    from fastdb.runtime.device import release_memory
    from fastdb.sessions.file_hashes import record_files
    from fastdb.sessions.session_yaml import FILE
    from fastdb.storage.atomic_write import make_folder

    with console.bar("base model", "B") as update:
        opened = open_source(source if isinstance(source, Session) else str(source), base, root, update)
    wanted = opened.request(prompt, **request)
    folder = expanded(output).absolute() if output else opened.pictures
    make_folder(folder)
    console.say(f"loading {opened.name}")
    engine = opened.load()
    with console.bar("generate", "step") as update:
        pictures = engine.generate(wanted, progress=update)
    del engine
    release_memory()
    paths = save_pictures(pictures, wanted, folder)
    for path in paths:
        console.say(str(path))
    if (folder.parent / FILE).is_file():
        record_files(folder.parent, paths)
    return paths


def evaluate(
    session: SessionLike,
    *,
    checkpoints: Sequence[int] | None = None,
    seeds: int = 4,
    prompts: Sequence[str] = (),
    measure: str = "auto",
    file: str | Path | None = None,
    root: str | Path | None = None,
    **wanted: Any,
) -> Report:
    """Find out which checkpoint is best: the same prompts and seeds for each, measured, compared, and one named.

    `checkpoints` are steps of the UNet stage, all where none are named; an exported `file` takes their place. `measure`
    is "drawn" (the drawn world's readings), "clip" (CLIP and DINO) or "auto". Other arguments are those of
    `fastdb.evaluation.evaluate.Wanted`. Pictures and figures go into the session's `evaluation/`.

    Raises:
        FastDBError: there is nothing to evaluate, a value is out of bounds, or a model that measures cannot be had.
    """
    from fastdb.inference.samplers import check_sampler
    from fastdb.runtime.library_logging import hush_libraries
    from fastdb.runtime.paths import expanded

    # Before torch is loaded, which takes seconds.
    if wanted.get("sampler") is not None:
        check_sampler(wanted["sampler"])
    session = open_session(session, root)
    hush_libraries()
    from fastdb.evaluation.evaluate import Wanted, evaluate_session
    from fastdb.sessions.file_hashes import record_files

    report = evaluate_session(
        session,
        Wanted(
            checkpoints=checkpoints,
            seeds=seeds,
            prompts=prompts,
            measure=measure,
            file=expanded(file) if file is not None else None,
            **wanted,
        ),
    )
    folder = session.path / "evaluation"
    record_files(session.path, [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")])
    return report


def pictures_of(paths: Sequence[Path]) -> list[Image]:
    """Open pictures, for a notebook to show."""
    from fastdb.images.photos import read_photo

    return [read_photo(path) for path in paths]
