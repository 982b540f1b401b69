"""Names and shapes of the original layout, against an independent account of it and the real SD 1.5 topology."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fastdb.errors import ModelError
from fastdb.models import layout

sys.path.insert(0, str(Path(__file__).parent))
import sd1_names


def test_the_account_has_the_known_counts() -> None:
    assert [len(names()) for names in (sd1_names.unet, sd1_names.vae, sd1_names.text_encoder)] == [686, 248, 197]
    # Names anyone can look up in v1-5-pruned-emaonly.safetensors.
    assert "model.diffusion_model.input_blocks.0.0.weight" in sd1_names.unet()
    assert "model.diffusion_model.output_blocks.2.1.conv.weight" in sd1_names.unet()
    assert "model.diffusion_model.output_blocks.5.2.conv.bias" in sd1_names.unet()
    assert "model.diffusion_model.input_blocks.4.0.skip_connection.weight" in sd1_names.unet()
    assert "first_stage_model.decoder.up.1.block.0.nin_shortcut.weight" in sd1_names.vae()


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_tables_lead_to_exactly_the_original_names(part: str) -> None:
    expected = getattr(sd1_names, part)()
    found = list(layout.key_table(part).values())
    found += [layout.POSITION_IDS] if part == "text_encoder" else []
    assert sorted(found) == sorted(expected)


def test_the_real_sd15_topology_is_covered_name_by_name_and_shape_by_shape() -> None:
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        models = {
            "unet": diffusers.UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64),
            "vae": diffusers.AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
            ),
            "text_encoder": transformers.CLIPTextModel(
                transformers.CLIPTextConfig(
                    hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
                )
            ),
        }
    shapes = {}
    for part, model in models.items():
        state = model.state_dict()
        for name, original in layout.original_keys(part, state).items():
            shapes[original] = layout.original_shape(part, name, tuple(state[name].shape))
    expected = sd1_names.unet() + sd1_names.vae() + sd1_names.text_encoder()
    assert sorted([*shapes, layout.POSITION_IDS]) == sorted(expected)
    unet, vae = "model.diffusion_model", "first_stage_model"
    known = {
        f"{unet}.input_blocks.0.0.weight": (320, 4, 3, 3),
        f"{unet}.time_embed.0.weight": (1280, 320),
        f"{unet}.input_blocks.1.1.proj_in.weight": (320, 320, 1, 1),
        f"{unet}.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
        f"{unet}.input_blocks.7.0.skip_connection.weight": (1280, 640, 1, 1),
        f"{unet}.output_blocks.0.0.in_layers.2.weight": (1280, 2560, 3, 3),
        f"{unet}.output_blocks.11.0.in_layers.2.weight": (320, 640, 3, 3),
        f"{unet}.out.2.weight": (4, 320, 3, 3),
        f"{vae}.encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        f"{vae}.decoder.mid.attn_1.proj_out.weight": (512, 512, 1, 1),
        f"{vae}.decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
        f"{vae}.decoder.up.3.block.0.conv1.weight": (512, 512, 3, 3),
        f"{vae}.encoder.conv_out.weight": (8, 512, 3, 3),
        f"{vae}.quant_conv.weight": (8, 8, 1, 1),
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (49408, 768),
    }
    assert {name: shapes[name] for name in known} == known
    import math

    assert sum(math.prod(shape) for shape in shapes.values()) == 859_520_964 + 83_653_863 + 123_060_480


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_an_unknown_name_is_refused(part: str) -> None:
    with pytest.raises(ModelError, match=r"down_blocks\.9\.conv\.weight: .* does not know"):
        layout.original_keys(part, ["down_blocks.9.conv.weight"])


def test_old_names_of_the_vae_attention_mean_the_same() -> None:
    old = [f"encoder.mid_block.attentions.0.{name}.weight" for name in ("query", "key", "value", "proj_attn")]
    place = "first_stage_model.encoder.mid.attn_1"
    assert list(layout.original_keys("vae", old).values()) == [
        f"{place}.{n}.weight" for n in ("q", "k", "v", "proj_out")
    ]
    with pytest.raises(ModelError, match="twice"):
        layout.original_keys("vae", [*old, "encoder.mid_block.attentions.0.to_q.weight"])


def test_the_text_encoder_goes_with_and_without_prefix_and_position_ids() -> None:
    names = ["final_layer_norm.bias", "text_model.final_layer_norm.weight", "text_model.embeddings.position_ids"]
    place = "cond_stage_model.transformer.text_model.final_layer_norm"
    assert layout.original_keys("text_encoder", names) == {names[0]: f"{place}.bias", names[1]: f"{place}.weight"}
