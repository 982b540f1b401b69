"""Writes docs/settings.md from the settings themselves; `--check` says whether it is up to date."""

from __future__ import annotations

import sys
from pathlib import Path

from fastdb.config import Config, Settings

TARGET = Path(__file__).with_suffix(".md")
EXTENSIONS = (
    "`fastdb extend NAME --steps 500 --schedule rewarm` adds to `unet.extensions`, and `fastdb train NAME` takes the",
    "steps. The result equals, to the last bit, that of a run which had them from the beginning. One that has begun",
    "stays as it is; those after it may be changed or removed.",
    "",
    "![The rate falls to 0; then it stays, falls again, or rises in the first tenth and falls](schedules.png)",
    "",
    "`rewarm` begins near 0, where training ended, and falls to 0 again; it is taken where nothing is said. `decay`",
    "has no rise, for extensions of a few steps. `hold` does not end at 0, for when more will follow. Beside a",
    "text encoder that trains in the UNet's stage (`joint`), an extension is the UNet's alone, unless",
    "`text_encoder.steps` reach into it.",
)


def page() -> str:
    """The page as it should be."""
    lines = [
        "# Settings",
        "",
        "`fastdb new NAME --set unet.steps=800` or `fastdb train NAME --set unet.steps=800`.",
        "",
    ]
    lines += ["| setting | default | meaning |", "|---|---|---|"]
    lines += rows(Config)
    lines += ["", "## Further steps", "", *EXTENSIONS]
    return "\n".join([*lines, "", "Written by `docs/settings.py` from `fastdb/config.py`.", ""])


def rows(kind: type[Settings], before: str = "") -> list[str]:
    """A line a setting, groups after single ones as they come."""
    made = []
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Settings):
            made += rows(inner, f"{before}{name}.")
        else:
            default = f"`{field.default}`" if field.default not in ("", ()) else "empty"
            made.append(f"| `{before}{name}` | {default} | {field.description} |")
    return made


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(0 if TARGET.read_text(encoding="utf-8") == page() else f"{TARGET} is out of date: run {__file__}")
    TARGET.write_text(page(), encoding="utf-8")
