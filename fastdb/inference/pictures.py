"""Pictures on disk: PNG files that say how they were made, and never take another's place."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL.Image import Image
from PIL.PngImagePlugin import PngInfo

from fastdb.inference.engine import Request
from fastdb.storage.atomic_write import make_folder, write_bytes


def save_pictures(pictures: Sequence[Image], request: Request, folder: Path) -> list[Path]:
    """Write the pictures of a request as `<number>-seed<seed>.png` with their parameters inside.

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
    """How a picture was made, in the text form that AUTOMATIC1111's users exchange."""
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    lines.append(
        f"Steps: {request.steps}, Sampler: {request.sampler}, CFG scale: {request.guidance:g}, "
        f"Seed: {seed}, Size: {request.width}x{request.height}"
    )
    return "\n".join(lines)


def png(picture: Image, told: str) -> bytes:
    """A picture as PNG bytes, with `told` in its text chunk `parameters`."""
    info, data = PngInfo(), io.BytesIO()
    info.add_text("parameters", told)
    picture.save(data, "PNG", pnginfo=info)
    return data.getvalue()
