"""Functions for the cells of the notebooks, beside the verbs: pictures to look at, uploads, downloads, a live panel."""

from fastdb.notebook.cells import FIELDS, TRIAL, Ending, add_images, begin, finish, open_drive, open_session
from fastdb.notebook.panel import Panel, latest
from fastdb.notebook.picture_cells import compare, export, generate, pictures, samples
from fastdb.notebook.session_cells import delete, free, import_session, rename, share
from fastdb.notebook.train_cell import train

__all__ = [
    "FIELDS",
    "TRIAL",
    "Ending",
    "Panel",
    "add_images",
    "begin",
    "compare",
    "delete",
    "export",
    "finish",
    "free",
    "generate",
    "import_session",
    "latest",
    "open_drive",
    "open_session",
    "pictures",
    "rename",
    "samples",
    "share",
    "train",
]
