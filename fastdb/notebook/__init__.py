"""Functions for the cells of the notebooks, beside the verbs: pictures to look at, uploads and downloads."""

from fastdb.notebook.cells import (
    Ending,
    add_images,
    begin,
    compare,
    finish,
    open_drive,
    pictures,
    samples,
)

__all__ = [
    "Ending",
    "add_images",
    "begin",
    "compare",
    "finish",
    "open_drive",
    "pictures",
    "samples",
]
