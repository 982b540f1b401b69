"""The safe YAML loader equals PyYAML, and refuses other input with its line."""

from __future__ import annotations

import pytest
import yaml

from fastdb.storage.safe_yaml import parse

SAME = [
    "", "a", "a: 1", "a: [1, 2.5, 1e-6, 1.0e-06, .inf, -.5, 0x1F, 010, 1_000, 12:30]", "a: {b: {c: [d, {e: f}]}}",
    "a: null\nb: ~\nc:\nd: ''", "a: yes\nb: No\nc: true\nd: 'true'\ne: \"no\"",
    "a: 2026-11-20\nb: 2026-11-20T10:00:00Z",
    "a: |\n  lines\n  kept\nb: >\n  lines\n  folded\n", "a: 'it''s'\nb: \"\\u00e9\\n\"", "- a\n- - b\n  - c\n- d: e",
    "# comment\na: b # more\n", "2: a\ntrue: b\nnull: c", "c: +1", "---\na: b\n...\n",
]  # fmt: skip


@pytest.mark.parametrize("text", SAME)
def test_values_equal_those_of_pyyaml(text: str) -> None:
    assert repr(parse(text)) == repr(yaml.safe_load(text))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: &x 1\nb: *x", 2),
        ("a: !!python/object:os.system x", 1),
        ("a: !!set {b}", 1),
        ("a: b\n? [c]\n: d", 2),
        ("a: 1\na: 2\n", 2),
        ("a: 1\n--- \nb: 2", 2),
        ("a:\n" + "[" * 30 + "]" * 30, 2),
        ("[" * 100_000, 1),
        ("a: [", 1),
        ("\ta: b", 1),
        ("a: b\nc: 'd", 2),
    ],
)
def test_what_could_harm_is_refused_with_its_place(text: str, line: int) -> None:
    with pytest.raises(yaml.MarkedYAMLError) as caught:
        parse(text)
    assert caught.value.problem_mark is not None
    assert caught.value.problem_mark.line + 1 in (line, line + 1, line + 2)


def test_a_date_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="month"):
        parse("a: 2026-13-45")
