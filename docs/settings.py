"""Write docs/settings.md from fastdb/config; `--check` compares only."""

from __future__ import annotations

import sys
from pathlib import Path

from fastdb.config import Config, Settings

TARGET = Path(__file__).with_suffix(".md")
FURTHER_STEPS = (
    "`fastdb extend NAME --steps 500 --schedule rewarm` adds to `unet.extensions`, and `fastdb train NAME` runs the",
    "added steps. The result is bitwise equal to that of a run that had them from the beginning. An extension that",
    "has begun cannot be changed; `fastdb extend NAME --remove` removes those of which no step was trained.",
    "",
    "![The learning rate falls to 0; then it stays constant, falls again, or rises and falls](schedules.png)",
    "",
    "`rewarm`, the default, starts near 0, where training ended, rises, and falls to 0 again. `decay` falls to 0",
    "without rising first, for extensions of a few steps. `hold` stays constant, for further extensions after it.",
    "If the text encoder trains in the UNet stage (`joint`), an extension trains only the UNet, unless",
    "`text_encoder.steps` reach into it.",
)


def page() -> str:
    """Return the page as it should be."""
    lines = [
        "# Settings",
        "",
        "Change a setting with `fastdb new NAME --set unet.steps=800` or `fastdb train NAME --set unet.steps=800`.",
        "",
    ]
    lines += ["| setting | default | meaning |", "|---|---|---|"]
    lines += rows(Config)
    lines += ["", "## Further steps", "", *FURTHER_STEPS]
    return "\n".join([*lines, "", "Written by `docs/settings.py` from `fastdb/config`.", ""])


def rows(kind: type[Settings], before: str = "") -> list[str]:
    """Return a table row per setting, in the order of the fields."""
    lines = []
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Settings):
            lines += rows(inner, f"{before}{name}.")
        else:
            default = f"`{field.default}`" if field.default not in ("", ()) else "empty"
            lines.append(f"| `{before}{name}` | {default} | {field.description} |")
    return lines


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(0 if TARGET.read_text(encoding="utf-8") == page() else f"{TARGET} is out of date: run {__file__}")
    TARGET.write_text(page(), encoding="utf-8")
