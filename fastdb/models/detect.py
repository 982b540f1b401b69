"""What a file's tensors are for, told from their names and shapes alone."""

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
"""Width of the text states that cross-attention reads."""

ENCODERS = {768: "CLIP ViT-L", 1024: "OpenCLIP ViT-H", 1280: "OpenCLIP ViT-bigG"}
ENCODER_FAMILIES = {768: f"{SD1} (also SDXL's first)", 1024: SD2, 1280: f"{XL} (its second)"}
FEW = 8
"""A textual inversion has hardly more tensors."""


@dataclass(frozen=True, kw_only=True)
class Recognised:
    """What a file is."""

    role: str
    """`checkpoint`, `UNet only`, `transformer only`, `VAE only`, `text encoder only`, `LoRA`, `ControlNet`,
    `textual inversion`; `not a model` where it is none of these."""
    family: str = ""
    """Of which models; empty where that cannot be told."""
    naming: str = ""
    """`original`, `diffusers`, `kohya` or `peft`."""
    parts: tuple[str, ...] = ()
    channels: int = 0
    """What the UNet takes: 4, or 9 for inpainting; 0 where there is none."""
    detail: str = ""
    """Rank of a LoRA, width and count of tokens, width of the text states where it is unusual."""
    why: str = ""
    """Why it is not a model."""

    @property
    def inpainting(self) -> bool:
        """Whether the UNet also takes a mask and the picture under it."""
        return self.channels == 9


def recognise(shapes: Shapes) -> Recognised:
    """Tell what tensors of these names and shapes are."""
    if not shapes:
        return Recognised(role="not a model", why="it holds no tensors")
    for look in (_lora, _controlnet, _checkpoint, _textual_inversion):
        found = look(shapes)
        if found is not None:
            return found
    return Recognised(role="not a model", why=_why_not(shapes))


def _prefix(shapes: Shapes, *marks: str) -> str | None:
    """What stands before the first of these names wherever all are there under one prefix; None where they are not."""
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
    core, naming, found = _core(shapes)
    vae, encoders = _vae(shapes), _encoders(shapes)
    parts = (
        *((core,) if core else ()),
        *((f"VAE ({vae[1]} latent channels)",) if vae else ()),
        *(kind for kind, *_ in encoders),
    )
    if core and (vae or encoders):
        return Recognised(role="checkpoint", naming=naming, parts=parts, **found)
    if core:
        return Recognised(role=f"{core} only", naming=naming, parts=parts, **found)
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
    """What denoises: "UNet", "transformer" or nothing; its naming; family, channels and detail."""
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
    projection = next((shape for name, shape in unet.items() if name.endswith(".proj_in.weight")), ())
    family = {4: SD1, 2: SD2}.get(len(projection), "")
    if pooled and width != 1024:
        family = REFINER if deep else XL
    usual = width in WIDTHS and WIDTHS[width] == family
    notes = [] if usual or not width else [f"text states {width} wide, which is unusual"]
    if pooled and width == 1024:
        notes.append("conditioned on pictures (unCLIP)")
    if channels not in (4, 9):
        notes.append(f"takes {channels} channels: neither a plain model nor inpainting")
    return {"family": family, "channels": channels, "detail": "; ".join(notes)}


def _vae(shapes: Shapes) -> tuple[str, int] | None:
    """Naming and latent channels."""
    for naming, middle in {"original": "decoder.mid.block_1", "diffusers": "decoder.mid_block.resnets.0"}.items():
        prefix = _prefix(shapes, "decoder.conv_in.weight", f"{middle}.norm1.weight", "decoder.conv_out.weight")
        if prefix is not None:
            return naming, _at(shapes[f"{prefix}decoder.conv_in.weight"], 1)
    return None


def _encoders(shapes: Shapes) -> list[tuple[str, int, str]]:
    """Each text encoder: what it is called, its width, its naming."""
    found: list[tuple[str, int, str]] = []
    for name, shape in shapes.items():
        if name.endswith("token_embedding.weight") and len(shape) == 2:
            kind = ENCODERS.get(shape[1], "CLIP")
            naming = (
                "original" if "cond_stage" in name or "embedders" in name or "transformer." in name else "diffusers"
            )
            found.append((f"text encoder ({kind}, {shape[1]} wide)", shape[1], naming))
        elif name.endswith("encoder.block.0.layer.0.SelfAttention.q.weight"):
            found.append((f"text encoder (T5, {_at(shape, 1)} wide)", 0, "diffusers"))
    return found


def _at(shape: Shape, place: int) -> int:
    return shape[place] if len(shape) > place else 0


# What is added to a model.

DOWN = re.compile(r"(\.lora_down|\.lora_A|[._]lora\.down|\.lora_A\.default)\.weight$|\.(hada_w1_b|lokr_w[12]_b)$")
LORAS = ("lora_", ".lora.", "_lora.", "hada_w", "lokr_w", ".oft_")


def _lora(shapes: Shapes) -> Recognised | None:
    downs = {name: shape for name, shape in shapes.items() if DOWN.search(name)}
    marked = [name for name in shapes if any(mark in name for mark in LORAS)]
    if not downs and len(marked) * 2 < len(shapes):
        return None
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
    rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}" if ranks else "rank not told"
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
    first = UNETS[naming][0]
    found = _unet(inner, first)
    whole = _prefix(shapes, *UNETS["original"]) is not None
    return Recognised(
        role="ControlNet",
        family=found["family"],
        naming=naming,
        parts=("ControlNet", *(("the UNet it steers",) if whole else ())),
        detail=found["detail"],
    )


def _textual_inversion(shapes: Shapes) -> Recognised | None:
    if len(shapes) > FEW:
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
        return "it holds the state of an optimizer only"
    if all(name.startswith("model_ema.") for name in names):
        return "it holds averaged weights only, under names that no program reads by themselves"
    some = ", ".join(shown(name) for name in names[:3])
    count = f"its {len(names)} tensors are" if len(names) > 1 else "its one tensor is"
    return f"{count} not named as any Stable Diffusion's: {some}{', ...' if len(names) > 3 else ''}"
