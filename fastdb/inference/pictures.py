"""PNG files of pictures with their parameters inside."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image as pillow
from PIL.Image import Image
from PIL.PngImagePlugin import PngInfo

from fastdb.storage.atomic_write import make_folder, write_bytes

if TYPE_CHECKING:
    from fastdb.inference.request import Request


def save_pictures(pictures: Sequence[Image], request: Request, folder: Path) -> list[Path]:
    """Write the pictures of a request as `<number>-seed<seed>.png`, with numbers that are not in use.

    Raises:
        StorageError: the folder cannot be written.
    """
    make_folder(folder)
    numbers = (path.name.split("-")[0] for path in folder.glob("*-seed*.png"))
    taken = [int(number) for number in numbers if number.isdecimal()]
    paths = []
    for index, picture in enumerate(pictures):
        path = folder / f"{max(taken, default=0) + 1 + index:04d}-seed{request.seed + index}.png"
        write_bytes(path, png(picture, parameters(request, request.seed + index)))
        paths.append(path)
    return paths


def parameters(request: Request, seed: int) -> str:
    """Return the parameters of a picture in the text form of AUTOMATIC1111."""
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    lines.append(
        f"Steps: {request.steps}, Sampler: {request.sampler}, CFG scale: {request.guidance:g}, "
        f"Seed: {seed}, Size: {request.width}x{request.height}"
    )
    return "\n".join(lines)


def png(picture: Image, parameters: str) -> bytes:
    """Return a picture as PNG bytes with `parameters` in its text chunk of that name."""
    info, data = PngInfo(), io.BytesIO()
    info.add_text("parameters", parameters)
    picture.save(data, "PNG", pnginfo=info)
    return data.getvalue()


def recorded_parameters(path: Path) -> str | None:
    """Return the parameters in a PNG file; None without them, or if it cannot be read."""
    try:
        with pillow.open(path) as picture:
            return picture.info.get("parameters")
    except (OSError, SyntaxError):
        return None
