"""Layouts of every family, compared with real models and an independent list of names and shapes."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastdb.errors import ModelError
from fastdb.models.layouts.layout import Line, ema_key, modern_name
from fastdb.models.layouts.tables import layout_of

sys.path.insert(0, str(Path(__file__).parent))
import original_names
import real_models

COUNTS = {"sd1": 1130, "sd1-inpainting": 1130, "sd2": 1214, "sdxl": 2513}
"""Keys that a file must have, as counted in published files."""
FAMILIES = list(COUNTS)
CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"
CLIP = "cond_stage_model.transformer.text_model"
SPARE = {
    "sd1": {f"{CLIP}.embeddings.position_ids"},
    "sd1-inpainting": {f"{CLIP}.embeddings.position_ids"},
    "sd2": {
        "cond_stage_model.model.text_projection",
        "cond_stage_model.model.logit_scale",
        *(f"cond_stage_model.model.transformer.resblocks.23.attn.in_proj_{kind}" for kind in ("weight", "bias")),
        *(
            f"cond_stage_model.model.transformer.resblocks.23.{layer}.{kind}"
            for layer in ("attn.out_proj", "ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj")
            for kind in ("weight", "bias")
        ),
    },
    "sdxl": {
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids",
        "conditioner.embedders.1.model.logit_scale",
    },
}
"""Optional keys in published files, from the independent list."""

Shapes = dict[str, tuple[int, ...]]


def full(family: str) -> Shapes:
    """Return the required keys and shapes according to the independent list."""
    return {key: shape for key, shape in original_names.whole(family).items() if key not in SPARE[family]}


@pytest.fixture(scope="module")
def real() -> dict[str, dict[str, Shapes]]:
    """Shapes of the real models by family, part and name, from diffusers and transformers."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    found = {}
    for family in FAMILIES:
        with torch.device("meta"):
            parts = real_models.build(family)
        states = {part: model.state_dict() for part, model in parts.items()}
        found[family] = {part: {name: tuple(t.shape) for name, t in state.items()} for part, state in states.items()}
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_the_independent_list_has_the_published_counts(family: str) -> None:
    keys = full(family)
    assert len(keys) == COUNTS[family]
    assert len(original_names.whole(family)) == COUNTS[family] + len(SPARE[family])
    # Millions of parameters as published: UNet 860, 866 and 2,567; VAE 84; text encoders 123, 340, and 123 + 695.
    unet = sum(math.prod(shape) for key, shape in keys.items() if key.startswith("model."))
    assert unet == {"sd1": 859520964, "sd1-inpainting": 859535364, "sd2": 865910724, "sdxl": 2567463684}[family]
    assert sum(math.prod(shape) for key, shape in keys.items() if key.startswith("first_")) == 83653863
    text = sum(math.prod(shape) for key, shape in keys.items() if key.startswith("cond"))
    assert text == {"sd2": 340387840, "sdxl": 123060480 + 694659840}.get(family, 123060480)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_has_exactly_the_keys_of_the_original(family: str) -> None:
    layout = layout_of(family)
    assert len(layout.lines) == COUNTS[family]
    assert set(layout.lines) == set(full(family))
    assert all(key == line.original for key, line in layout.lines.items())
    names = [(line.part, name) for line in layout.lines.values() for name in line.names]
    assert len(names) == len(set(names)) == len(layout.by_name)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_real_model_converts_to_the_original_keys_and_shapes(
    real: dict[str, dict[str, Shapes]], family: str
) -> None:
    moves = layout_of(family).to_original(real[family])
    assert len(moves) == COUNTS[family]
    assert {move.line.original: move.shapes[0] for move in moves} == full(family)
    taken = [(move.line.part, name) for move in moves for name in move.stored]
    assert sorted(taken) == sorted((part, name) for part, names in real[family].items() for name in names)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_original_converts_back_to_the_real_model(real: dict[str, dict[str, Shapes]], family: str) -> None:
    back: dict[str, Shapes] = {part: {} for part in real[family]}
    for move in layout_of(family).to_diffusers(original_names.whole(family)):
        back[move.line.part] |= dict(zip(move.line.names, move.shapes, strict=True))
    expected = {
        part: {modern_name(part, name): shape for name, shape in names.items()} for part, names in real[family].items()
    }
    assert back == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_meta_tensors_convert_in_both_directions(real: dict[str, dict[str, Shapes]], family: str) -> None:
    """Joined and split tensors have the planned shapes."""
    torch = pytest.importorskip("torch")
    layout = layout_of(family)
    for move in layout.to_original(real[family]):
        given = [torch.empty(real[family][move.line.part][name], device="meta") for name in move.stored]
        whole = move.line.join(*given)
        assert tuple(whole.shape) == move.shapes[0] == full_shape(family, move.line.original)
        assert [piece.shape for piece in move.line.split(whole)] == [tensor.shape for tensor in given]


