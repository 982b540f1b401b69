"""Names and shapes in original Stable Diffusion files, written from their own module trees, not from diffusers.

Built the way the original models are: a list of blocks per network, each block a list of modules (ldm for SD 1 and 2,
sgm for SDXL, open_clip for their text encoders). Independent of `fastdb.models.layouts`, whose tables go from names of
diffusers to these. Without arguments: SD 1.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Shape = tuple[int, ...]
Names = dict[str, Shape]


def under(prefix: str, names: Names) -> Names:
    return {f"{prefix}.{name}": shape for name, shape in names.items()}


def norm(width: int) -> Names:
    return {"weight": (width,), "bias": (width,)}


def linear(before: int, after: int) -> Names:
    return {"weight": (after, before), "bias": (after,)}


def conv(before: int, after: int, side: int = 3) -> Names:
    return {"weight": (after, before, side, side), "bias": (after,)}


def unet_res_block(before: int, after: int, time: int) -> Names:
    names = under("in_layers.0", norm(before)) | under("in_layers.2", conv(before, after))
    names |= under("emb_layers.1", linear(time, after))
    names |= under("out_layers.0", norm(after)) | under("out_layers.3", conv(after, after))
    return names | (under("skip_connection", conv(before, after, 1)) if before != after else {})


def spatial_transformer(width: int, depth: int, context: int, use_linear: bool) -> Names:
    def attention(keys: int) -> Names:
        names = {"to_q.weight": (width, width), "to_k.weight": (width, keys), "to_v.weight": (width, keys)}
        return names | under("to_out.0", linear(width, width))

    names = under("norm", norm(width))
    for place in ("proj_in", "proj_out"):
        names |= under(place, linear(width, width) if use_linear else conv(width, width, 1))
    block = under("attn1", attention(width)) | under("attn2", attention(context))
    block |= under("norm1", norm(width)) | under("norm2", norm(width)) | under("norm3", norm(width))
    block |= under("ff.net.0.proj", linear(width, 8 * width)) | under("ff.net.2", linear(4 * width, width))
    for number in range(depth):
        names |= under(f"transformer_blocks.{number}", block)
    return names


def unet(
    *,
    in_channels: int = 4,
    model_channels: int = 320,
    channel_mult: Sequence[int] = (1, 2, 4, 4),
    transformer_depth: Sequence[int] = (1, 1, 1, 0),
    transformer_depth_middle: int = 1,
    context: int = 768,
    use_linear: bool = False,
    adm_in_channels: int = 0,
) -> Names:
    """openaimodel.UNetModel, two residual blocks a level, the wider attention only where the depth is not 0."""
    width, current, time = model_channels, model_channels, 4 * model_channels
    last = len(channel_mult) - 1
    inputs: list[list[Names]] = [[conv(in_channels, width)]]
    channels = [width]
    for level, multiple in enumerate(channel_mult):
        for _ in range(2):
            block = [unet_res_block(current, multiple * width, time)]
            current = multiple * width
            if transformer_depth[level]:
                block.append(spatial_transformer(current, transformer_depth[level], context, use_linear))
            inputs.append(block)
            channels.append(current)
        if level != last:
            inputs.append([under("op", conv(current, current))])
            channels.append(current)
    middle = [
        unet_res_block(current, current, time),
        spatial_transformer(current, transformer_depth_middle, context, use_linear),
        unet_res_block(current, current, time),
    ]
    outputs: list[list[Names]] = []
    for level in reversed(range(last + 1)):
        for layer in range(3):
            block = [unet_res_block(current + channels.pop(), width * channel_mult[level], time)]
            current = width * channel_mult[level]
            if transformer_depth[level]:
                block.append(spatial_transformer(current, transformer_depth[level], context, use_linear))
            if level and layer == 2:
                block.append(under("conv", conv(current, current)))
            outputs.append(block)
    names = under("time_embed.0", linear(width, time)) | under("time_embed.2", linear(time, time))
    names |= under("out.0", norm(width)) | under("out.2", conv(width, 4))
    if adm_in_channels:
        names |= under("label_emb.0.0", linear(adm_in_channels, time)) | under("label_emb.0.2", linear(time, time))
    for kind, blocks in (("input_blocks", inputs), ("output_blocks", outputs)):
        for number, block in enumerate(blocks):
            for place, module in enumerate(block):
                names |= under(f"{kind}.{number}.{place}", module)
    for place, module in enumerate(middle):
        names |= under(f"middle_block.{place}", module)
    return under("model.diffusion_model", names)


def vae(width: int = 128) -> Names:
    """autoencoder.AutoencoderKL(ch=128, ch_mult=[1, 2, 4, 4], num_res_blocks=2, attention in the middle only)."""
    widths = [width, 2 * width, 4 * width, 4 * width]
    wide = widths[3]

    def block(before: int, after: int) -> Names:
        names = under("norm1", norm(before)) | under("conv1", conv(before, after))
        names |= under("norm2", norm(after)) | under("conv2", conv(after, after))
        return names | (under("nin_shortcut", conv(before, after, 1)) if before != after else {})

    middle = under("mid.block_1", block(wide, wide)) | under("mid.block_2", block(wide, wide))
    middle |= under("mid.attn_1.norm", norm(wide))
    for matrix in ("q", "k", "v", "proj_out"):
        middle |= under(f"mid.attn_1.{matrix}", conv(wide, wide, 1))
    encoder = under("conv_in", conv(3, width)) | under("norm_out", norm(wide)) | under("conv_out", conv(wide, 8))
    encoder |= middle
    current = width
    for level, after in enumerate(widths):
        for number in range(2):
            encoder |= under(f"down.{level}.block.{number}", block(current, after))
            current = after
        encoder |= under(f"down.{level}.downsample.conv", conv(current, current)) if level != 3 else {}
    decoder = under("conv_in", conv(4, wide)) | under("norm_out", norm(width)) | under("conv_out", conv(width, 3))
    decoder |= middle
    for level in (3, 2, 1, 0):
        for number in range(3):
            decoder |= under(f"up.{level}.block.{number}", block(current, widths[level]))
            current = widths[level]
        decoder |= under(f"up.{level}.upsample.conv", conv(current, current)) if level != 0 else {}
    names = under("encoder", encoder) | under("decoder", decoder)
    names |= under("quant_conv", conv(8, 8, 1)) | under("post_quant_conv", conv(4, 4, 1))
    return under("first_stage_model", names)


def text_encoder(
    root: str = "cond_stage_model", *, width: int = 768, feed: int = 3072, vocabulary: int = 49408
) -> Names:
    """transformers' CLIPTextModel of 2022, 12 layers, inside FrozenCLIPEmbedder; with its buffer `position_ids`."""
    names: Names = {"embeddings.position_ids": (1, 77), "embeddings.token_embedding.weight": (vocabulary, width)}
    names["embeddings.position_embedding.weight"] = (77, width)
    for layer in range(12):
        inner: Names = {}
        for matrix in ("k_proj", "v_proj", "q_proj", "out_proj"):
            inner |= under(f"self_attn.{matrix}", linear(width, width))
        inner |= under("layer_norm1", norm(width)) | under("mlp.fc1", linear(width, feed))
        inner |= under("mlp.fc2", linear(feed, width)) | under("layer_norm2", norm(width))
        names |= under(f"encoder.layers.{layer}", inner)
    return under(f"{root}.transformer.text_model", names | under("final_layer_norm", norm(width)))


