"""The names in an original Stable Diffusion 1.x file, written from its own module tree (ldm), not from diffusers.

Built the way the original model is: a list of blocks per network, each block a list of modules. Independent of
`fastdb.models.layout`, which goes from diffusers' names to these.
"""

from __future__ import annotations


def wb(*names: str) -> list[str]:
    return [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]


def under(prefix: str, names: list[str]) -> list[str]:
    return [f"{prefix}.{name}" for name in names]


def res_block(wide: int, narrow: int) -> list[str]:
    names = wb("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3")
    return names + (wb("skip_connection") if wide != narrow else [])


def spatial_transformer() -> list[str]:
    def attention() -> list[str]:
        return ["to_q.weight", "to_k.weight", "to_v.weight", *wb("to_out.0")]

    block = under("attn1", attention()) + under("attn2", attention()) + wb("norm1", "norm2", "norm3")
    block += wb("ff.net.0.proj", "ff.net.2")
    return wb("norm", "proj_in", "proj_out") + under("transformer_blocks.0", block)


def unet() -> list[str]:
    """openaimodel.UNetModel(model_channels=320, channel_mult=[1, 2, 4, 4], num_res_blocks=2, attention at 1, 2, 4)."""
    multiples, width, current = [1, 2, 4, 4], 320, 320
    inputs: list[list[list[str]]] = [[wb("")]]
    channels = [320]
    for level, multiple in enumerate(multiples):
        for _ in range(2):
            block = [res_block(current, multiple * width)]
            current = multiple * width
            if level != 3:
                block.append(spatial_transformer())
            inputs.append(block)
            channels.append(current)
        if level != 3:
            inputs.append([wb("op")])
            channels.append(current)
    middle = [res_block(current, current), spatial_transformer(), res_block(current, current)]
    outputs = []
    for level in (3, 2, 1, 0):
        for layer in range(3):
            block = [res_block(current + channels.pop(), width * multiples[level])]
            current = width * multiples[level]
            if level != 3:
                block.append(spatial_transformer())
            if level and layer == 2:
                block.append(wb("conv"))
            outputs.append(block)
    names = wb("time_embed.0", "time_embed.2", "out.0", "out.2")
    for kind, blocks in (("input_blocks", inputs), ("output_blocks", outputs)):
        for number, block in enumerate(blocks):
            for place, module in enumerate(block):
                names += [f"{kind}.{number}.{place}.{name}".replace("..", ".") for name in module]
    for place, module in enumerate(middle):
        names += under(f"middle_block.{place}", module)
    return under("model.diffusion_model", names)


def vae() -> list[str]:
    """autoencoder.AutoencoderKL(ch=128, ch_mult=[1, 2, 4, 4], num_res_blocks=2, attention in the middle only)."""
    widths = [128, 256, 512, 512]

    def block(before: int, after: int) -> list[str]:
        return wb("norm1", "conv1", "norm2", "conv2") + (wb("nin_shortcut") if before != after else [])

    middle = under("mid.block_1", block(512, 512)) + under("mid.block_2", block(512, 512))
    middle += under("mid.attn_1", wb("norm", "q", "k", "v", "proj_out"))
    encoder = wb("conv_in", "norm_out", "conv_out") + middle
    current = 128
    for level, width in enumerate(widths):
        for number in range(2):
            encoder += under(f"down.{level}.block.{number}", block(current, width))
            current = width
        encoder += wb(f"down.{level}.downsample.conv") if level != 3 else []
    decoder = wb("conv_in", "norm_out", "conv_out") + middle
    for level in (3, 2, 1, 0):
        for number in range(3):
            decoder += under(f"up.{level}.block.{number}", block(current, widths[level]))
            current = widths[level]
        decoder += wb(f"up.{level}.upsample.conv") if level != 0 else []
    names = under("encoder", encoder) + under("decoder", decoder) + wb("quant_conv", "post_quant_conv")
    return under("first_stage_model", names)


def text_encoder() -> list[str]:
    """transformers' CLIPTextModel of 2022, 12 layers, inside FrozenCLIPEmbedder."""
    names = ["embeddings.position_ids", "embeddings.token_embedding.weight", "embeddings.position_embedding.weight"]
    for layer in range(12):
        inner = wb("self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj")
        inner += wb("layer_norm1", "mlp.fc1", "mlp.fc2", "layer_norm2")
        names += under(f"encoder.layers.{layer}", inner)
    return under("cond_stage_model.transformer.text_model", names + wb("final_layer_norm"))
