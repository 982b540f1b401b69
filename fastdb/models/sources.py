"""Where a base model comes from, as a person names it."""

from __future__ import annotations

from pathlib import Path

from fastdb.errors import ModelError
from fastdb.runtime.places import cache_folder

STANDIN = "standin"
"""The small random model this package makes for demonstrations and tests."""


def base_folder(base: str | Path) -> Path:
    """The folder of a base model: a path, or the stand-in, which is made when it is first asked for.

    Raises:
        ModelError: there is no such folder.
        StorageError: the stand-in cannot be written.
    """
    if str(base) == STANDIN:
        folder = cache_folder() / "base_models" / STANDIN
        if not (folder / "model_index.json").is_file():
            from fastdb.models.standin import build_standin

            build_standin(folder)
        return folder
    folder = Path(base).expanduser().absolute()
    if not folder.is_dir():
        raise ModelError(
            "there is no such folder",
            where=folder,
            fix=f"Give a Stable Diffusion 1.x in the diffusers layout, or {STANDIN!r} to try things out.",
        )
    return folder