def openclip(root: str, *, width: int, layers: int, feed: int, vocabulary: int = 49408) -> Names:
    """open_clip's text tower, inside FrozenOpenCLIPEmbedder: residual blocks around torch's MultiheadAttention."""
    names: Names = {"positional_embedding": (77, width), "text_projection": (width, width), "logit_scale": ()}
    names |= under("token_embedding", {"weight": (vocabulary, width)}) | under("ln_final", norm(width))
    for layer in range(layers):
        block: Names = {"attn.in_proj_weight": (3 * width, width), "attn.in_proj_bias": (3 * width,)}
        block |= under("attn.out_proj", linear(width, width))
        block |= under("ln_1", norm(width)) | under("ln_2", norm(width))
        block |= under("mlp.c_fc", linear(width, feed)) | under("mlp.c_proj", linear(feed, width))
        names |= under(f"transformer.resblocks.{layer}", block)
    return under(f"{root}.model", names)


SIZES: dict[str, dict[str, Any]] = {
    "full": {
        "width": 320,
        "vae": 128,
        "context": {"sd1": 768, "sd1-inpainting": 768, "sd2": 1024, "sdxl": 2048},
        "added": 2816,
        "clip": {"width": 768, "feed": 3072},
        "openclip": {"sd2": {"width": 1024, "feed": 4096}, "sdxl": {"width": 1280, "feed": 5120}},
        "vocabulary": 49408,
    },
    "narrow": {
        "width": 16,
        "vae": 16,
        "context": {"sd1": 24, "sd1-inpainting": 24, "sd2": 32, "sdxl": 56},
        "added": 80,
        "clip": {"width": 24, "feed": 48},
        "openclip": {"sd2": {"width": 32, "feed": 64}, "sdxl": {"width": 32, "feed": 64}},
        "vocabulary": 794,
    },
}
"""What the real models measure, and the narrow ones of the tests."""


def whole(family: str, size: str = "full") -> Names:
    """Everything in a file of a family, without running averages and noise schedule."""
    sizes = SIZES[size]
    network: dict[str, Any] = {"model_channels": sizes["width"], "context": sizes["context"][family]}
    words = {"vocabulary": sizes["vocabulary"]}
    if family.startswith("sd1"):
        network["in_channels"] = 9 if family == "sd1-inpainting" else 4
        text = text_encoder(**sizes["clip"], **words)
    elif family == "sd2":
        network["use_linear"] = True
        text = openclip("cond_stage_model", layers=24, **sizes["openclip"][family], **words)
    else:
        network |= {"channel_mult": (1, 2, 4), "transformer_depth": (0, 2, 10), "transformer_depth_middle": 10}
        network |= {"use_linear": True, "adm_in_channels": sizes["added"]}
        text = text_encoder("conditioner.embedders.0", **sizes["clip"], **words)
        text |= openclip("conditioner.embedders.1", layers=32, **sizes["openclip"][family], **words)
    return unet(**network) | vae(sizes["vae"]) | text
