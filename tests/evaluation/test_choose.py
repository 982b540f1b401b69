"""Choice of a checkpoint from made-up tables with a known right answer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastdb.evaluation.choose import Pick, Row, pick
from fastdb.evaluation.measures import Figure, Limit, Value, values_of
from fastdb.reporting import Note

LIKE = Figure("like", "likeness", True, goal=True)
FOLLOW = Figure("follow", "prompts", True, limit=Limit(times=1, plus=-0.03), broken="prompts are not followed")
LEAK = Figure("leak", "class", False, limit=Limit(plus=0.1), broken="the class turns into the subject", prior=True)
FIGURES = (LIKE, FOLLOW, LEAK)


def table(*rows: tuple[float, float, float], error: float = 0.01) -> list[Row]:
    """Return rows at steps 0, 100, 200 and so on, each (like, follow, leak)."""
    names = ("like", "follow", "leak")
    return [
        Row(f"step {100 * number}", {name: Value(mean, error, 9) for name, mean in zip(names, row, strict=True)})
        for number, row in enumerate(rows)
    ]


PRIOR = Note("overfit prior", "prior.class_images")


def picked(*rows: tuple[float, float, float], error: float = 0.01) -> Pick:
    return pick(table(*rows, error=error), FIGURES)


def test_the_greatest_likeness_within_every_limit_is_picked() -> None:
    found = picked((0.2, 0.30, 0), (0.4, 0.30, 0), (0.7, 0.29, 0.05), (0.6, 0.29, 0.05))
    assert (found.row, found.label, found.notes) == (2, "step 200", ())
    assert found.reason == "likeness 0.700, the best; every limit is kept"


def test_the_earliest_within_the_noise_is_picked() -> None:
    found = picked((0.2, 0.3, 0), (0.4, 0.3, 0), (0.695, 0.3, 0), (0.69, 0.3, 0), (0.7, 0.3, 0))
    assert found.label == "step 200"
    assert "within the noise (±0.010) of the best (0.700 at step 400) after fewer steps" in found.reason
    sharp = picked((0.2, 0.3, 0), (0.4, 0.3, 0), (0.695, 0.3, 0), (0.69, 0.3, 0), (0.7, 0.3, 0), error=0.001)
    assert sharp.label == "step 400"


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
    assert found.reason == "likeness 0.800, the best; 1 broken limit, the fewest"
    assert [note.kind for note in found.notes] == ["overfit", "overfit likeness", "overfit prior"]
    assert "at step 200 (leak 0.500, limit at most 0.100)" in found.notes[0].reason


def test_a_single_checkpoint_is_picked() -> None:
    found = picked((0.2, 0.3, 0), (0.6, 0.3, 0))
    assert (found.label, found.reason) == ("step 100", "likeness 0.600; every limit is kept")
    bad = picked((0.2, 0.3, 0), (0.6, 0.3, 0.3))
    assert bad.reason == "likeness 0.600; 1 broken limit"


def test_a_note_reports_that_little_was_learned() -> None:
    found = picked((0.2, 0.3, 0), (0.205, 0.3, 0), (0.2, 0.3, 0))
    assert found.notes == (Note("little learned", "step 100", "likeness 0.205 at step 100, 0.200 at step 0"),)


def test_a_note_reports_that_training_ended_too_early() -> None:
    found = picked((0.2, 0.3, 0), (0.4, 0.3, 0), (0.6, 0.3, 0))
    assert found.notes == (Note("likeness rising", "step 100", "0.200"),)
    assert picked((0.2, 0.3, 0), (0.59, 0.3, 0), (0.6, 0.3, 0)).notes == ()


def test_likeness_is_the_mean_of_all_goals() -> None:
    rows = [
        Row("step 0", {"like": Value(0.0), "too": Value(0.0)}),
        Row("step 1", {"like": Value(0.9), "too": Value(0.3)}),
        Row("step 2", {"like": Value(0.7), "too": Value(0.7)}),
    ]
    assert pick(rows, (LIKE,)).label == "step 1"
    assert pick(rows, (LIKE, replace(LIKE, name="too"))).reason.startswith("likeness 0.700")


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


def test_a_value_is_a_mean_with_its_standard_error() -> None:
    values = values_of({"several": [1, 2, 3, 4], "single": [7], "none": []})
    assert (values["several"].mean, values["several"].count) == (2.5, 4)
    assert values["several"].error == pytest.approx((5 / 3) ** 0.5 / 2)
    assert values["single"] == Value(7, 0, 1)
    assert "none" not in values
    apart = Value(0.5, 0.03, 9) - Value(0.1, 0.04, 5)
    assert (apart.mean, apart.error, apart.count) == (pytest.approx(0.4), pytest.approx(0.05), 9)
