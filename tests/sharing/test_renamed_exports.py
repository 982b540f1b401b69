"""Exports of a session that is received under another name."""

from __future__ import annotations

from pathlib import Path

from fastdb.sharing.incoming import _rename_exports


def test_exports_of_every_kind_get_the_new_name(tmp_path: Path) -> None:
    endings = [".safetensors", ".ckpt", "_step_5.safetensors", "_lora.safetensors", "_lora_diffusers.safetensors"]
    for name in [*(f"cup{ending}" for ending in endings), "cupboard.safetensors", "cup_lora.png"]:
        (tmp_path / name).touch()
    assert _rename_exports(tmp_path, "cup", "mug") == {f"cup{ending}": f"mug{ending}" for ending in endings}
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*(f"mug{ending}" for ending in endings), "cupboard.safetensors", "cup_lora.png"}
