"""Names: where each tensor of a diffusers folder lies in an original Stable Diffusion 1.x file.

One table per part, written out from the topology: 686 names of the UNet, 248 of the autoencoder, 196 of the text
encoder (and `POSITION_IDS`, which original files carry and diffusers does not). A name outside the table is an error,
so nothing is ever renamed by accident.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from types import MappingProxyType

from fastdb.errors import ModelError

POSITION_IDS = "cond_stage_model.transformer.text_model.embeddings.position_ids"
"""int64, [1, tokens]: 0, 1, 2, ...; a buffer of the original text encoder."""

Pairs = Iterator[tuple[str, str]]

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3"}
TIME = {"time_emb_proj": "emb_layers.1"}
SKIP = {"conv_shortcut": "skip_connection"}
VAE_RESNET = {name: name for name in ("norm1", "conv1", "norm2", "conv2")}
VAE_SKIP = {"conv_shortcut": "nin_shortcut"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OLD_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""How diffusers before 0.17 named the attention of the autoencoder."""


def original_keys(part: str, names: Iterable[str]) -> dict[str, str]:
    """Map each diffusers name, as given, to its name in the original layout.

    Args:
        part: "unet", "vae" or "text_encoder".
        names: as in a diffusers file; the autoencoder's attention in either generation of names, the text encoder
            with or without `text_model.`, its `position_ids` left out of the answer.

    Raises:
        ModelError: a name does not belong to Stable Diffusion 1.x, or two names mean the same tensor.
    """
    table = key_table(part)
    found: dict[str, str] = {}
    meant: dict[str, str] = {}
    for name in names:
        modern = modern_name(part, name)
        if part == "text_encoder" and modern == "text_model.embeddings.position_ids":
            continue
        if modern not in table:
            raise ModelError(f"the {part} has a tensor that Stable Diffusion 1.x does not know", where=name)
        if modern in meant:
            raise ModelError(f"the {part} holds this tensor twice, also as {meant[modern]}", where=name)
        meant[modern] = name
        found[name] = table[modern]
    return found


def modern_name(part: str, name: str) -> str:
    """The name that today's diffusers and files from the Hub use for a tensor, given an older or a shorter one."""
    if part == "text_encoder":
        return f"text_model.{name.removeprefix('text_model.')}"
    if part == "vae" and ".attentions.0." in name:
        head, tail = name.split(".attentions.0.")
        layer, _, kind = tail.rpartition(".")
        return f"{head}.attentions.0.{OLD_VAE_ATTENTION.get(layer, layer)}.{kind}"
    return name


