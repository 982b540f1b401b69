"""Choice of a checkpoint from made-up pictures with a known right answer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastdb.evaluation.choose import Pick, Row, pick
from fastdb.measures.values import Figure, Limit, Value, values_of
from fastdb.reporting import Note

LIKE = Figure("like", "likeness", True, goal=True)
FOLLOW = Figure("follow", "prompts", True, limit=Limit(times=1, plus=-0.03), broken="prompts are not followed")
LEAK = Figure("leak", "class", False, limit=Limit(plus=0.1), broken="the class turns into the subject", prior=True)
FIGURES = (LIKE, FOLLOW, LEAK)


def share(mean: float, count: int, first: int = 0) -> dict[int, bool]:
    """Readings of pictures of which the first show the subject, so that checkpoints differ on as few as possible."""
    return {first + number: number < round(mean * count) for number in range(count)}


def table(*rows: tuple[float, float, float], count: int = 1000) -> list[Row]:
    """Return rows at steps 0, 100, 200 and so on, each (like, follow, leak)."""
    return [
        Row(
            f"step {100 * number}",
            {**values_of({"like": share(like, count)}), "follow": Value(follow), "leak": Value(leak)},
        )
        for number, (like, follow, leak) in enumerate(rows)
    ]


PRIOR = Note("overfit prior", "prior.class_images")


def picked(*rows: tuple[float, float, float], count: int = 1000) -> Pick:
    return pick(table(*rows, count=count), FIGURES)


def test_the_greatest_likeness_within_every_limit_is_picked() -> None:
    found = picked((0.2, 0.30, 0), (0.4, 0.30, 0), (0.7, 0.29, 0.05), (0.6, 0.29, 0.05))
    assert (found.row, found.label, found.notes, found.undecided) == (2, "step 200", (), ())
    assert found.reason == "likeness 0.700, the best; step 300 has 0.600 (-0.12 to -0.08); every limit is kept"


def test_the_earliest_that_loses_little_for_certain_is_picked() -> None:
    found = picked((0.2, 0.3, 0), (0.4, 0.3, 0), (0.69, 0.3, 0), (0.68, 0.3, 0), (0.7, 0.3, 0))
    assert (found.label, found.undecided) == ("step 200", ())
    assert found.reason.startswith("likeness 0.690, at most 0.05 below the best (0.700 at step 400) after fewer steps")


def test_few_pictures_leave_it_undecided() -> None:
    rows = ((0.2, 0.3, 0), (0.1, 0.3, 0), (0.68, 0.3, 0), (0.7, 0.3, 0), (0.1, 0.3, 0))
    found = picked(*rows, count=50)
    assert (found.label, found.undecided) == ("step 200", (2, 3))
    assert found.reason == (
        "likeness 0.680, the earliest of those in question; undecided between step 200 and step 300; "
        "every limit is kept"
    )
    assert picked(*rows).label == "step 200"
    assert picked(*rows).undecided == ()
    three = picked((0, 0.3, 0), (0.5, 0.3, 0), (0.52, 0.3, 0), (0.55, 0.3, 0), count=20)
    assert "undecided between step 100, step 200 and step 300" in three.reason
    assert picked((0.2, 0.3, 0), (0.5, 0.3, 0), (0.5, 0.3, 0), count=1).undecided == (1, 2), (
        "one picture proves nothing"
    )


def test_pictures_are_compared_one_by_one() -> None:
    """The same shares decide if the checkpoints agree on most pictures, and do not if they differ on many."""
    count = 200
    other = {number: number >= count - 140 for number in range(count)}
    start = Row("step 0", values_of({"like": share(0, count)}))
    alike = [start, *(Row(f"step {number}", values_of({"like": share(0.7, count)})) for number in (1, 2))]
    assert pick(alike, (LIKE,)).undecided == ()
    assert pick([*alike[:2], Row("step 2", values_of({"like": other}))], (LIKE,)).undecided == (1, 2)


def test_a_checkpoint_beyond_a_limit_is_not_picked_despite_its_likeness() -> None:
    found = picked((0.2, 0.30, 0), (0.5, 0.30, 0), (0.8, 0.20, 0), (0.9, 0.15, 0.4))
    assert found.label == "step 100"
    assert found.reason == "likeness 0.500; the only checkpoint within every limit"
    limits = (
        "prompts are not followed at step 200 (follow 0.200, limit at least 0.270); "
        "the class turns into the subject at step 300 (leak 0.400, limit at most 0.100)"
    )
    rising = Note("overfit likeness", "step 300", "0.900")
    assert found.notes == (Note("overfit later", "step 100", limits), rising, PRIOR)


def test_prior_preservation_is_suggested_only_if_it_helps() -> None:
    found = picked((0.2, 0.30, 0), (0.5, 0.30, 0), (0.4, 0.20, 0))
    assert found.notes == (
        Note("overfit later", "step 100", "prompts are not followed at step 200 (follow 0.200, limit at least 0.270)"),
    )


def test_a_value_equal_to_its_limit_is_within_it() -> None:
    kept = picked((0.2, 0.25, 0), (0.5, 0.25, 0), (0.8, 0.25, 0.1))
    assert (kept.label, [note.kind for note in kept.notes]) == ("step 200", ["likeness rising"])
    assert picked((0.2, 0.25, 0), (0.5, 0.25, 0), (0.8, 0.25, 0.1001)).label == "step 100"


def test_without_a_checkpoint_within_all_limits_the_fewest_broken_is_picked() -> None:
    found = picked((0.2, 0.30, 0), (0.5, 0.30, 0.2), (0.8, 0.30, 0.5), (0.9, 0.10, 0.9))
    assert found.label == "step 200"
    assert found.reason == "likeness 0.800, the best; step 100 has 0.500 (-0.33 to -0.27); 1 broken limit, the fewest"
    assert [note.kind for note in found.notes] == ["overfit", "overfit likeness", "overfit prior"]
    assert "at step 200 (leak 0.500, limit at most 0.100)" in found.notes[0].reason


def test_a_single_checkpoint_is_picked() -> None:
    found = picked((0.2, 0.3, 0), (0.6, 0.3, 0))
    assert (found.label, found.reason) == ("step 100", "likeness 0.600; every limit is kept")
    bad = picked((0.2, 0.3, 0), (0.6, 0.3, 0.3))
    assert bad.reason == "likeness 0.600; 1 broken limit"


def test_a_note_reports_that_little_was_learned() -> None:
    found = picked((0.5, 0.3, 0), (0.502, 0.3, 0), (0.5, 0.3, 0))
    assert found.notes == (Note("little learned", "step 100", "likeness 0.502 at step 100, 0.500 at step 0"),)


def test_a_note_reports_that_training_ended_too_early() -> None:
    found = picked((0.2, 0.3, 0), (0.4, 0.3, 0), (0.6, 0.3, 0))
    assert found.notes == (Note("likeness rising", "step 100", "0.200"),)
    assert picked((0.2, 0.3, 0), (0.59, 0.3, 0), (0.6, 0.3, 0)).notes == ()


def test_likeness_is_the_mean_of_all_goals() -> None:
    """Some pictures count in two goals, others in one."""
    too = replace(LIKE, name="too")

    def row(step: int, like: float, other: float) -> Row:
        return Row(f"step {step}", values_of({"like": share(like, 300), "too": share(other, 600)}))

    rows = [row(0, 0, 0), row(1, 0.9, 0.3), row(2, 0.7, 0.7)]
    assert pick(rows, (LIKE,)).label == "step 1"
    assert pick(rows, (LIKE, too)).reason.startswith("likeness 0.700, the best; step 1 has 0.600 (-0.1")


def test_missing_figures_decide_nothing() -> None:
    rows = [Row(row.label, {"leak": row.values["leak"]}) for row in table((0, 0, 0), (0, 0, 0.0), (0, 0, 0.3))]
    found = pick(rows, FIGURES)
    assert (found.label, found.reason) == (
        "step 100",
        "no prompt asks for the subject, so its likeness is unknown",
    )
    assert FOLLOW.bound(rows[0].values) is None
    assert LEAK.bound(rows[0].values) == pytest.approx(0.1)


def test_a_table_without_checkpoints_raises() -> None:
    with pytest.raises(ValueError, match="nothing to choose from"):
        pick(table((0, 0, 0)), FIGURES)


def test_a_value_shows_its_interval_where_it_has_one() -> None:
    values = values_of({"several": dict(enumerate([1.0, 2.0, 3.0, 4.0])), "single": {0: 7.0}, "none": {}})
    assert (values["several"].mean, values["several"].count) == (2.5, 4)
    assert str(values["single"]) == "7.000"
    assert "none" not in values
    shown = values_of({"shown": {number: number < 12 for number in range(16)}})["shown"]
    assert str(shown) == "0.750 [0.51, 0.90]"
    assert str(values_of({"shown": dict.fromkeys(range(16), True)})["shown"]) == "1.000 [0.81, 1.00]"
    assert str(shown - shown).startswith("0.000 [-0."), "16 pictures prove no more"
    with pytest.raises(ValueError, match="no picture in common"):
        values["single"] - Value(1.0)