FULL: dict[str, Shapes] = {}


def full_shape(family: str, key: str) -> tuple[int, ...]:
    if family not in FULL:
        FULL[family] = full(family)
    return FULL[family][key]


def test_known_tensors_of_sdxl_and_sd2() -> None:
    """Names and shapes from the published files sd_xl_base_1.0 and v2-1_768-ema-pruned."""
    xl, two = layout_of("sdxl"), layout_of("sd2")
    unet, second = "model.diffusion_model", "conditioner.embedders.1.model"
    assert xl.lines[f"{unet}.label_emb.0.0.weight"].names == ("add_embedding.linear_1.weight",)
    assert xl.lines[f"{unet}.output_blocks.2.2.conv.weight"].names == ("up_blocks.0.upsamplers.0.conv.weight",)
    place = f"{unet}.middle_block.1.transformer_blocks.9.attn2.to_k.weight"
    assert xl.lines[place].names == ("mid_block.attentions.0.transformer_blocks.9.attn2.to_k.weight",)
    place = f"{unet}.input_blocks.4.1.transformer_blocks.1.norm3.bias"
    assert xl.lines[place].names == ("down_blocks.1.attentions.0.transformer_blocks.1.norm3.bias",)
    assert f"{unet}.input_blocks.4.1.transformer_blocks.2.norm3.bias" not in xl.lines
    assert xl.lines[f"{second}.text_projection"].change == "transposed"
    fused = xl.lines[f"{second}.transformer.resblocks.31.attn.in_proj_weight"]
    assert fused.names == tuple(f"text_model.encoder.layers.31.self_attn.{m}_proj.weight" for m in "qkv")
    assert (fused.part, fused.change, fused.shapes((3840, 1280))) == ("text_encoder_2", "fused", ((1280, 1280),) * 3)
    assert "cond_stage_model.model.transformer.resblocks.22.ln_2.bias" in two.lines
    assert not any("resblocks.23" in key or "text_projection" in key for key in two.lines)
    assert two.lines["cond_stage_model.model.positional_embedding"].part == "text_encoder"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_may_contain_optional_keys_but_no_unknown_keys(family: str) -> None:
    layout, file = layout_of(family), original_names.whole(family)
    schedule = ["betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "posterior_mean_coef2"]
    schedule += ["sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod"]
    schedule += ["sqrt_recipm1_alphas_cumprod", "posterior_variance", "posterior_log_variance_clipped"]
    optional = dict.fromkeys([*schedule, "model_ema.decay", "model_ema.num_updates", ema_key(CONV_IN)], (1000,))
    assert len(layout.to_diffusers(file | optional)) == COUNTS[family]
    assert SPARE[family] == {key for key in file if layout.optional.fullmatch(key)}
    assert [key for key in layout.lines if layout.optional.fullmatch(key)] == []
    strange = "control_model.zero_convs.0.0.weight"
    with pytest.raises(
        ModelError, match=rf"{strange} is an unexpected tensor in a file of .* \(1 unexpected\). Use a file"
    ):
        layout.to_diffusers(file | {strange: (1,)})


def test_a_running_average_has_the_key_of_the_original() -> None:
    key = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_out.0.bias"
    assert ema_key(key) == "model_ema.diffusion_modelinput_blocks11transformer_blocks0attn1to_out0bias"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_error_names_a_missing_tensor(family: str) -> None:
    layout, file = layout_of(family), full(family)
    gone = "model.diffusion_model.out.2.bias"
    del file[gone]
    with pytest.raises(ModelError, match=rf"{gone} is missing from the file of .* \(1 tensor missing\). Download"):
        layout.to_diffusers(file)
    with pytest.raises(ModelError, match=f"{family}: .* consists of unet, vae, .*, not of unet. Provide all"):
        layout.to_original({"unet": {}})
    with pytest.raises(ModelError, match=r"(conv_in|linear_1).* is missing from the unet \(\d+ tensors missing\)"):
        layout.to_original({part: {} for part in layout.parts})


def test_an_sd2_text_encoder_must_have_23_or_24_blocks() -> None:
    """The last of 24 blocks is not used; 22 are too few, and 25 belong to another model."""
    file = original_names.whole("sd2")
    last = {key: shape for key, shape in file.items() if ".resblocks.22." in key}
    assert len(last) == 12
    with pytest.raises(ModelError, match="12 tensors missing"):
        layout_of("sd2").to_diffusers({key: shape for key, shape in file.items() if key not in last})
    more = {key.replace(".22.", ".24."): shape for key, shape in last.items()}
    with pytest.raises(ModelError, match=r"resblocks\.24\..*12 unexpected"):
        layout_of("sd2").to_diffusers(file | more)


def test_inpainting_has_nine_input_channels_and_other_models_four() -> None:
    plain, inpainting = full("sd1"), full("sd1-inpainting")
    assert {key for key in plain if plain[key] != inpainting[key]} == {CONV_IN}
    with pytest.raises(ModelError, match=f"{CONV_IN}: the UNet has 9 input channels, but .* has 4. .* inpainting"):
        layout_of("sd1").to_diffusers(inpainting)
    with pytest.raises(ModelError, match=r"has 4 input channels, but that of Stable Diffusion 1.x inpainting has 9"):
        layout_of("sd1-inpainting").to_diffusers(plain)


def test_parts_with_another_channel_count_are_rejected(real: dict[str, dict[str, Shapes]]) -> None:
    with pytest.raises(ModelError, match="has 9 input channels"):
        layout_of("sd1").to_original(real["sd1-inpainting"])


@pytest.mark.parametrize(("given", "expected"), [("sd1", "sd2"), ("sd2", "sd1"), ("sd1", "sdxl"), ("sdxl", "sd2")])
def test_a_file_of_another_family_is_rejected(given: str, expected: str) -> None:
    with pytest.raises(ModelError, match="unexpected tensor"):
        layout_of(expected).to_diffusers(full(given))


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_text_encoder_without_prefix_is_read_and_written_with_prefix(
    real: dict[str, dict[str, Shapes]], family: str
) -> None:
    layout = layout_of(family)
    bare = {key.replace(".transformer.text_model.", ".transformer."): shape for key, shape in full(family).items()}
    assert len(set(bare) - set(full(family))) == 196
    moves = {move.line.original: move.stored[0] for move in layout.to_diffusers(bare)}
    place = next(key for key in moves if key.endswith("text_model.final_layer_norm.bias"))
    assert moves[place] == place.replace("text_model.", "")
    for prefix in ("", "text_model."):
        names = {name.removeprefix("text_model."): size for name, size in real[family]["text_encoder"].items()}
        part = {prefix + name: size for name, size in names.items()} | {f"{prefix}embeddings.position_ids": (1, 77)}
        written = layout.to_original(real[family] | {"text_encoder": part})
        assert {move.line.original for move in written} == set(full(family))
    with pytest.raises(ModelError, match=r"contains this tensor twice, also as"):
        layout.to_diffusers(bare | {place: (768,)})
    twice = real[family]["text_encoder"] | {"final_layer_norm.bias": (768,), "text_model.final_layer_norm.bias": (768,)}
    with pytest.raises(ModelError, match=r"the text_encoder contains this tensor twice, also as"):
        layout.to_original(real[family] | {"text_encoder": twice})


@pytest.mark.parametrize(
    ("family", "key", "there", "back"),
    [
        ("sd1", "model.diffusion_model.middle_block.1.proj_in.weight", (8, 8, 1, 1), (8, 8, 1, 1)),
        ("sd2", "model.diffusion_model.middle_block.1.proj_in.weight", (8, 8), (8, 8)),
        ("sdxl", "model.diffusion_model.middle_block.1.proj_out.weight", (8, 8), (8, 8)),
        ("sd1", "first_stage_model.encoder.mid.attn_1.q.weight", (8, 8, 1, 1), (8, 8)),
        ("sdxl", "first_stage_model.decoder.mid.attn_1.proj_out.weight", (8, 8, 1, 1), (8, 8)),
    ],
)
def test_a_pointwise_weight_is_read_in_any_form_and_written_in_its_own(
    family: str, key: str, there: tuple[int, ...], back: tuple[int, ...]
) -> None:
    torch = pytest.importorskip("torch")
    line, numbers = layout_of(family).lines[key], torch.arange(64.0)
    for form in ((8, 8), (8, 8, 1), (8, 8, 1, 1)):
        assert (line.original_shape(form), line.shapes(form)) == (there, (back,))
        assert torch.equal(line.join(numbers.reshape(form)), numbers.reshape(there))
        assert torch.equal(line.split(numbers.reshape(form))[0], numbers.reshape(back))
    for wrong in ((8,), (8, 8, 3, 3), (8, 8, 1, 1, 1)):
        with pytest.raises(ModelError, match="expected a matrix or a 1x1 convolution"):
            line.shapes(wrong)


def test_query_key_and_value_are_fused_in_the_order_of_the_original() -> None:
    torch = pytest.importorskip("torch")
    lines = layout_of("sd2").lines
    place = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj"
    weight, bias = lines[f"{place}_weight"], lines[f"{place}_bias"]
    q, k, v, words = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))[:, 0]
    attention = torch.nn.MultiheadAttention(4, 1, bias=False)  # what open_clip uses
    with torch.no_grad():
        attention.in_proj_weight.copy_(weight.join(q, k, v))
        attention.out_proj.weight.copy_(torch.eye(4))
        heeded = torch.softmax(words @ q.t() @ (words @ k.t()).t() / 2, dim=-1) @ (words @ v.t())
        torch.testing.assert_close(attention(words, words, words)[0], heeded)
    assert [piece[0].tolist() for piece in bias.split(torch.tensor([1.0, 2.0, 3.0])[:, None])] == [[1], [2], [3]]
    assert all(map(torch.equal, weight.split(weight.join(q, k, v)), (q, k, v)))
    assert all(piece.is_contiguous() for piece in weight.split(weight.join(q, k, v)))
    for wrong in ((8, 4), (), (4,)):
        with pytest.raises(ModelError, match="expected a row count divisible by three"):
            weight.shapes(wrong)
    with pytest.raises(ModelError, match="expected three equal shapes"):
        weight.original_shape((4, 4), (4, 4), (5, 4))
    with pytest.raises(ValueError, match="consists of 3 tensors, not 1"):
        weight.join(q)


