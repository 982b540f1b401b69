"""LoRA files of other programs, conversions between forms, merges and extraction."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from fastdb import cli
from fastdb.commands import lora as verbs
from fastdb.errors import ConfigError, ModelError
from fastdb.formats.reader import open_tensors
from fastdb.models.diffusers_folder import weight_file
from fastdb.models.lora.adapter import Pair
from fastdb.models.lora.extraction import _factored
from fastdb.models.lora.forms import kohya_layer, write_lora
from fastdb.models.lora.reading import read_lora
from fastdb.models.lora.targets import factor_shapes
from fastdb.sessions.session import Session
from tests.training.conftest import make_session, small_photos, straight, trained_once  # noqa: F401 - fixtures

QUERY = ("unet", "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k")
OUT = ("unet", "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0")
CONV = ("unet", "down_blocks.0.downsamplers.0.conv")
ENCODER = ("text_encoder", "text_model.encoder.layers.0.self_attn.q_proj")
LAYERS = (QUERY, OUT, CONV, ENCODER)
Tensors = dict[str, Any]


@pytest.fixture(scope="module")
def pairs(mini: Path) -> dict[tuple[str, str], Pair]:
    """Random pairs for mini, of rank 4 and alpha 2; the convolution's rank is 2."""
    numbers, made = torch.Generator().manual_seed(1), {}
    for part, layer in LAYERS:
        tensors = open_tensors(weight_file(mini, part)).tensors
        shape = tensors.get(f"{layer}.weight", tensors.get(f"{layer.removeprefix('text_model.')}.weight")).shape  # type: ignore[union-attr]
        rank = 2 if layer.endswith("conv") else 4
        down, up = (torch.randn(size, generator=numbers) * 0.1 for size in factor_shapes(shape, rank))
        made[part, layer] = Pair(down, up, 2.0)
    return made


def kohya(pairs: dict[tuple[str, str], Pair], encoder: str = "lora_te_") -> Tensors:
    tensors = {}
    for (part, layer), pair in pairs.items():
        name = kohya_layer(part, layer).replace("lora_te_", encoder)
        tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"] = pair.down, pair.up
        tensors[f"{name}.alpha"] = torch.tensor(pair.alpha)
    return tensors


def dotted(pairs: dict[tuple[str, str], Pair], down: str, up: str, prefix: str = "") -> Tensors:
    """Names with dots, without alphas, which are multiplied into the up factor."""
    tensors = {}
    for (part, layer), pair in pairs.items():
        stem = f"{prefix}{part}.{layer}"
        tensors[stem + down], tensors[stem + up] = pair.down, pair.up * pair.alpha / pair.rank
    return tensors


def processors(pairs: dict[tuple[str, str], Pair]) -> Tensors:
    """The first form of diffusers, for attention only."""
    chosen = {key: pairs[key] for key in (QUERY, OUT)}
    renamed = {
        f"unet.{layer}".replace(".to_k", ".processor.to_k").replace(".to_out.0", ".processor.to_out"): pair
        for (_, layer), pair in chosen.items()
    }
    return {
        f"{name}_lora.{kind}.weight": tensor
        for name, pair in renamed.items()
        for kind, tensor in (("down", pair.down), ("up", pair.up * pair.alpha / pair.rank))
    }


def with_header(pairs: dict[tuple[str, str], Pair]) -> tuple[Tensors, dict[str, str]]:
    """Factors as trained, and their alphas in the header, one by a pattern."""
    tensors = {
        f"{part}.{layer}.lora_{factor}.weight": tensor
        for (part, layer), pair in pairs.items()
        for factor, tensor in (("A", pair.down), ("B", pair.up))
    }
    settings = {"unet.r": 4, "unet.lora_alpha": 8, "unet.alpha_pattern": {layer: 2 for _, layer in LAYERS[:3]}}
    return tensors, {"lora_adapter_metadata": json.dumps({**settings, "text_encoder.lora_alpha": 2})}