def original_shape(part: str, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in the original layout: the autoencoder's attention is made of 1 x 1 convolutions, [out, in, 1, 1]."""
    inner = part == "vae" and ".attentions.0." in name and name.endswith(".weight") and len(shape) == 2
    return (*shape, 1, 1) if inner else shape


@cache
def key_table(part: str) -> Mapping[str, str]:
    """All names of a part of Stable Diffusion 1.x: diffusers -> original.

    Raises:
        ModelError: there is no such part.
    """
    tables = {"unet": _unet, "vae": _vae, "text_encoder": _text_encoder}
    if part not in tables:
        raise ModelError(f"is no part of a model; parts are {', '.join(tables)}", where=part)
    return MappingProxyType(dict(tables[part]()))


def _unet() -> Pairs:
    """UNet: blocks are numbered through; input block 0 is `conv_in`, each level is two layers and a halving."""
    root = "model.diffusion_model"
    yield from _both("time_embedding.linear_1", f"{root}.time_embed.0")
    yield from _both("time_embedding.linear_2", f"{root}.time_embed.2")
    yield from _both("conv_in", f"{root}.input_blocks.0.0")
    yield from _both("conv_norm_out", f"{root}.out.0")
    yield from _both("conv_out", f"{root}.out.2")
    for level in range(4):
        for layer in range(2):
            ours, theirs = f"down_blocks.{level}", f"{root}.input_blocks.{3 * level + layer + 1}"
            # Widths change at the first layer of levels 1 and 2.
            skip = SKIP if layer == 0 and level in (1, 2) else {}
            yield from _layers(f"{ours}.resnets.{layer}", f"{theirs}.0", RESNET | TIME | skip)
            if level < 3:
                yield from _transformer(f"{ours}.attentions.{layer}", f"{theirs}.1")
        if level < 3:
            yield from _both(f"down_blocks.{level}.downsamplers.0.conv", f"{root}.input_blocks.{3 * level + 3}.0.op")
    yield from _layers("mid_block.resnets.0", f"{root}.middle_block.0", RESNET | TIME)
    yield from _transformer("mid_block.attentions.0", f"{root}.middle_block.1")
    yield from _layers("mid_block.resnets.1", f"{root}.middle_block.2", RESNET | TIME)
    for level in range(4):
        for layer in range(3):
            ours, theirs = f"up_blocks.{level}", f"{root}.output_blocks.{3 * level + layer}"
            yield from _layers(f"{ours}.resnets.{layer}", f"{theirs}.0", RESNET | TIME | SKIP)
            if level > 0:
                yield from _transformer(f"{ours}.attentions.{layer}", f"{theirs}.1")
        if level < 3:
            place = 1 if level == 0 else 2  # after the transformer, where there is one
            upsampler = f"{root}.output_blocks.{3 * level + 2}.{place}.conv"
            yield from _both(f"up_blocks.{level}.upsamplers.0.conv", upsampler)


def _transformer(ours: str, theirs: str) -> Pairs:
    """A spatial transformer; inside it both layouts use the same names."""
    for layer in ("norm", "proj_in", "proj_out"):
        yield from _both(f"{ours}.{layer}", f"{theirs}.{layer}")
    inside = "transformer_blocks.0"
    for attention in ("attn1", "attn2"):
        for matrix in ("to_q", "to_k", "to_v"):
            name = f"{inside}.{attention}.{matrix}.weight"
            yield f"{ours}.{name}", f"{theirs}.{name}"
        yield from _both(f"{ours}.{inside}.{attention}.to_out.0", f"{theirs}.{inside}.{attention}.to_out.0")
    for layer in ("ff.net.0.proj", "ff.net.2", "norm1", "norm2", "norm3"):
        yield from _both(f"{ours}.{inside}.{layer}", f"{theirs}.{inside}.{layer}")


def _vae() -> Pairs:
    """Autoencoder: the original numbers the decoder's levels by resolution, so backwards."""
    root = "first_stage_model"
    for layer in ("quant_conv", "post_quant_conv"):
        yield from _both(layer, f"{root}.{layer}")
    for half in ("encoder", "decoder"):
        yield from _both(f"{half}.conv_in", f"{root}.{half}.conv_in")
        yield from _both(f"{half}.conv_norm_out", f"{root}.{half}.norm_out")
        yield from _both(f"{half}.conv_out", f"{root}.{half}.conv_out")
        for number in range(2):
            resnet = f"{root}.{half}.mid.block_{number + 1}"
            yield from _layers(f"{half}.mid_block.resnets.{number}", resnet, VAE_RESNET)
        yield from _layers(f"{half}.mid_block.attentions.0", f"{root}.{half}.mid.attn_1", VAE_ATTENTION)
    for level in range(4):
        ours, theirs = f"encoder.down_blocks.{level}", f"{root}.encoder.down.{level}"
        for number in range(2):
            skip = VAE_SKIP if number == 0 and level in (1, 2) else {}
            yield from _layers(f"{ours}.resnets.{number}", f"{theirs}.block.{number}", VAE_RESNET | skip)
        if level < 3:
            yield from _both(f"{ours}.downsamplers.0.conv", f"{theirs}.downsample.conv")
        ours, theirs = f"decoder.up_blocks.{level}", f"{root}.decoder.up.{3 - level}"
        for number in range(3):
            skip = VAE_SKIP if number == 0 and level in (2, 3) else {}
            yield from _layers(f"{ours}.resnets.{number}", f"{theirs}.block.{number}", VAE_RESNET | skip)
        if level < 3:
            yield from _both(f"{ours}.upsamplers.0.conv", f"{theirs}.upsample.conv")


def _text_encoder() -> Pairs:
    """Text encoder: the same names behind a prefix."""
    names = ["embeddings.token_embedding.weight", "embeddings.position_embedding.weight"]
    layers = [f"self_attn.{matrix}_proj" for matrix in ("q", "k", "v", "out")]
    layers += ["layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"]
    places = [f"encoder.layers.{block}.{layer}" for block in range(12) for layer in layers] + ["final_layer_norm"]
    names += [f"{place}.{kind}" for place in places for kind in ("weight", "bias")]
    for name in names:
        yield f"text_model.{name}", f"cond_stage_model.transformer.text_model.{name}"


def _layers(ours: str, theirs: str, names: dict[str, str]) -> Pairs:
    for our, their in names.items():
        yield from _both(f"{ours}.{our}", f"{theirs}.{their}")


def _both(ours: str, theirs: str) -> Pairs:
    for kind in ("weight", "bias"):
        yield f"{ours}.{kind}", f"{theirs}.{kind}"
