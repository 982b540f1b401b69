"""Pictures of scenes: outlines of classes, textures of two tones, decorations on the body."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from fastdb.world.draw import SIDE, TILE, _tone, background, draw, rgb, second_tone
from fastdb.world.scene import BACKGROUNDS, COLOURS, DECORATIONS, SHAPES, TEXTURES, Decoration, Pose, Scene

TILTED = Pose(0.35, 0.54, 0.47, 0.15)


def plain(shape: str, pose: Pose = Pose(), **changes: object) -> Scene:  # noqa: B008
    scene = Scene(shape, "red", "white", "plain", COLOURS["red"], BACKGROUNDS["white"], pose)
    return replace(scene, **changes)  # type: ignore[arg-type]


def pixels(scene: Scene) -> np.ndarray:
    return np.asarray(draw(scene), np.int32)


def differ(first: Scene, second: Scene, least: int = 0) -> np.ndarray:
    """Return a mask of the pixels that differ by more than `least` in some channel."""
    seen: np.ndarray = (abs(pixels(first) - pixels(second)) > least).any(-1)
    return seen


def test_a_picture_is_a_function_of_its_scene(scenes: list[Scene]) -> None:
    first = [draw(scene) for scene in scenes[:20]]
    assert [picture.tobytes() for picture in first] == [draw(scene).tobytes() for scene in scenes[:20]]
    assert {(picture.mode, picture.size) for picture in first} == {("RGB", (SIDE, SIDE))}
    assert len({picture.tobytes() for picture in first}) == 20


@pytest.mark.parametrize("pose", [Pose(), TILTED])
def test_classes_differ_in_every_pose(pose: Pose) -> None:
    alike = {
        pair: int(differ(plain(pair[0], pose), plain(pair[1], pose), 60).sum()) for pair in combinations(SHAPES, 2)
    }
    assert len(alike) == 45
    assert min(alike.values()) >= 300, min(alike, key=alike.__getitem__)


def test_an_object_has_its_colour_and_stands_on_its_background() -> None:
    for name, colour in COLOURS.items():
        seen = pixels(plain("ball", colour=colour))
        assert tuple(seen[SIDE // 2, SIDE // 2]) == colour, name
        assert tuple(seen[0, 0]) == BACKGROUNDS["white"]


def test_an_object_follows_its_pose() -> None:
    def seen(pose: Pose) -> np.ndarray:
        found: np.ndarray = (pixels(plain("ball", pose)) != BACKGROUNDS["white"]).any(-1)
        return found

    def middle(pose: Pose) -> tuple[float, float]:
        down, across = np.nonzero(seen(pose))
        return float(across.mean()), float(down.mean())

    assert middle(Pose(x=0.56, y=0.44)) == pytest.approx((0.56 * SIDE - 0.5, 0.44 * SIDE - 0.5), abs=0.5)
    sizes = seen(Pose(0.42)).sum() / seen(Pose(0.33)).sum()
    assert sizes == pytest.approx((0.42 / 0.33) ** 2, rel=0.05)
    # A boat's sail is right of its mast; turned by a right angle clockwise it is below.
    dark = pixels(plain("boat", Pose(tilt=0.0)))[20, 38:44].mean()
    turned = pixels(plain("boat", Pose(tilt=np.pi / 2)))[38:44, SIDE - 21].mean()
    assert turned == pytest.approx(dark, abs=12)


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_a_texture_has_two_tones(name: str) -> None:
    colour = BACKGROUNDS[name]
    second = second_tone(colour)
    assert (sum(second) > sum(colour)) == (name == "black")
    assert np.abs(np.subtract(colour, second)).max() >= 24
    shares = {}
    for texture in TEXTURES:
        seen = np.asarray(background(colour, texture)).reshape(-1, 3)
        assert {tuple(pixel) for pixel in seen.tolist()} == ({colour} if texture == "plain" else {colour, second})
        shares[texture] = float((seen == second).all(-1).mean())
    assert shares["plain"] == 0
    assert shares["striped"] == shares["checkered"] == 0.5
    assert 0.15 < shares["dotted"] < 0.25


def test_textures_are_laid_in_tiles() -> None:
    blue = BACKGROUNDS["blue"]
    second = {texture: (np.asarray(background(blue, texture)) != blue).any(-1) for texture in TEXTURES}
    for texture, seen in second.items():
        assert (seen == np.roll(seen, (2 * TILE, 2 * TILE), (0, 1))).all(), texture
    assert (second["striped"] == second["striped"][0]).all()
    assert (second["checkered"] == ~np.roll(second["checkered"], TILE, 0)).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_decorations_are_visible_on_the_body_alone(shape: str) -> None:
    for pose in (Pose(), TILTED):
        bare = plain(shape, pose)
        # What changes with the object's colour is its body.
        body = differ(bare, replace(bare, colour=(20, 200, 240)))
        assert body.sum() > 200
        for name in DECORATIONS:
            worn = differ(bare, replace(bare, decoration=Decoration(name, (30, 220, 30))))
            assert not (worn & ~body).any(), name
            assert 20 <= worn.sum() < body.sum(), name


def test_tones_stay_in_range() -> None:
    assert _tone((100, 200, 250), 0.5) == (50, 100, 125)
    assert _tone((100, 200, 250), 1.5) == (150, 255, 255)
    assert rgb("#10a0ff") == (16, 160, 255)