FORMS: dict[str, Callable[[Any], Any]] = {
    "kohya": kohya,
    "kohya, numbered encoder": lambda pairs: kohya(pairs, "lora_te1_"),
    "kohya, flat encoder": lambda pairs: {
        name.replace("te_text_model_", "te_"): tensor for name, tensor in kohya(pairs).items()
    },
    "kohya, alpha of one element": lambda pairs: {
        name: tensor.reshape(1) if name.endswith("alpha") else tensor for name, tensor in kohya(pairs).items()
    },
    "peft": lambda pairs: dotted(pairs, ".lora_A.weight", ".lora_B.weight"),
    "peft, named": lambda pairs: dotted(pairs, ".lora_A.default.weight", ".lora_B.default.weight"),
    "older diffusers": lambda pairs: dotted(pairs, ".lora.down.weight", ".lora.up.weight"),
    "older text encoder": lambda pairs: dotted(pairs, ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    "processors": processors,
    "header": with_header,
    "with embeddings": lambda pairs: {**kohya(pairs), "bundle_emb.sks.clip_l": torch.zeros(2, 8)},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_same_effect(form: str, pairs: dict[tuple[str, str], Pair], tmp_path: Path) -> None:
    made = FORMS[form](pairs)
    tensors, metadata = made if isinstance(made, tuple) else (made, None)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "a.safetensors", metadata)
    read = read_lora(tmp_path / "a.safetensors")
    found = {(part, layer) for part, adapter in read.adapters.items() for layer in adapter}
    assert found == ({QUERY, OUT} if form == "processors" else set(LAYERS))
    for part, layer in found:
        assert torch.allclose(read.adapters[part][layer].delta(), pairs[part, layer].delta(), atol=1e-6)


def test_a_missing_alpha_is_the_rank(pairs: dict[tuple[str, str], Pair], tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in kohya(pairs).items() if not name.endswith("alpha")}
    save_file(tensors, tmp_path / "a.safetensors")
    read = read_lora(tmp_path / "a.safetensors")
    assert read.scale_from == "its ranks"
    assert {pair.alpha / pair.rank for adapter in read.adapters.values() for pair in adapter.values()} == {1}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lora_unet_x.dora_scale", "a DoRA"),
        ("lora_unet_x.hada_w1_b", "a LoHa"),
        ("lora_unet_x.lokr_w1", "a LoKr"),
        ("lora_unet_x.oft_blocks", "an OFT"),
        ("lora_unet_x.lora_mid.weight", "a LoCon with a third factor"),
    ],
)
def test_other_adapters_are_refused_by_name(
    name: str, kind: str, pairs: dict[tuple[str, str], Pair], tmp_path: Path
) -> None:
    save_file({**kohya(pairs), name: torch.zeros(2, 2)}, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match=f"a.safetensors is {kind}, which is not supported"):
        read_lora(tmp_path / "a.safetensors")


def test_a_lora_of_another_family_is_refused_with_both_names(tmp_path: Path) -> None:
    name = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    tensors = {f"{name}.lora_down.weight": torch.zeros(4, 2048), f"{name}.lora_up.weight": torch.zeros(640, 4)}
    save_file(tensors, tmp_path / "xl.safetensors")
    with pytest.raises(ModelError, match=r"for SDXL base, and only those for Stable Diffusion 1\.x are supported"):
        read_lora(tmp_path / "xl.safetensors")


def test_a_conversion_there_and_back_keeps_every_scale(pairs: dict[tuple[str, str], Pair], tmp_path: Path) -> None:
    """Ranks differ by layer, which diffusers' form says in its header."""
    first, second, third = (tmp_path / f"{name}.safetensors" for name in "abc")
    save_file(kohya(pairs), first)
    verbs.convert_lora(first, second, "diffusers")
    assert not any(name.endswith("alpha") for name in load_file(second))
    result = CliRunner().invoke(cli.app, ["convert", str(second), str(third), "--to", "lora-kohya"])
    assert result.exit_code == 0, result.output
    before, after = read_lora(first), read_lora(third)
    for part, layer in LAYERS:
        assert torch.allclose(before.adapters[part][layer].delta(), after.adapters[part][layer].delta(), atol=1e-6)
    assert after.names == {"c"}


