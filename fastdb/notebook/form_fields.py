"""Values of form fields, which are texts."""

from __future__ import annotations

from fastdb import console
from fastdb.errors import ConfigError
from fastdb.sessions.session import Session


def named(session: Session | str, use: str) -> bool:
    """Return whether a session was named; if not, show what the field is for."""
    if isinstance(session, Session) or session.strip():
        return True
    console.say(f"Enter the name of a session to {use}")
    return False


def whole_number(field: str, text: str) -> int | None:
    """Return a field's whole number, or None if it is empty.

    Raises:
        ConfigError: it is no whole number.
    """
    text = str(text).strip()
    if not text:
        return None
    if not text.isdecimal():
        raise ConfigError(f"{text!r} is not a whole number", where=field, fix="Correct the field, or empty it.")
    return int(text)


def number(field: str, text: str) -> float:
    """Return a field's number.

    Raises:
        ConfigError: it is no number.
    """
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{text!r} is not a number", where=field, fix="Correct the field, or empty it.") from None
