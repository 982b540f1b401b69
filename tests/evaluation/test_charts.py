"""Charts of made-up figures and pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from PIL import Image, ImageColor

from fastdb.evaluation.candidates import Candidate, PictureCache
from fastdb.evaluation.charts import (
    _LIMIT,
    _LINE,
    _PICKED,
    Curve,
    _grid_shots,
    _round_range,
    draw_curves,
    draw_grid,
)
from fastdb.evaluation.choose import Pick
from fastdb.evaluation.prompts import Group, Protocol
from fastdb.evaluation.report import Evaluation
from fastdb.inference.request import Request
from fastdb.measures.values import Value


def where(sheet: Image.Image, colour: str) -> np.ndarray:
    """Return the rows and columns of the pixels of a colour."""
    return np.argwhere((np.asarray(sheet) == ImageColor.getrgb(colour)).all(-1))


BAND = "#d5ddf5"
"""A translucent band on white."""

RISING = Curve("like", "likeness", [(0, Value(0.1)), (500, Value(0.4, 0.3, 0.5)), (1000, Value(0.9))])


def test_a_curve_rises_from_left_to_right() -> None:
    line = where(draw_curves([RISING], "cup", None), _LINE)
    left, right = line[line[:, 1].argmin()], line[line[:, 1].argmax()]
    assert right[0] < left[0] - 100, "a higher value stands higher"
    assert right[1] > left[1] + 250


def test_the_picked_step_is_green_and_the_limit_dashed() -> None:
    plain = draw_curves([RISING], "cup", None)
    assert len(where(plain, _PICKED)) == len(where(plain, _LIMIT)) == 0
    marked = draw_curves([Curve("like", "likeness", RISING.points, limit=0.5)], "cup", 1000)
    green, dots = where(marked, _PICKED), where(marked, _LINE)
    assert green[:, 1].min() > dots[:, 1].mean(), "the last step is on the right"
    dashes = where(marked, _LIMIT)
    assert len(np.unique(dashes[:, 0])) == 1
    assert 100 < len(np.unique(dashes[:, 1])) < 300, "dashes, with gaps between them"


def test_a_band_reaches_from_the_lower_to_the_upper_bounds() -> None:
    bare = Curve("like", "", [(0, Value(0.5)), (1000, Value(0.5))], limit=1.0)
    wide = Curve("like", "", [(0, Value(0.5, 0.25, 0.75)), (1000, Value(0.5, 0.4, 0.6))], limit=1.0)
    assert len(where(draw_curves([bare], "", None), BAND)) == 0
    band = where(draw_curves([wide], "", None), BAND)
    first, last = (band[band[:, 1] == column][:, 0] for column in (band[:, 1].min() + 5, band[:, 1].max() - 5))
    assert np.ptp(first) > 2 * np.ptp(last) > 20


def test_a_sheet_grows_with_its_curves() -> None:
    flat = Curve("flat", "the same", [(0, Value(0.0)), (10, Value(0.0))])
    below = Curve("below", "words " * 60, [(0, Value(-3.0)), (10, Value(-2.5)), (11, Value(1e4, 5e3, 2e4))])
    single, four = draw_curves([flat], "t", 10), draw_curves([flat, below, RISING, flat], "t " * 200, 10)
    assert single.width < four.width
    assert single.height < four.height
    assert len(where(four, _LINE)) > 3 * len(where(single, _LINE)) / 2


@pytest.mark.parametrize(
    ("values", "bounds"),
    [
        ([0.1, 0.9], (0.0, 1.0)),
        ([0.52, 0.58], (0.52, 0.58)),
        ([-0.3, 12.0], (-5.0, 15.0)),
        ([0.5], (0.5, 0.5002)),
        ([0.0, 0.0], (0.0, 0.0002)),
    ],
)
def test_axes_end_at_round_numbers_around_the_values(values: list[float], bounds: tuple[float, float]) -> None:
    low, high = _round_range(values)
    assert (low, high) == pytest.approx(bounds)
    assert low <= min(values)
    assert high >= max(values)


PROTOCOL = Protocol(
    (
        Group("subject", "", ("s",), times=4),
        Group("context", "", tuple(f"c{number}" for number in range(9))),
        Group("class", "", ("k",)),
        Group("others", "", ("o0", "o1")),
    ),
    2,
)


def test_the_grid_shows_prompts_of_each_group() -> None:
    assert [shot.prompt for shot in _grid_shots(PROTOCOL)] == ["s", "c0", "c1", "c2", "c3", "k", "o0", "o1"]
    assert {shot.turn for shot in _grid_shots(PROTOCOL)} == {0}
    assert [shot.prompt for shot in _grid_shots(PROTOCOL, most=3)] == ["s", "c0", "k"]


def test_few_prompts_are_shown_with_several_seeds() -> None:
    protocol = Protocol((Group("subject", "", ("s",), times=2), Group("class", "", ("k",))), 2)
    found = _grid_shots(protocol)
    assert [(shot.prompt, shot.turn) for shot in found] == [("s", 0), ("s", 0), ("s", 1), ("s", 1), ("k", 0), ("k", 1)]
    assert sorted(found, key=protocol.shots().index) == protocol.shots()


def test_the_grid_has_instance_images_above_a_row_per_checkpoint(tmp_path: Path) -> None:
    candidates = [Candidate(f"step {step}", step, str(step), lambda: None) for step in (0, 10, 20)]  # type: ignore[arg-type, return-value]
    cache = PictureCache(tmp_path / "pictures", Request("", width=64, height=64), "fp32")
    tones = {0: (250, 0, 0), 10: (0, 250, 0), 20: (0, 0, 250)}
    shots = _grid_shots(PROTOCOL)
    for candidate in candidates:
        for number, shot in enumerate(shots):
            path = cache.path(candidate, shot)
            path.parent.mkdir(parents=True, exist_ok=True)
            red, green, blue = tones[candidate.step or 0]
            Image.new("RGB", (64, 64), (red, green, blue + number)).save(path)
    photo = tmp_path / "photo.png"
    Image.new("RGB", (64, 64), (9, 200, 200)).save(photo)

    def grid(picked: int) -> Image.Image:
        evaluation = Evaluation("cup", {}, "", (), PROTOCOL, candidates, (), Pick(picked, "", ""))
        return draw_grid(cache, evaluation, [photo], "cup")

    sheet = grid(2)
    tops = [where(sheet, f"rgb{tone}")[:, 0].min() for tone in ((9, 200, 200), (250, 0, 0), (0, 250, 0), (0, 0, 250))]
    assert tops == sorted(tops)
    lefts = [where(sheet, f"rgb(250,0,{number})")[:, 1].min() for number in range(len(shots))]
    assert lefts == sorted(lefts)
    other = grid(1)
    rows = np.flatnonzero((np.asarray(sheet) != np.asarray(other)).any((1, 2)))
    assert rows.min() > tops[2], "only the mark beside the picked row differs"
