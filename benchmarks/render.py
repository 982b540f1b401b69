"""Measure the difference of pictures by rounded weights, on mini with slightly changed weights.

python benchmarks/render.py FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from fastdb import console
from fastdb.inference import compare
from fastdb.models.convert import convert
from fastdb.models.export import Precision
from fastdb.models.resolve import resolve_base

PROMPTS = (compare.PROMPT, "a photo of a blue mug", "a green house on a yellow background", "fish")
KINDS: tuple[Precision, ...] = ("fp32", "fp16", "bf16")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder, mini, rows = parser.parse_args().folder, resolve_base("mini").folder, []
    source = convert(mini, folder / "source.safetensors", dtype="fp32").path
    torch.manual_seed(0)
    moved = {
        name: tensor * (1 + 2e-3 * torch.randn_like(tensor)) if tensor.is_floating_point() else tensor
        for name, tensor in load_file(source).items()
    }
    save_file(moved, source)
    for kind in KINDS:
        result = convert(source, folder / f"{kind}.ckpt", dtype=kind).path
        found = [compare.check_render(source, result, mini, prompt=prompt) for prompt in PROMPTS]
        rows.append(
            (kind, str(max(compared.most for compared in found)), f"{max(compared.mean for compared in found):.2f}")
        )
    console.table(("precision", "largest difference of 255", "largest mean"), rows)


if __name__ == "__main__":
    main()
