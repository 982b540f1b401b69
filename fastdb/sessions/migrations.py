"""`session.yaml` of earlier formats brought up to date: a numbered step from each to the next, on plain data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

FORMAT = 2
"""What this version writes. A new number takes a step below, and a sample of the old format in `tests/formats`."""


def to_2(data: Mapping[str, Any]) -> dict[str, Any]:
    """1 -> 2: `lineage` and `written_by`.

    The lineage follows from when the session was made, and from what: read on two machines before it was written
    on either, and in copies that took its checkpoints along, it is the same.
    """
    base = data.get("base_model")
    made_from = base.get("fingerprint") if isinstance(base, Mapping) else base
    digest = hashlib.sha256(f"{data.get('created')}\n{made_from}".encode("utf-8", "replace")).hexdigest()
    return {**data, "format": 2, "written_by": "", "lineage": digest[:32]}


STEPS: Mapping[int, Callable[[Mapping[str, Any]], dict[str, Any]]] = {1: to_2}
"""By the format they start from."""


def migrated(data: Mapping[str, Any]) -> dict[str, Any]:
    """The data of a `session.yaml` of format 1 to `FORMAT` as it would be in `FORMAT`; `data` stays as it is.

    Raises:
        KeyError: its format is none of these.
    """
    now = dict(data)
    while now["format"] != FORMAT:
        now = STEPS[now["format"]](now)
    return now
