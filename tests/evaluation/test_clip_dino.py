"""CLIP and DINO figures of tiny random models, compared with an independent computation."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from PIL import Image
from transformers import CLIPModel, CLIPTokenizer, ViTModel

from fastdb.errors import ModelError
from fastdb.measures.clip_dino import Likeness
from fastdb.measures.encoders import Clip, Dino
from fastdb.measures.shots import Shot
from fastdb.measures.values import Taken, Value, values_of

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def taken(photos: list[Path]) -> list[Taken]:
    """Crops of real photos instead of drawn pictures: two subject, six context, two class, two other pictures."""
    asked = [("subject", "a photo of sks cup")] * 2
    asked += [
        ("context", f"a photo of sks cup {place}") for place in ("in snow", "on grass", "on a table") for _ in "ab"
    ]
    asked += [("class", "a photo of cup")] * 2 + [("others", "a photo of a red house"), ("others", "a tree")]
    whole = [Image.open(path).convert("RGB") for path in photos]
    made = []
    for number, (group, prompt) in enumerate(asked):
        photo = whole[number % 3]
        left, top, side = 13 * number, 7 * number, 100 + 9 * number
        made.append(Taken(Shot(group, prompt, number), photo.crop((left, top, left + side, top + side + number))))
    return made


@pytest.fixture(scope="module")
def instances(photos: list[Path]) -> list[Image.Image]:
    return [Image.open(path).convert("RGB").crop((20, 20, 220, 220)) for path in photos]


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def clip_pictures(folder: Path, pictures: Sequence[Image.Image]) -> np.ndarray:
    """Compute CLIP's image embeddings by its parts, picture by picture."""
    model, found = CLIPModel.from_pretrained(folder), []
    for picture in pictures:
        scale = 32 / min(picture.size)
        small = picture.resize([int(side * scale) for side in picture.size], Image.Resampling.BICUBIC)
        left, top = (small.width - 32) // 2, (small.height - 32) // 2
        array = np.asarray(small.crop((left, top, left + 32, top + 32)), np.float32) / 255
        array = (array - np.array(CLIP_MEAN, np.float32)) / np.array(CLIP_STD, np.float32)
        with torch.no_grad():
            state = model.vision_model(torch.from_numpy(array).permute(2, 0, 1)[None]).last_hidden_state[:, 0]
            state = model.vision_model.post_layernorm(state) @ model.visual_projection.weight.T
        found.append(state.numpy()[0])
    return unit(np.stack(found))


def clip_texts(folder: Path, prompts: Sequence[str]) -> np.ndarray:
    """Compute CLIP's text embeddings, the state at the end token, prompt by prompt."""
    model, tokenizer = CLIPModel.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    found = []
    for prompt in prompts:
        numbers = tokenizer(prompt)["input_ids"]
        assert numbers[-1] == tokenizer.eos_token_id
        with torch.no_grad():
            state = model.text_model(torch.tensor([numbers])).last_hidden_state[:, -1]
            found.append((state @ model.text_projection.weight.T).numpy()[0])
    return unit(np.stack(found))


def dino_pictures(folder: Path, pictures: Sequence[Image.Image]) -> np.ndarray:
    model, found = ViTModel.from_pretrained(folder), []
    for picture in pictures:
        array = np.asarray(picture.resize((32, 32), Image.Resampling.BILINEAR), np.float32) / 255
        with torch.no_grad():
            state = model(torch.from_numpy(array * 2 - 1).permute(2, 0, 1)[None]).last_hidden_state[:, 0]
        found.append(state.numpy()[0])
    return unit(np.stack(found))


def near(value: Value, numbers: Sequence[float]) -> bool:
    assert (value.count, value.share) == (len(numbers), False)
    assert list(value.readings.values()) == pytest.approx(list(numbers), abs=1e-3)
    assert value.low is not None
    assert value.high is not None
    assert value.low <= value.mean <= value.high
    return value.mean == pytest.approx(np.mean(numbers), abs=2e-4)


def test_embeddings_match_the_models(clip: Path, dino: Path, taken: list[Taken]) -> None:
    pictures = [item.picture for item in taken]
    ours = Clip(str(clip), "cpu").images(pictures)
    assert ours.shape == (12, 16)
    assert np.abs(ours.numpy() - clip_pictures(clip, pictures)).max() < 2e-3
    assert np.abs(Dino(str(dino), "cpu").images(pictures).numpy() - dino_pictures(dino, pictures)).max() < 2e-3
    apart = ours @ ours.T
    assert apart.min() < 0.95, "random, but not blind"


