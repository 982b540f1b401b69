"""Verbs that use what was trained: export, generate, evaluate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fastdb.checkpoints.claims import claims_kept
from fastdb.checkpoints.progress import how_far, no_valid_checkpoint, progress_of, steps_text
from fastdb.commands.prompt_loras import choose_loras, is_lora, split_tags
from fastdb.commands.session_warnings import prompts_of
from fastdb.errors import ConfigError, SessionNotFound
from fastdb.evaluation.options import Options
from fastdb.inference.pictures import save_pictures
from fastdb.inference.request import Request
from fastdb.inference.samplers import DEFAULT
from fastdb.models.resolve import check_present_base, ensure_base
from fastdb.reporting import SILENT, Note, Report, argument, counted, format_bytes
from fastdb.runtime.library_settings import prepare_libraries
from fastdb.runtime.paths import expanded
from fastdb.sessions.exports import existing_file
from fastdb.sessions.file_hashes import record_files
from fastdb.sessions.lease_status import in_use
from fastdb.sessions.session import Session, SessionLike
from fastdb.sessions.session_yaml import FILE
from fastdb.storage.atomic_write import make_folder
from fastdb.training import process
from fastdb.training.divergence import remedy

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastdb.evaluation.report import Evaluation
    from fastdb.models.diffusers_folder import BaseModel
    from fastdb.models.export import Exported

_FP16_ERROR = 1e-3
"""Relative error of a factor in fp16 that is reported; normal numbers have at most half of it."""


@claims_kept()
def export(
    session: SessionLike,
    *,
    formats: Sequence[str] | None = None,
    precision: Literal["fp16", "bf16", "fp32"] = "fp16",
    step: int | None = None,
    merged: bool = False,
    render: bool = False,
    root: str | Path | None = None,
    report: Report = SILENT,
) -> list[Path]:
    """Export the trained model as a file per format, in the original layout, verified by reading it back.

    A LoRA is exported as `<name>_lora.safetensors` in kohya's form and `<name>_lora_diffusers.safetensors`.

    Args:
        formats: "safetensors" and "ckpt" by default.
        step: a checkpoint of the UNet stage, exported as `<name>_step_<step>`; the newest by default.
        merged: export the base model with the LoRA merged into its weights instead.
        render: generate an image with the session and with each file, and compare them.

    Raises:
        ConfigError: no checkpoint of that step, or an option does not fit the method.
        SessionError: its `session.yaml` is incomplete.
        ModelError: it cannot be exported, did not verify, or renders differently.
        TrainingError: nothing was trained yet.
        StorageError: the disk is full or read-only.
    """
    session = Session.open(session, root)
    session.check_complete()
    adapters_only = _exports_adapters(session, formats, merged, render)
    # Another base model is reported before torch is loaded, which takes seconds.
    with report.progress("base model", "B") as update:
        base = ensure_base(session, update)
    from fastdb.checkpoints.export_parts import export_metadata, export_parts
    from fastdb.models.export import export_model

    parts, done = export_parts(session, base, step)
    report.note(Note("exporting", session.name, how_far(session, done)))
    stem = f"{session.name}{'' if step is None else f'_step_{step}'}"
    if adapters_only:
        return _export_adapters(session, base, parts, done, stem, precision, report)
    files = []
    for kind in formats or ("safetensors", "ckpt"):
        target = session.path / f"{stem}.{kind}"
        with report.progress(target.name, "tensor") as update:
            metadata = export_metadata(session, base, done)
            written = export_model(parts, target, dtype=precision, metadata=metadata, base=base.folder, progress=update)
        details = f"{counted(written.tensors, 'tensor')}, {precision}, {format_bytes(written.bytes)}"
        report.note(Note("export verified", str(target), details))
        if render:
            from fastdb.inference.compare import check_render

            prompt = session.config.captions.instance_prompt
            check_render(parts, target, base.folder, prompt=prompt, report=report)
        files.append(target)
        _record_export(session, written, done)
        if render:
            record_files(session.path, list(session.path.glob("*.render.png")))
    return files


def _record_export(session: Session, written: Exported, done: Mapping[str, int]) -> None:
    """Record the hash of an exported file and the steps that it contains."""
    record_files(session.path, {written.path: written.sha256})
    if process.find(session) is not None or not in_use(session.path):
        # A trainer on another machine writes the record too; the metadata of a `.safetensors` suffices then.
        session.with_exports(written.path.name, steps_text(done))


def _exports_adapters(session: Session, formats: Sequence[str] | None, merged: bool, render: bool) -> bool:
    """Return whether an export is a LoRA and not a whole model.

    Raises:
        ConfigError: an option does not fit the session's method.
    """
    command = f"fastdb export {argument(session.name)}"
    if session.config.method != "lora":
        if merged:
            raise ConfigError(
                "only a LoRA is merged, and this session trains all weights", where=session.name, fix=f"Run: {command}"
            )
        return False
    if merged:
        return False
    if unfit := "--format ckpt" if "ckpt" in (formats or ()) else "--render" if render else "":
        raise ConfigError(
            f"{unfit} needs a whole model, and this session trains a LoRA",
            where=session.name,
            fix=f"Export the merged model: {command} --merged {unfit}",
        )
    return True


def _export_adapters(
    session: Session,
    base: BaseModel,
    parts: Mapping[str, Path],
    done: Mapping[str, int],
    stem: str,
    precision: Literal["fp16", "bf16", "fp32"],
    report: Report,
) -> list[Path]:
    """Write a session's adapters in both forms."""
    from fastdb.checkpoints.export_lora import adapters_of, lora_metadata
    from fastdb.models.lora.forms import underflow, write_lora

    adapters, files = adapters_of(parts), []
    if precision == "fp16" and (error := underflow(adapters)) > _FP16_ERROR:
        report.note(Note("lora rounded", session.name, f"{100 * error:.2g} %"))
    forms: tuple[tuple[Literal["kohya", "diffusers"], str], ...] = (("kohya", ""), ("diffusers", "_diffusers"))
    for form, ending in forms:
        target = session.path / f"{stem}_lora{ending}.safetensors"
        metadata = lora_metadata(session, base, adapters, done, target.stem, form)
        with report.progress(target.name, "tensor") as update:
            written = write_lora(adapters, target, form, dtype=precision, metadata=metadata, progress=update)
        details = f"{counted(written.tensors, 'tensor')}, {precision}, {format_bytes(written.bytes)}"
        report.note(Note("export verified", str(target), details))
        _record_export(session, written, done)
        files.append(target)
    return files


