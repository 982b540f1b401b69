"""Recognise a model file from the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastdb.formats.tensor_info import shown

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

SD1, SD2, XL, REFINER = "Stable Diffusion 1.x", "Stable Diffusion 2.x", "SDXL base", "SDXL refiner"
SD3, FLUX = "Stable Diffusion 3.x", "Flux"
WIDTHS = {768: SD1, 1024: SD2, 2048: XL, 1280: REFINER}
"""Family by the width of the text states that cross-attention reads."""

ENCODERS = {768: "CLIP ViT-L", 1024: "OpenCLIP ViT-H", 1280: "OpenCLIP ViT-bigG"}
ENCODER_FAMILIES = {768: f"{SD1} (also SDXL's first)", 1024: SD2, 1280: f"{XL} (its second)"}
MAX_INVERSION_TENSORS = 8


@dataclass(frozen=True, kw_only=True)
class Recognised:
    """The kind of model in a file."""

    role: str
    """`checkpoint`, `UNet only`, `transformer only`, `VAE only`, `text encoder only`, `LoRA`, `ControlNet`,
    `textual inversion` or `not a model`."""
    family: str = ""
    """Family of models; empty if unknown."""
    naming: str = ""
    """`original`, `diffusers`, `kohya` or `peft`."""
    parts: tuple[str, ...] = ()
    channels: int = 0
    """Input channels of the UNet, 4, or 9 for inpainting; 0 without a UNet."""
    detail: str = ""
    """Rank of a LoRA, width and number of tokens, an unusual width of text states."""
    why: str = ""
    """Why it is not a model, a clause."""

    @property
    def inpainting(self) -> bool:
        """Whether the UNet also takes a mask and the masked picture."""
        return self.channels == 9


def recognise(shapes: Shapes) -> Recognised:
    """Recognise tensors by their names and shapes."""
    if not shapes:
        return Recognised(role="not a model", why="it contains no tensors")
    for recognise_kind in (_lora, _controlnet, _checkpoint, _textual_inversion):
        recognised = recognise_kind(shapes)
        if recognised is not None:
            return recognised
    return Recognised(role="not a model", why=_why_not(shapes))


def _prefix(shapes: Shapes, *marks: str) -> str | None:
    """Return the prefix under which all these names exist; None if there is no such prefix."""
    for name in shapes:
        if name.endswith(marks[0]):
            prefix = name.removesuffix(marks[0])
            if (not prefix or prefix.endswith(".")) and all(prefix + mark in shapes for mark in marks):
                return prefix
    return None


def _under(shapes: Shapes, prefix: str) -> dict[str, Shape]:
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


# Checkpoints and their parts.


def _checkpoint(shapes: Shapes) -> Recognised | None:
    core, naming, facts = _core(shapes)
    vae, encoders = _vae(shapes), _encoders(shapes)
    parts = (
        *((core,) if core else ()),
        *((f"VAE ({vae[1]} latent channels)",) if vae else ()),
        *(kind for kind, *_ in encoders),
    )
    if core and (vae or encoders):
        return Recognised(role="checkpoint", naming=naming, parts=parts, **facts)
    if core:
        return Recognised(role=f"{core} only", naming=naming, parts=parts, **facts)
    if vae and encoders:
        return Recognised(role="not a model", parts=parts, why="it has a VAE and a text encoder, but no UNet")
    if vae:
        family = f"{SD3} or {FLUX}" if vae[1] == 16 else f"{SD1}, 2.x or SDXL (their VAEs have the same tensors)"
        return Recognised(role="VAE only", family=family, naming=vae[0], parts=parts)
    if encoders:
        family = ENCODER_FAMILIES.get(encoders[0][1], "")
        return Recognised(role="text encoder only", family=family, naming=encoders[0][2], parts=parts)
    return None


def _core(shapes: Shapes) -> tuple[str, str, dict[str, Any]]:
    """Return "UNet", "transformer" or "", its naming, and its family, channels and detail."""
    for naming, marks in UNETS.items():
        prefix = _prefix(shapes, *marks)
        if prefix is not None:
            return "UNet", naming, _unet(_under(shapes, prefix), marks[0])
    for family, naming, parts in TRANSFORMERS:
        if _prefix(shapes, *parts) is not None:
            return "transformer", naming, {"family": family}
    return "", "", {}


UNETS = {
    "original": ("input_blocks.0.0.weight", "time_embed.0.weight", "out.2.weight"),
    "diffusers": ("conv_in.weight", "time_embedding.linear_1.weight", "conv_out.weight"),
}
TRANSFORMERS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (FLUX, "original", ("double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight", "img_in.weight")),
    (
        FLUX,
        "diffusers",
        ("single_transformer_blocks.0.attn.to_q.weight", "x_embedder.weight", "context_embedder.weight"),
    ),
    (SD3, "original", ("joint_blocks.0.x_block.attn.qkv.weight", "context_embedder.weight")),
    (SD3, "diffusers", ("transformer_blocks.0.attn.add_q_proj.weight", "pos_embed.proj.weight")),
)


def _unet(unet: Shapes, first: str) -> dict[str, Any]:
    width = _at(next((shape for name, shape in unet.items() if name.endswith("attn2.to_k.weight")), ()), 1)
    channels = _at(unet[first], 1)
    pooled = {"label_emb.0.0.weight", "add_embedding.linear_1.weight"} & set(unet)
    deep = {"input_blocks.9.0.op.weight", "down_blocks.2.downsamplers.0.conv.weight"} & set(unet)
    # SD 1 projects by 1x1 convolutions, SD 2 and SDXL by matrices.
    projection = next((shape for name, shape in unet.items() if name.endswith(".proj_in.weight")), ())
    family = {4: SD1, 2: SD2}.get(len(projection), "")
    if pooled and width != 1024:
        # Of SDXL only the refiner has a third downsampler.
        family = REFINER if deep else XL
    usual = width in WIDTHS and WIDTHS[width] == family
    notes = [] if usual or not width else [f"text states of an unusual width, {width}"]
    if pooled and width == 1024:
        notes.append("conditioned on images (unCLIP)")
    if channels not in (4, 9):
        notes.append(f"{channels} input channels, neither a plain model nor inpainting")
    return {"family": family, "channels": channels, "detail": "; ".join(notes)}


def _vae(shapes: Shapes) -> tuple[str, int] | None:
    """Return naming and latent channels of the VAE."""
    for naming, middle in {"original": "decoder.mid.block_1", "diffusers": "decoder.mid_block.resnets.0"}.items():
        prefix = _prefix(shapes, "decoder.conv_in.weight", f"{middle}.norm1.weight", "decoder.conv_out.weight")
        if prefix is not None:
            return naming, _at(shapes[f"{prefix}decoder.conv_in.weight"], 1)
    return None


def _encoders(shapes: Shapes) -> list[tuple[str, int, str]]:
    """Return title, width and naming of each text encoder."""
    encoders: list[tuple[str, int, str]] = []
    for name, shape in shapes.items():
        if name.endswith("token_embedding.weight") and len(shape) == 2:
            kind = ENCODERS.get(shape[1], "CLIP")
            naming = (
                "original" if "cond_stage" in name or "embedders" in name or "transformer." in name else "diffusers"
            )
            encoders.append((f"text encoder ({kind}, {shape[1]} wide)", shape[1], naming))
        elif name.endswith("encoder.block.0.layer.0.SelfAttention.q.weight"):
            encoders.append((f"text encoder (T5, {_at(shape, 1)} wide)", 0, "diffusers"))
    return encoders


def _at(shape: Shape, place: int) -> int:
    return shape[place] if len(shape) > place else 0


# Additions to a model.

DOWN = re.compile(r"(\.lora_down|\.lora_A|[._]lora\.down|\.lora_A\.default)\.weight$|\.(hada_w1_b|lokr_w[12]_b)$")
LORAS = ("lora_", ".lora.", "_lora.", "hada_w", "lokr_w", ".oft_")


def _lora(shapes: Shapes) -> Recognised | None:
    downs = {name: shape for name, shape in shapes.items() if DOWN.search(name)}
    marked = [name for name in shapes if any(mark in name for mark in LORAS)]
    if not downs and len(marked) * 2 < len(shapes):
        return None
    # A checkpoint may contain a few tensors of a LoRA.
    if _prefix(shapes, *UNETS["original"]) is not None:
        return None
    kinds = {"hada_w": "LoHa", "lokr_w": "LoKr", ".oft_": "OFT"}
    kind = next((kind for mark, kind in kinds.items() if any(mark in name for name in shapes)), "LoRA")
    if any("dora_scale" in name or "lora_magnitude_vector" in name for name in shapes):
        kind = "DoRA"
    if any(name.startswith(("lora_unet_", "lora_te", "lora_prior")) for name in shapes):
        naming = "kohya"
    else:
        naming = "peft" if any(".lora_A." in name for name in shapes) else "diffusers"
    ranks = sorted({_at(shape, 0) for shape in downs.values()})
    rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}" if ranks else "unknown rank"
    unet = any("unet" in name or "transformer" in name or "_blocks" in name for name in shapes)
    text = any("text_encoder" in name or name.startswith("lora_te") or "text_model" in name for name in shapes)
    parts = (*(("UNet or transformer",) if unet else ()), *(("text encoder",) if text else ()))
    detail = rank if kind == "LoRA" else f"{kind}, {rank}"
    return Recognised(role="LoRA", family=_lora_family(downs), naming=naming, parts=parts, detail=detail)


def _lora_family(downs: Shapes) -> str:
    for name, shape in downs.items():
        if re.search(r"attn2[._](processor[._])?to_k", name) and "joint" not in name:
            return WIDTHS.get(_at(shape, 1), "")
    for name in downs:
        if re.search(r"double_blocks|single_blocks|single_transformer_blocks", name):
            return FLUX
    for name, shape in downs.items():
        if re.search(r"joint_blocks|transformer[._]transformer_blocks", name):
            return SD3
        if re.match(r"lora_te[12]_|text_encoder_2\.", name):
            return XL
        if "q_proj" in name:
            return WIDTHS.get(_at(shape, 1), "")
    return ""


def _controlnet(shapes: Shapes) -> Recognised | None:
    prefix = _prefix(shapes, "input_hint_block.0.weight", "input_blocks.0.0.weight")
    if prefix is not None:
        naming, inner = "original", _under(shapes, prefix)
    elif _prefix(shapes, "controlnet_cond_embedding.conv_in.weight", "conv_in.weight") is not None:
        naming, inner = "diffusers", dict(shapes)
    else:
        return None
    facts = _unet(inner, UNETS[naming][0])
    whole = _prefix(shapes, *UNETS["original"]) is not None
    return Recognised(
        role="ControlNet",
        family=facts["family"],
        naming=naming,
        parts=("ControlNet", *(("UNet",) if whole else ())),
        detail=facts["detail"],
    )


def _textual_inversion(shapes: Shapes) -> Recognised | None:
    if len(shapes) > MAX_INVERSION_TENSORS:
        return None
    widths = [shape[-1] for shape in shapes.values() if len(shape) in (1, 2)]
    if len(widths) != len(shapes) or not set(widths) <= set(WIDTHS):
        return None
    tokens = max(shape[0] if len(shape) == 2 else 1 for shape in shapes.values())
    wide = " and ".join(str(width) for width in sorted(set(widths)))
    family = XL if len(set(widths)) == 2 else ENCODER_FAMILIES[widths[0]]
    plural = "token" if tokens == 1 else "tokens"
    return Recognised(role="textual inversion", family=family, detail=f"{tokens} {plural}, {wide} wide")


def _why_not(shapes: Shapes) -> str:
    names = list(shapes)
    if any(re.match(r"(model\.)?layers\.\d+\.self_attn\.", name) for name in names):
        return "its tensors are those of a language model"
    if all(name.startswith(("optimizer", "state.", "exp_avg")) for name in names):
        return "it contains only the state of an optimizer"
    if all(name.startswith("model_ema.") for name in names):
        return "it contains only averaged weights (EMA), under names that no program loads"
    examples = ", ".join(shown(name) for name in names[:3])
    count = f"its {len(names)} tensors do" if len(names) > 1 else "its tensor does"
    return f"{count} not have the names of a Stable Diffusion: {examples}{', ...' if len(names) > 3 else ''}"