def test_several_batches_give_the_same_embeddings(clip: Path, dino: Path, taken: list[Taken]) -> None:
    pictures = [item.picture for item in taken]
    for model in (Clip(str(clip), "cpu"), Dino(str(dino), "cpu")):
        several = model.images(pictures * 3)
        assert torch.allclose(several[:12], several[24:], atol=1e-5)
        assert torch.allclose(several[5], model.images([pictures[5]])[0], atol=1e-5)
    prompts = [item.shot.prompt for item in taken]
    texts = Clip(str(clip), "cpu")
    assert torch.allclose(texts.texts(prompts * 2)[14], texts.texts([prompts[2]])[0], atol=1e-5)


def test_the_figures_match_their_definitions(
    clip: Path, dino: Path, taken: list[Taken], instances: list[Image.Image]
) -> None:
    measure = Likeness(Clip(str(clip), "cpu"), Dino(str(dino), "cpu"), instances, "sks")
    found = measure.read(taken)
    pictures, known = clip_pictures(clip, [item.picture for item in taken]), clip_pictures(clip, instances)
    texts = clip_texts(clip, [item.shot.prompt.replace("sks ", "") for item in taken])
    seen, theirs = dino_pictures(dino, [item.picture for item in taken]), dino_pictures(dino, instances)
    clip_i = [float(np.mean([picture @ other for other in known])) for picture in pictures]
    clip_t = [float(picture @ text) for picture, text in zip(pictures, texts, strict=True)]
    assert near(found.values["clip_i"], clip_i[:8])
    assert near(found.values["dino"], [float(np.mean([picture @ other for other in theirs])) for picture in seen[:8]])
    assert near(found.values["clip_t"], clip_t[2:8])
    assert near(found.values["class_clip_i"], clip_i[8:10])
    assert near(found.values["others"], clip_t[10:12])
    pairs = [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert near(found.values["diversity"], [1 - float(pictures[first] @ pictures[second]) for first, second in pairs])
    own = np.mean([max(theirs[at] @ theirs[other] for other in range(3) if other != at) for at in range(3)])
    nearest = [max(float(picture @ other) for other in theirs) for picture in seen]
    assert found.values["copies"].mean == pytest.approx(np.mean([similarity >= own for similarity in nearest[2:8]]))
    assert [line["clip_i"] for line in found.pictures] == pytest.approx(clip_i, abs=1e-3)
    assert [line["nearest"] for line in found.pictures] == pytest.approx(nearest, abs=1e-3)


def test_the_leak_is_the_increase_over_the_untrained_base(clip: Path, instances: list[Image.Image]) -> None:
    measure = Likeness(Clip(str(clip), "cpu"), None, instances, "sks")
    before = dict(enumerate([0.5, 0.3, 0.7, 0.4]))
    start = values_of({"class_clip_i": before})
    now = values_of({"class_clip_i": {number: value + 0.12 + 0.01 * number for number, value in before.items()}})
    leak = measure.compare(now, start)["leak"]
    assert (leak.mean, leak.count) == (pytest.approx(0.135), 4)
    assert leak.low is not None
    assert leak.high is not None
    assert 0.1 < leak.low < leak.high < 0.17, "picture by picture, though pictures differ by more"
    assert measure.compare({}, start) == {}


def test_copies_of_instance_images_are_found(clip: Path, instances: list[Image.Image], taken: list[Taken]) -> None:
    measure = Likeness(Clip(str(clip), "cpu"), None, instances, "sks")
    copies = [Taken(Shot("context", "a photo of sks cup in snow", n), image) for n, image in enumerate(instances)]
    values = measure.read(copies).values
    assert (values["copies"].mean, values["copies"].share) == (1.0, True)
    assert "copies" not in measure.read(taken[:2]).values
    single = Likeness(Clip(str(clip), "cpu"), None, instances[:1], "sks").read(copies).values
    assert "copies" not in single, "a single image has no other image to compare with"


def test_equal_pictures_have_no_diversity(clip: Path, instances: list[Image.Image]) -> None:
    measure = Likeness(Clip(str(clip), "cpu"), None, instances, "")
    same = [Taken(Shot("subject", "a cup", seed), instances[0]) for seed in range(3)]
    assert measure.read(same).values["diversity"].mean == pytest.approx(0, abs=1e-6)
    assert "diversity" not in measure.read(same[:1]).values
    assert measure.read([]).values == {}


def test_without_dino_its_figure_is_left_out(clip: Path, dino: Path, instances: list[Image.Image]) -> None:
    alone = Likeness(Clip(str(clip), "cpu"), None, instances, "")
    both = Likeness(Clip(str(clip), "cpu"), Dino(str(dino), "cpu"), instances, "")
    assert [figure.name for figure in both.figures if figure.goal] == ["dino", "clip_i"]
    assert [figure.name for figure in alone.figures if figure.goal] == ["clip_i"]
    assert alone.name == f"CLIP {clip}; no DINO"
    assert both.name == f"CLIP {clip}, DINO {dino}"


def test_gallery_and_drift_match_their_definitions(
    clip: Path, dino: Path, instances: list[Image.Image], taken: list[Taken]
) -> None:
    class_images = [item.picture.rotate(90) for item in taken[:4]]
    measure = Likeness(Clip(str(clip), "cpu"), Dino(str(dino), "cpu"), instances, "sks", class_images)
    start = measure.read(taken).values
    moved = [Taken(item.shot, item.picture.rotate(40)) for item in taken]
    now = measure.read(moved).values
    photos = dino_pictures(dino, instances)
    before, after = (dino_pictures(dino, [item.picture for item in items]) for items in (taken, moved))
    subject = [number for number, item in enumerate(taken) if item.shot.group in ("subject", "context")]
    base = [number for number, item in enumerate(taken) if item.shot.group == "class"]
    for name, gallery in (("gallery", dino_pictures(dino, class_images)), ("gallery_base", before[base])):
        apart = (gallery @ photos.T).mean(1)
        pairs = [[similarity > other for other in apart] for similarity in (after[subject] @ photos.T).mean(1)]
        assert now[name].mean == pytest.approx(np.mean(pairs), abs=1e-6)
        assert now[name].count == len(subject)
    others = [number for number, item in enumerate(taken) if item.shot.group == "others"]
    assert list(now["drift"].readings.values()) == pytest.approx(
        [1 - float(after[number] @ before[number]) for number in others], abs=1e-3
    )
    assert "drift" not in start
    assert "photos_told" in start
    assert "photos_told" not in now


def test_an_embedding_that_cannot_tell_the_photos_is_named(clip: Path, instances: list[Image.Image]) -> None:
    shots = [Shot("subject", "a photo of sks cup", 1), Shot("class", "a photo of cup", 2)]

    photos = [instances[0].rotate(angle) for angle in (0, 2, 4)]

    def remarks(class_images: list[Image.Image]) -> list[str]:
        measure = Likeness(Clip(str(clip), "cpu"), None, photos, "sks", class_images)
        measure.read([Taken(shot, instances[0]) for shot in shots])
        return [note.kind for note in measure.remarks()]

    assert remarks(photos) == ["embedding blind"]
    assert remarks(instances[1:]) == []


def test_a_long_prompt_is_truncated(clip: Path) -> None:
    model = Clip(str(clip), "cpu")
    long = model.texts(["a photo of a cup " * 30, "a cup"])
    assert long.shape == (2, 16)
    assert torch.allclose(long[1], model.texts(["a cup"])[0], atol=1e-5)


@pytest.mark.parametrize("name", ["/nowhere/clip", "./clip", "~/no/clip", "just_a_word", "a/b/c"])
def test_a_missing_folder_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        Clip(name, "cpu")
    assert str(caught.value) == f"{name}: the folder does not exist. Pass --clip the folder of a saved model."


def test_a_failed_download_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError) as caught:
        Dino("nobody/none-such", "cpu")
    line = str(caught.value)
    assert line.startswith("nobody/none-such: the model is not cached and could not be downloaded (")
    assert line.endswith(
        "Pass --dino the folder of a saved model, or connect to the network and run the same command again."
    )
    assert len(line.splitlines()) == 1