def test_several_are_merged_with_their_weights(pairs: dict[tuple[str, str], Pair], mini: Path, tmp_path: Path) -> None:
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for file, factor in zip(files, (1, 3), strict=True):
        adapters = {
            part: {
                layer: Pair(pair.down, pair.up * factor, pair.alpha)
                for (own, layer), pair in pairs.items()
                if own == part
            }
            for part in ("unet", "text_encoder")
        }
        write_lora(adapters, file, "kohya", dtype="fp32", metadata={})
    target = tmp_path / "merged.safetensors"
    verbs.merge("mini", target, [f"{files[0]}:0.5", f"{files[1]}:-1"], precision="fp32")
    verbs.merge(target, tmp_path / "again.safetensors", [str(files[0])], precision="fp32")
    merged, again = (load_file(tmp_path / f"{name}.safetensors") for name in ("merged", "again"))
    name = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    base = load_file(weight_file(mini, "unet"))[f"{QUERY[1]}.weight"].float()
    delta = pairs[QUERY].delta()
    assert torch.allclose(merged[name], base + (0.5 - 3) * delta, atol=1e-6)
    assert torch.allclose(again[name], merged[name] + delta, atol=1e-6)


def test_a_lora_of_another_prediction_or_size_is_refused(pairs: dict[tuple[str, str], Pair], tmp_path: Path) -> None:
    save_file(kohya(pairs), tmp_path / "v.safetensors", {"modelspec.prediction_type": "v"})
    with pytest.raises(
        ModelError, match=r"v\.safetensors was trained for a base model that predicts v_prediction, and this"
    ):
        verbs.merge("mini", tmp_path / "out.safetensors", [str(tmp_path / "v.safetensors")])
    wide = {
        name: torch.nn.functional.pad(tensor, (0, 8)) if "lora_down" in name and "to_k" in name else tensor
        for name, tensor in kohya(pairs).items()
    }
    save_file(wide, tmp_path / "wide.safetensors")
    with pytest.raises(ModelError, match="and the base model has"):
        verbs.merge("mini", tmp_path / "out.safetensors", [str(tmp_path / "wide.safetensors")])
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["merge", "mini", "m.safetensors"], "no LoRA was named"),
        (["merge", "mini", "m.safetensors", "--lora", "a.safetensors:x"], "the weight 'x' is no number"),
        (["convert", "a.safetensors", "b.ckpt", "--to", "lora-kohya"], "is no name for a LoRA file"),
        (["convert", "a.safetensors", "b.safetensors", "--to", "lora-kohya", "--ema"], "--ema is for whole models"),
        (["convert", "a.safetensors", "b.safetensors"], "--to lora-kohya or --to lora-diffusers"),
        (["convert", "a.safetensors", "a.safetensors", "--to", "lora-kohya"], "is both source and target"),
    ],
)
def test_mistakes_end_with_one_message(
    words: list[str], message: str, pairs: dict[tuple[str, str], Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(kohya(pairs), tmp_path / "a.safetensors")
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize("error", [0.5, 0.1, 1e-3])
def test_the_smallest_rank_within_an_error_is_chosen(error: float) -> None:
    numbers = torch.Generator().manual_seed(2)
    difference = torch.randn(24, 3, 3, 3, generator=numbers) * 1e-6
    found = _factored("unet", "layer", difference, None, error)
    assert found.error <= error
    rest = float((found.pair.delta() - difference).norm() / difference.norm())
    assert rest == pytest.approx(found.error, abs=1e-5)
    if found.pair.rank > 1:
        assert _factored("unet", "layer", difference, found.pair.rank - 1, None).error > error


def test_extraction_states_the_loss_of_each_layer(straight: Session, mini: Path, tmp_path: Path) -> None:  # noqa: F811
    """With every rank that a layer can have, the LoRA is the whole difference of the adapted layers."""
    target = tmp_path / "cup.safetensors"
    done = verbs.extract(straight, target, error=1e-4, precision="fp32")
    assert {each.part for each in done.layers} == {"unet", "text_encoder"}
    assert max(each.error for each in done.layers) <= 1e-4
    assert all(0 < share < 1 for share in done.outside.values())
    read = read_lora(target)
    assert sum(map(len, read.adapters.values())) == len(done.layers)
    small = verbs.extract(straight, tmp_path / "small.safetensors", rank=2)
    assert {each.pair.rank for each in small.layers} == {2}
    assert (tmp_path / "small.safetensors").stat().st_size < target.stat().st_size / 4


@pytest.mark.parametrize("options", [{}, {"rank": 4, "error": 0.1}, {"rank": 0}, {"error": 1.0}])
def test_extraction_needs_a_rank_or_an_error(straight: Session, tmp_path: Path, options: Any) -> None:  # noqa: F811
    with pytest.raises(ConfigError, match=r"fastdb extract cup OUT\.safetensors --"):
        verbs.extract(straight, tmp_path / "a.safetensors", **options)