def test_a_transposed_matrix_has_rows_and_columns_exchanged() -> None:
    torch = pytest.importorskip("torch")
    line = layout_of("sdxl").lines["conditioner.embedders.1.model.text_projection"]
    matrix = torch.arange(6.0).reshape(2, 3)
    assert torch.equal(line.join(matrix), matrix.t())
    assert torch.equal(line.split(line.join(matrix))[0], matrix)
    assert line.join(matrix).is_contiguous()
    with pytest.raises(ModelError, match="expected a matrix"):
        line.shapes((3,))


def test_old_autoencoder_names_are_read_in_every_family(real: dict[str, dict[str, Shapes]]) -> None:
    new = ("to_q", "to_k", "to_v", "to_out.0")
    for family in FAMILIES:
        old: dict[str, Any] = {}
        for name, shape in real[family]["vae"].items():
            for now, then in zip(new, ("query", "key", "value", "proj_attn"), strict=True):
                name = name.replace(f".attentions.0.{now}.", f".attentions.0.{then}.")
            old[name] = shape
        assert len(set(old) - set(real[family]["vae"])) == 16
        assert len(layout_of(family).to_original(real[family] | {"vae": old})) == COUNTS[family]


def test_an_unsupported_family_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"flux is an unsupported model family\. Use sd1"):
        layout_of("flux")


def test_layouts_and_shapes_work_without_torch() -> None:
    code = "import sys; from fastdb.models.layouts.tables import layout_of; l = layout_of('sdxl'); "
    code += "l.lines['conditioner.embedders.1.model.text_projection'].shapes((2, 2)); "
    code += "print([m for m in ('torch', 'numpy', 'diffusers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_line_is_immutable() -> None:
    line = next(iter(layout_of("sd1").lines.values()))
    assert isinstance(line, Line)
    with pytest.raises(AttributeError):
        line.part = "vae"  # type: ignore[misc]