def test_pickled_weights_are_not_read(clip: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clip, tmp_path / "clip")
    model = CLIPModel.from_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    assert Clip(str(folder), "cpu").name == str(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"the model could not be loaded \(Error no file named model\.safetensors"):
        Clip(str(folder), "cpu")


@pytest.mark.parametrize(
    ("without", "message"),
    [
        ("config.json", "could not be loaded"),
        ("preprocessor_config.json", "could not be loaded"),
        ("tokenizer.json", "the tokenizer is missing"),
    ],
)
def test_an_incomplete_folder_is_refused(clip: Path, tmp_path: Path, without: str, message: str) -> None:
    folder = shutil.copytree(clip, tmp_path / "clip")
    (folder / without).unlink()
    with pytest.raises(ModelError, match=message) as caught:
        Clip(str(folder), "cpu")
    assert str(caught.value).startswith(f"{folder}: ")
    assert len(str(caught.value).splitlines()) == 1


def test_old_names_of_image_processors_work(clip: Path, tmp_path: Path) -> None:
    """openai/clip-vit-base-patch32 names CLIPFeatureExtractor, and its crop size is a single number."""
    import json

    folder = shutil.copytree(clip, tmp_path / "clip")
    path = folder / "preprocessor_config.json"
    config = json.loads(path.read_text())
    config.pop("image_processor_type")
    config |= {"feature_extractor_type": "CLIPFeatureExtractor", "size": 32, "crop_size": 32, "resample": 3}
    path.write_text(json.dumps(config))
    picture = Image.effect_mandelbrot((50, 40), (-2, -1.5, 1, 1.5), 50).convert("RGB")
    assert torch.allclose(Clip(str(folder), "cpu").images([picture]), Clip(str(clip), "cpu").images([picture]))
