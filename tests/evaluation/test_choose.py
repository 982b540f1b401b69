"""Which checkpoint is picked, on tables made up to have one right answer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastdb.evaluation.choose import Pick, Row, bound_of, pick
from fastdb.evaluation.measures import Figure, Limit, Value, difference, value_of

LIKE = Figure("like", "likeness", True, goal=True)
FOLLOW = Figure("follow", "prompts", True, limit=Limit(times=1, plus=-0.03), broken="prompts are not followed")
LEAK = Figure("leak", "class", False, limit=Limit(plus=0.1), broken="the class turns into the subject", prior=True)
FIGURES = (LIKE, FOLLOW, LEAK)


def table(*rows: tuple[float, float, float], error: float = 0.01) -> list[Row]:
    """Rows at steps 0, 100, 200 and so on, each (like, follow, leak)."""
    names = ("like", "follow", "leak")
    return [
        Row(f"step {100 * number}", {name: Value(mean, error, 9) for name, mean in zip(names, row, strict=True)})
        for number, row in enumerate(rows)
    ]


def picked(*rows: tuple[float, float, float], error: float = 0.01) -> Pick:
    return pick(table(*rows, error=error), FIGURES)


def test_the_most_likeness_is_picked_when_every_limit_is_kept() -> None:
    found = picked((0.2, 0.30, 0), (0.4, 0.30, 0), (0.7, 0.29, 0.05), (0.6, 0.29, 0.05))
    assert (found.row, found.label, found.overfit, found.remarks) == (2, "step 200", "", ())
    assert found.reason == "its likeness is 0.700, the best, and every limit is kept"


def test_of_equals_within_the_noise_the_earliest_is_picked() -> None:
    found = picked((0.2, 0.3, 0), (0.4, 0.3, 0), (0.695, 0.3, 0), (0.69, 0.3, 0), (0.7, 0.3, 0))
    assert found.label == "step 200"
    assert "within the noise (±0.010) of the best, 0.700 at step 400, and it trained less" in found.reason
    sharp = picked((0.2, 0.3, 0), (0.4, 0.3, 0), (0.695, 0.3, 0), (0.69, 0.3, 0), (0.7, 0.3, 0), error=0.001)
    assert sharp.label == "step 400"


def test_a_checkpoint_that_breaks_a_limit_is_not_picked_however_alike() -> None:
    found = picked((0.2, 0.30, 0), (0.5, 0.30, 0), (0.8, 0.20, 0), (0.9, 0.15, 0.4))
    assert found.label == "step 100"
    assert found.reason == "its likeness is 0.500, and it alone keeps every limit"
    assert found.overfit == (
        "likeness still rises, to 0.900 at step 300, but prompts are not followed (follow 0.200, wanted at least 0.270)"
        " at step 200; the class turns into the subject (leak 0.400, wanted at most 0.100) at step 300. "
        "Keep to the earlier checkpoint; prior preservation (the setting prior.class_images) helps against it."
    )


def test_prior_preservation_is_named_only_where_it_helps() -> None:
    found = picked((0.2, 0.30, 0), (0.5, 0.30, 0), (0.4, 0.20, 0))
    assert found.overfit.startswith("prompts are not followed (follow 0.200")
    assert "rises" not in found.overfit
    assert found.overfit.endswith("at step 200. Keep to the earlier checkpoint.")


def test_a_limit_that_is_only_just_kept_is_kept() -> None:
    kept = picked((0.2, 0.25, 0), (0.5, 0.25, 0), (0.8, 0.25, 0.1))
    assert (kept.label, kept.overfit) == ("step 200", "")
    assert picked((0.2, 0.25, 0), (0.5, 0.25, 0), (0.8, 0.25, 0.1001)).label == "step 100"


def test_when_all_break_a_limit_the_fewest_broken_is_picked_and_said() -> None:
    found = picked((0.2, 0.30, 0), (0.5, 0.30, 0.2), (0.8, 0.30, 0.5), (0.9, 0.10, 0.9))
    assert found.label == "step 200"
    assert found.reason == "its likeness is 0.800, the best; it breaks 1 of the limits, and no other breaks fewer"
    assert "(leak 0.500, wanted at most 0.100) at step 200" in found.overfit
    assert "Train anew with fewer steps or a lower rate; prior preservation" in found.overfit


def test_one_checkpoint_alone_is_picked_for_want_of_others() -> None:
    found = picked((0.2, 0.3, 0), (0.6, 0.3, 0))
    assert (found.label, found.reason) == ("step 100", "its likeness is 0.600, and every limit is kept")
    bad = picked((0.2, 0.3, 0), (0.6, 0.3, 0.3))
    assert bad.reason == "its likeness is 0.600; it breaks 1 of the limits"


def test_it_is_said_when_nothing_was_learned() -> None:
    found = picked((0.2, 0.3, 0), (0.205, 0.3, 0), (0.2, 0.3, 0))
    assert found.remarks == (
        "little was learned: likeness is 0.205 at step 100 and 0.200 at step 0; train longer, or at a higher rate",
    )


def test_it_is_said_when_training_ended_too_early() -> None:
    found = picked((0.2, 0.3, 0), (0.4, 0.3, 0), (0.6, 0.3, 0))
    assert found.remarks == ("likeness still rises (by 0.200 since step 100): more steps may help",)
    assert picked((0.2, 0.3, 0), (0.59, 0.3, 0), (0.6, 0.3, 0)).remarks == ()


def test_likeness_is_the_mean_of_all_goals() -> None:
    rows = [
        Row("step 0", {"like": Value(0.0), "too": Value(0.0)}),
        Row("step 1", {"like": Value(0.9), "too": Value(0.3)}),
        Row("step 2", {"like": Value(0.7), "too": Value(0.7)}),
    ]
    assert pick(rows, (LIKE,)).label == "step 1"
    assert pick(rows, (LIKE, replace(LIKE, name="too"))).reason.startswith("its likeness is 0.700")


def test_figures_that_are_not_there_decide_nothing() -> None:
    rows = [Row(row.label, {"leak": row.values["leak"]}) for row in table((0, 0, 0), (0, 0, 0.0), (0, 0, 0.3))]
    found = pick(rows, FIGURES)
    assert (found.label, found.reason) == (
        "step 100",
        "no prompt asks for the subject, so its likeness is not known",
    )
    assert bound_of(FOLLOW, rows[0].values) is None
    assert bound_of(LEAK, rows[0].values) == pytest.approx(0.1)


def test_a_table_without_checkpoints_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="nothing to choose from"):
        pick(table((0, 0, 0)), FIGURES)


def test_a_value_is_a_mean_with_its_standard_error() -> None:
    value = value_of([1, 2, 3, 4])
    assert value is not None
    assert (value.mean, value.count) == (2.5, 4)
    assert value.error == pytest.approx((5 / 3) ** 0.5 / 2)
    assert value_of([7]) == Value(7, 0, 1)
    assert value_of([]) is None
    apart = difference(Value(0.5, 0.03, 9), Value(0.1, 0.04, 5))
    assert (apart.mean, apart.error, apart.count) == (pytest.approx(0.4), pytest.approx(0.05), 9)
