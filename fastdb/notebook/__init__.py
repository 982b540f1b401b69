"""Functions for the cells of the notebooks, beside the verbs: pictures to look at, uploads, downloads, a live panel."""

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
from fastdb.notebook.panel import Panel, latest

__all__ = [
    "Ending",
    "Panel",
    "add_images",
    "begin",
    "compare",
    "finish",
    "latest",
    "open_drive",
    "pictures",
    "samples",
]
