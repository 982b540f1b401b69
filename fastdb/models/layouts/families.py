"""The layout of each family of base models: every key an original file must have, and which others it may have.

Where the numbers come from, counting a weight and a bias as two (one UNet transformer of depth d has 6 + 20 d):

    UNet, SD 1 and 2     686   22 resnets of 10, 14 of them with a skip (+ 2); 16 transformers of 26; 3 halvings and
                               3 doublings of 2; 5 layers at the ends of 2
    UNet, SDXL         1,680   17 resnets of 10, 11 with a skip; 5 transformers of depth 2 and 6 of depth 10; 2 halvings
                               and 2 doublings; 5 layers at the ends, 2 for what is added to the time
    VAE                  248   24 resnets of 8, 4 of them with a skip (+ 2); 2 attentions of 10; 3 halvings and
                               3 doublings of 2; 8 layers of 2 at the ends
    CLIP, 12 layers      196   16 a layer, 2 tables, the last norm
    OpenCLIP             280   SD 2: 12 a layer (query, key and value are one), 23 layers, 2 tables, the last norm
    OpenCLIP             389   SDXL: 32 layers, and the projection

    SD 1.5 and its inpainting     686 + 248 + 196 = 1,130
    SD 2.1, 512 and 768           686 + 248 + 280 = 1,214
    SDXL base           1,680 + 248 + 196 + 389 = 2,513

A file may have more (`optional`): what can be computed, what only training used, and of OpenCLIP in SD 2 the parts
behind the layer that is read, its 24th block and its projection, which diffusers does not keep.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain

from fastdb.errors import ModelError
from fastdb.models.layouts import clip, openclip, vae
from fastdb.models.layouts.layout import Layout
from fastdb.models.layouts.tensor_mapping import Line
from fastdb.models.layouts.unet import UNet

SD1_TEXT = "cond_stage_model.transformer"
SD2_TEXT = "cond_stage_model.model"
SDXL_TEXT = "conditioner.embedders.0.transformer"
SDXL_TEXT_2 = "conditioner.embedders.1.model"

SD1_UNET = UNet(multiples=(1, 2, 4, 4), depths=(1, 1, 1, 0), middle=1, linear=False)
SD2_UNET = UNet(multiples=(1, 2, 4, 4), depths=(1, 1, 1, 0), middle=1, linear=True)
SDXL_UNET = UNet(multiples=(1, 2, 4), depths=(0, 2, 10), middle=10, linear=True, added=True)

TRAINING = (
    r"(sqrt_|sqrt_one_minus_|log_one_minus_|sqrt_recip_|sqrt_recipm1_)?alphas_cumprod(_prev)?",
    r"betas|posterior_\w+|lvlb_weights|logvar|scale_factor|denoiser\.sigmas",
    r"model_ema\..+",
    r"first_stage_model\.loss\..+",
)
"""Noise schedule, running averages and losses: what a file of any family may carry beside its weights."""
BEHIND_SD2 = rf"{re.escape(SD2_TEXT)}\.(transformer\.resblocks\.23\..+|text_projection|logit_scale|attn_mask)"
BEHIND_SDXL = rf"{re.escape(SDXL_TEXT_2)}\.(logit_scale|attn_mask)"


@cache
def layout_of(family: str) -> Layout:
    """The layout of a family, by its name in the registry: sd1, sd1-inpainting, sd2 or sdxl.

    Raises:
        ModelError: there is no layout for that family.
    """
    if family == "sd1":
        text = clip.lines("text_encoder", SD1_TEXT, layers=12)
        return _layout(family, "Stable Diffusion 1.x", SD1_UNET.lines(), text, clips=[SD1_TEXT])
    if family == "sd1-inpainting":
        # Noise, the mask and what it leaves of the picture: only the first convolution differs, in its width.
        text = clip.lines("text_encoder", SD1_TEXT, layers=12)
        name = "Stable Diffusion 1.x inpainting"
        return _layout(family, name, SD1_UNET.lines(), text, clips=[SD1_TEXT], channels=9)
    if family == "sd2":
        text = openclip.lines("text_encoder", SD2_TEXT, layers=23, projection=False)
        return _layout(family, "Stable Diffusion 2.x", SD2_UNET.lines(), text, behind=BEHIND_SD2)
    if family == "sdxl":
        first = clip.lines("text_encoder", SDXL_TEXT, layers=12)
        second = openclip.lines("text_encoder_2", SDXL_TEXT_2, layers=32, projection=True)
        text = chain(first, second)
        return _layout(family, "SDXL", SDXL_UNET.lines(), text, clips=[SDXL_TEXT], behind=BEHIND_SDXL)
    raise ModelError(
        "there is no layout for this family", where=family, fix="There are: sd1, sd1-inpainting, sd2, sdxl."
    )


def _layout(
    family: str,
    title: str,
    unet: Iterable[Line],
    text: Iterator[Line],
    *,
    clips: Iterable[str] = (),
    behind: str | None = None,
    channels: int = 4,
) -> Layout:
    lines = {line.original: line for line in chain(unet, vae.lines(), text)}
    position_ids = tuple(f"{root}.{clip.POSITION_IDS}" for root in clips)
    patterns = [*TRAINING, *map(re.escape, position_ids), *([behind] if behind else [])]
    return Layout(
        family=family,
        title=title,
        lines=lines,
        channels=channels,
        position_ids=position_ids,
        optional=re.compile("|".join(patterns)),
    )