@claims_kept()
def generate(
    source: SessionLike,
    prompt: str = "",
    *,
    negative_prompt: str = "",
    seed: int = 0,
    count: int = 1,
    steps: int = 20,
    guidance: float | None = None,
    sampler: str = DEFAULT,
    width: int | None = None,
    height: int | None = None,
    step: int | None = None,
    base: str | Path | None = None,
    loras: Sequence[str] = (),
    output: str | Path | None = None,
    root: str | Path | None = None,
    report: Report = SILENT,
) -> list[Path]:
    """Generate images from a session (its trained weights so far) or from an exported file.

    Args:
        prompt: for a session, the prompt of its first photo by default. Tags such as `<lora:NAME:0.8>` use a LoRA of
            `loras`, of the session's folder or of the folder LoRA beside the sessions'.
        step: a checkpoint of the session's UNet stage; the newest by default.
        base: the base model of a file outside a session.
        loras: files of further LoRAs, each with an optional weight, such as `cup_lora.safetensors:0.8`.
        guidance: that of the session's samples by default.
        seed: that of the first image; each next image adds 1.
        width, height: in pixels and multiples of 8; as trained by default.
        output: the folder of the images.

    Raises:
        FastDBError: a value is out of bounds, or the model cannot be loaded.
    """
    settings: dict[str, Any] = {"negative_prompt": negative_prompt, "seed": seed, "count": count, "steps": steps}
    settings |= {"guidance": guidance, "sampler": sampler, "width": width, "height": height}
    tagged = split_tags(prompt)
    model, prompt = _source(source, tagged.text, base, root)
    chosen = choose_loras(tagged, negative_prompt, loras, model, root, report)
    # Checked before torch is loaded, which takes seconds.
    Request(prompt, **{name: value for name, value in settings.items() if value is not None})
    prepare_libraries()
    from fastdb.inference.open_model import open_source
    from fastdb.runtime.device import release_memory

    with report.progress("base model", "B") as update:
        opened = open_source(model, base, root, update, step)
    request = opened.request(prompt, **settings)
    folder = expanded(output).absolute() if output else opened.pictures
    make_folder(folder)
    report.note(Note("loading", opened.name))
    engine = opened.load()
    engine.remedy = (isinstance(model, Session) and _remedy_for_ruined(model, step)) or engine.remedy
    engine.merge(chosen.read())
    with report.progress("generate", "step") as update:
        images = engine.generate(request, progress=update)
    del engine
    release_memory()
    return _save(images, replace(request, prompt=chosen.tagged(prompt)), folder, report)


