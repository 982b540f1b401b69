"""Cells that show pictures: samples, comparisons, generated images; and the export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image

from fastdb import console
from fastdb.checkpoints.progress import STAGES, progress_of
from fastdb.commands import results
from fastdb.errors import ModelError
from fastdb.images.contact_sheet import Cell, Row, contact_sheet, stacked
from fastdb.images.photos import read_photo
from fastdb.notebook.form_fields import named, number, whole_number
from fastdb.notebook.panel import latest
from fastdb.notebook.report import NotebookReport
from fastdb.sessions.session import SAMPLE, Session
from fastdb.sessions.token_trial import UNTRAINED

_COLUMNS, _WIDTH = 6, 960
"""Images side by side in a notebook, and their total width in pixels."""


def samples(session: Session) -> Image | None:
    """Return a contact sheet of the samples so far, by stage and step."""
    cells: dict[str, list[Cell]] = {stage: [] for stage in (*UNTRAINED, *STAGES)}
    for path in sorted(session.samples.glob("*.png"), key=_sample_key):
        name = SAMPLE.fullmatch(path.stem)
        if name and name["stage"] in cells:
            image = read_photo(path)
            cells[name["stage"]].append(Cell(image, f"step {int(name['step'])}"))
    if not any(cells.values()):
        console.say(f"{session.name} has no samples. Fill in sample_every before training to have some")
        return None
    titles = dict(zip(UNTRAINED, ("untrained, instance prompt", "untrained, class prompt"), strict=True))
    return _sheet({titles.get(stage, stage.replace("_", " ")): row for stage, row in cells.items() if row})


def compare(session: Session | str, seeds: int) -> Image | None:
    """Evaluate the checkpoints with `seeds` images per prompt; return the grid with the curves below it.

    If a measuring model is not available, the reason is shown, and the cells after this one run.

    Raises:
        FastDBError: nothing to evaluate.
    """
    if not named(session, "compare its checkpoints"):
        return None
    session = Session.open(session)
    try:
        console.show_evaluation(results.evaluate(session, seeds=seeds, report=NotebookReport()))
    except ModelError as error:
        console.say(f"Not compared: {error}")
        return None
    sheets = [session.path / "evaluation" / name for name in ("grid.png", "curves.png")]
    return stacked([picture for picture in map(picture, sheets) if picture is not None])


def export(session: Session | str, formats: str, precision: Any = "fp16", use_step: str = "") -> None:
    """Export a session, and show each file with its size and step.

    Args:
        formats: one, or `safetensors and ckpt` for those that fit the session's method.
        use_step: a checkpoint of the UNet stage; empty is the newest.

    Raises:
        FastDBError: it cannot be exported.
    """
    if not named(session, "export it"):
        return
    opened, step = Session.open(session), whole_number("use_step", use_step)
    kinds = formats.split(" and ")
    files = results.export(
        opened,
        formats=kinds if len(kinds) == 1 else None,
        precision=precision,
        step=step,
        report=NotebookReport(),
    )
    # The output of this cell is lost if it was queued while the page was reloaded; the panel keeps it.
    if (panel := latest(opened)) is not None:
        for path in files:
            panel.show_file(path, path.stat().st_size, step or progress_of(opened)["unet"])


def generate(
    source: Session | str, prompt: str = "", use_step: str = "", lora: str = "", **request: Any
) -> Image | None:
    """Generate images from a session or a model file, and return a contact sheet.

    Args:
        prompt: for a session, the prompt of its photos by default.
        use_step: a checkpoint of the session; empty is the newest.
        lora: files of LoRAs, each with an optional weight, separated by commas.
        request: fields of `fastdb.inference.request.Request`; empty texts ask for nothing.

    Raises:
        FastDBError: a value is invalid, or the model cannot be loaded.
    """
    if not named(source, "generate pictures from it; a path of a model file works too"):
        return None
    numbers: dict[str, Any] = {
        name: whole_number(name, request.pop(name)) for name in ("seed", "steps") if name in request
    }
    guidance = str(request.pop("guidance", "")).strip()
    if guidance:
        request["guidance"] = number("guidance", guidance)
    wanted = {name: value for name, value in {**request, **numbers}.items() if value not in ("", None)}
    paths = results.generate(
        source,
        prompt.strip(),
        step=whole_number("use_step", use_step),
        loras=[file.strip() for file in lora.split(",") if file.strip()],
        report=NotebookReport(),
        **wanted,
    )
    return pictures(paths)


def pictures(paths: Sequence[Path]) -> Image:
    """Return a contact sheet of images with their file names.

    Raises:
        ImageError: an image cannot be read.
    """
    return _sheet({"": [Cell(read_photo(path), path.name) for path in paths]})


def picture(path: Path) -> Image | None:
    """Return the image of a file, or None if it does not exist."""
    return read_photo(path) if path.exists() else None


def _sheet(groups: dict[str, list[Cell]]) -> Image:
    """Return a contact sheet with labelled rows, thumbnails as large as a notebook's column allows."""
    rows = [
        Row(label if first == 0 else "", cells[first : first + _COLUMNS])
        for label, cells in groups.items()
        for first in range(0, len(cells), _COLUMNS)
    ]
    columns = max(len(row.cells) for row in rows) + any(groups)  # plus the labels
    return contact_sheet(rows, thumb=min(512, _WIDTH // columns))


def _sample_key(path: Path) -> tuple[int, str]:
    """Samples by step, whatever the number of its digits."""
    name = SAMPLE.fullmatch(path.stem)
    return (int(name["step"]) if name else 0, path.name)
