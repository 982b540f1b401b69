"""Validation of settings, with all faults in one message."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from fastdb.errors import ConfigError


class Settings(BaseModel):
    """Frozen group of settings that rejects unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


Built = TypeVar("Built", bound=Settings)


def build(kind: type[Built], data: Any, where: object = None) -> Built:
    """Build `kind` from plain data, with `where` as the name of its file in messages.

    Raises:
        ConfigError: all faults in one message, with the nearest existing name for an unknown name.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        faults = [_sentence(kind, fault) for fault in error.errors(include_url=False)]
        raise ConfigError("; ".join(faults), where=where, fix="Correct this and run the same command again.") from None


_WHOLE, _NUMBER = "must be a whole number, such as 1500", "must be a number, such as 0.5 or 2e-6"
_BOOLEAN, _LIST = "must be true or false", "must be a list, such as ['a', 'b']"
_RULES: dict[str, str] = {
    "int_parsing": _WHOLE,
    "int_type": _WHOLE,
    "int_from_float": _WHOLE,
    "int_parsing_size": _WHOLE,
    "float_parsing": _NUMBER,
    "float_type": _NUMBER,
    "finite_number": "must be a finite number",
    "bool_parsing": _BOOLEAN,
    "bool_type": _BOOLEAN,
    "string_type": "must be text",
    "string_pattern_mismatch": "must match {pattern}",
    "tuple_type": _LIST,
    "too_long": "must have at most {max_length} entries",
    "literal_error": "must be {expected}",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be greater than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "model_type": "must be a mapping of setting names to values",
    "dict_type": "must be a mapping of setting names to values",
}
"""The rule that a value breaks, by the type of pydantic's error."""


_WORDS = ("token", "class", "class_word", "subject", "base", "base_model")
"""Words of a session that are no settings."""


def _sentence(kind: type[Settings], fault: Mapping[str, Any]) -> str:
    """Return the clause for a fault: the setting, its value and the rule it breaks."""
    name = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        if isinstance(fault["input"], Mapping) and "." not in str(fault["loc"][-1]):
            name = ".".join([name, *(str(part) for part in list(fault["input"])[:1])])
        if str(fault["loc"][-1]) in _WORDS:
            return f"there is no setting {name}: token, class and base model are changed with fastdb change"
        near = difflib.get_close_matches(name, _names(kind), n=1, cutoff=0.5)
        return f"there is no setting {name}" + (f" (did you mean {near[0]}?)" if near else "")
    if name in _WORDS and fault["type"] in ("model_type", "dict_type"):
        return f"there is no setting {name}: token, class and base model are changed with fastdb change"
    if fault["type"] == "missing":
        return f"{name} is missing"
    rule = _RULES.get(fault["type"], "")
    if rule:
        rule = rule.format(
            **{key: f"{value:g}" if isinstance(value, float) else value for key, value in fault.get("ctx", {}).items()}
        )
    else:
        rule = str(fault["msg"]).removeprefix("Value error, ")
    given = fault["input"]
    # A number typed on the command line arrives as text; it is shown without quotes.
    shown = given if isinstance(given, str) and re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", given, re.I) else repr(given)
    shown = shown if len(shown) <= 200 else f"{shown[:200]}..."
    return f"{name or 'the file'} is {shown}, but {rule}"


def _names(kind: type[Settings], before: str = "") -> list[str]:
    """Return the dotted names of all settings below `kind`."""
    names: list[str] = []
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Settings):
            names += _names(inner, f"{before}{name}.")
        else:
            names.append(f"{before}{name}")
    return names
