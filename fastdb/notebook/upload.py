"""Uploads of photos by the browser: Colab's dialog, or a button of ipywidgets 7 and 8."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastdb import console
from fastdb.commands import sessions
from fastdb.errors import FastDBError
from fastdb.notebook.report import NotebookReport
from fastdb.runtime.drive import colab
from fastdb.sessions.session import Session
from fastdb.storage.safe_names import fit_stem


@contextmanager
def uploaded(session: Session) -> Iterator[list[Path]]:
    """Yield the photos that a person uploads in Colab, in a temporary folder; none on cancel.

    Elsewhere a button is shown that adds photos to the session when they are chosen, and nothing is yielded.
    """
    files = colab("files")
    with TemporaryDirectory() as place:
        if files is None:
            _show_button(session)
            yield []
            return
        # Colab saves into the current folder and renames duplicates; in an empty folder every name is kept.
        with chdir(place):
            paths = [Path(place) / name for name in files.upload()]
        yield paths


def _show_button(session: Session) -> None:
    try:
        from IPython.display import Image, display
        from ipywidgets import FileUpload, Output, VBox
    except ImportError:
        return
    button = FileUpload(accept="image/*,.zip", multiple=True, description="Upload photos")
    output = Output()

    def chosen(change: Mapping[str, Any]) -> None:
        with output, TemporaryDirectory() as place:
            try:
                sheet = sessions.add_images(session, _saved(change["new"], Path(place)), report=NotebookReport())
                console.say("Photos added. Run the cells below")
                display(Image(filename=str(sheet)))
            except FastDBError as error:
                console.say(f"error: {error}")

    button.observe(chosen, names="value")
    display(VBox([button, output]))


def _saved(value: Any, folder: Path) -> list[Path]:
    """Write the files of a `FileUpload`'s value: a mapping by name in ipywidgets 7, a tuple of mappings in 8."""
    files = value.items() if isinstance(value, Mapping) else ((entry["name"], entry) for entry in value)
    paths = []
    for name, entry in files:
        plain = Path(str(name).replace("\\", "/")).name
        path = folder / f"{fit_stem(Path(plain).stem) or 'photo'}{Path(plain).suffix}"
        path.write_bytes(bytes(entry["content"]))
        paths.append(path)
    return paths