def _save(images: Sequence[Image], request: Request, folder: Path, report: Report) -> list[Path]:
    """Save pictures, record their hashes if they are in a session, and return their paths."""
    paths = save_pictures(images, request, folder)
    for path in paths:
        report.note(Note("image saved", str(path)))
    if (folder.parent / FILE).is_file():
        record_files(folder.parent, paths)
    return paths


def _check_base(model: Session | str, base: str | Path | None) -> None:
    """Raise if the base model of a session, or of the session of a file, was replaced."""
    if isinstance(model, Session):
        check_present_base(model)
    elif not base and (Path(model).parent / FILE).is_file():
        check_present_base(Session.open(Path(model).parent))


def _remedy_for_ruined(session: Session, step: int | None) -> str:
    """Return the remedy for weights that draw no picture, or "" for those of the base model."""
    begun = [(stage, done) for stage, done in progress_of(session).items() if done]
    if not begun:
        return ""
    stage, done = begun[-1]
    return remedy(session, stage, {(done if step is None else step) + 1: math.inf})


def _source(
    source: SessionLike, prompt: str, base: str | Path | None, root: str | Path | None
) -> tuple[Session | str, str]:
    """Return the session or file to generate from, and the prompt.

    Raises:
        ConfigError: a prompt is missing, or is in the place of the source, or a session has a base model already.
        FastDBError: there is no such session or file.
    """
    model: Session | str
    if not isinstance(source, Session) and str(source).endswith((".safetensors", ".ckpt")):
        model = str(existing_file(source, root))
        if is_lora(Path(model)):
            raise ConfigError(
                "is a LoRA, not a model",
                subject=Path(model).name,
                fix=f"Name a session or a model: fastdb generate SESSION PROMPT --lora {argument(model)}",
            )
    else:
        try:
            model = Session.open(source, root)
        except SessionNotFound:
            if not isinstance(source, str) or len(source.split()) < 2 or expanded(source).exists():
                raise
            raise ConfigError(
                "is a prompt, not a session or file",
                subject=repr(source),
                fix="Put the session first: fastdb generate SESSION PROMPT",
            ) from None
        if base:
            raise ConfigError("a session has its own base model", where=model.name, fix="Leave out the base model.")
        prompt = prompt or next(iter(prompts_of(model)), "")
    if not prompt:
        raise ConfigError("a prompt is missing", where=source, fix='Add one, such as "a photo of sks dog".')
    _check_base(model, base)
    return model, prompt


@claims_kept()
def evaluate(
    session: SessionLike,
    *,
    checkpoints: Sequence[int] | None = None,
    seeds: int = 4,
    first_seed: int = 0,
    until_decided: bool = False,
    at_most: int = 256,
    prompts: Sequence[str] = (),
    measure: Literal["auto", "drawn", "clip"] = "auto",
    clip: str | None = None,
    dino: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    file: str | Path | None = None,
    root: str | Path | None = None,
    report: Report = SILENT,
) -> Evaluation:
    """Compare checkpoints on the same prompts and seeds, and choose the best.

    Images and results are written to the session's `evaluation/`.

    Args:
        checkpoints: steps of the UNet stage; all by default.
        seeds: images per prompt, each with a seed of its own; another `first_seed` gives other images.
        until_decided: of checkpoints between which it cannot decide, generate up to `at_most` images of the subject.
        measure: "drawn" (for mini), "clip" (CLIP and DINO) or "auto".
        clip, dino: a folder or a name on the Hub.
        steps, guidance, sampler: settings of the images; the session's sample settings by default.
        file: an exported file that replaces the checkpoints.

    Raises:
        FastDBError: nothing to evaluate, a value is out of bounds, or a measuring model is not available.
    """
    options = Options(
        checkpoints=checkpoints,
        seeds=seeds,
        first_seed=first_seed,
        until_decided=until_decided,
        at_most=at_most,
        prompts=prompts,
        measure=measure,
        file=existing_file(file, root) if file is not None else None,
        clip=clip,
        dino=dino,
        steps=steps,
        guidance=guidance,
        sampler=sampler,
    )
    session = Session.open(session, root)
    _check_evaluable(session, named=file is not None or checkpoints is not None)
    report.note(Note("evaluation prepared", session.name))
    prepare_libraries()
    from fastdb.evaluation.evaluate import evaluate_session

    evaluation = evaluate_session(session, options, report)
    folder = session.path / "evaluation"
    record_files(session.path, [path for path in folder.iterdir() if path.is_file() and path.name[0] != "."])
    return evaluation


def _check_evaluable(session: Session, named: bool) -> None:
    """Raise if a session has nothing to evaluate, unless that was named, or if its base model was replaced."""
    if not named and not progress_of(session)["unet"]:
        raise no_valid_checkpoint(session, "of the UNet stage", ())
    check_present_base(session)
