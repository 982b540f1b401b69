"""Instance prompts: from the photo's name by the classic rule, or from a template, with the caption after it."""

from __future__ import annotations

import re
from pathlib import Path

from fastdb.errors import ImageError

_DROPPED = re.compile(r"[()\[\]{}\-]")


def prompt_from_name(stem: str) -> str:
    """The prompt a photo's name stands for: "sks_cup (3)" gives "sks cup".

    The classic notebook's rule: digits out, `_` to a space, brackets and `-` out, white space collapsed.
    """
    without_digits = "".join(character for character in stem if not character.isdigit())
    return " ".join(_DROPPED.sub("", without_digits.replace("_", " ")).split())


def instance_prompt(stem: str, caption: str, template: str | None) -> str:
    """The prompt of one instance image: `template` or else the name, then the caption if there is one.

    Args:
        stem: the instance image's name without its ending.
        caption: text of its caption file, "" for none.
        template: a whole instance prompt such as "a photo of sks cup"; None or blank takes the name.

    Raises:
        ImageError: nothing is left of the name and there is neither template nor caption.
    """
    prompt = f"{subject_of(stem, template)} {' '.join(caption.split())}".strip()
    if not prompt:
        raise ImageError(
            "the name gives no prompt",
            where=stem,
            fix='Rename the photo, such as "sks cup (1)", or set the subject token and class.',
        )
    return prompt


def subject_of(stem: str, template: str | None) -> str:
    """What an instance prompt says before the caption: `template`, or else what the name stands for; may be empty."""
    return " ".join((template or "").split()) or prompt_from_name(stem)


def read_caption(path: Path) -> str:
    """Text of a caption file in UTF-8, stripped; "" when there is no such file.

    Raises:
        ImageError: it is in another encoding or cannot be read.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ImageError(f"the caption cannot be read ({error.strerror})", where=path, fix="Check the file.") from error
    except UnicodeDecodeError as error:
        raise _wrong_encoding(path) from error
    if "\0" in text:
        raise _wrong_encoding(path)
    return text.strip()


def _wrong_encoding(path: Path) -> ImageError:
    return ImageError("the caption is not UTF-8 text", where=path, fix="Save it again with the encoding UTF-8.")
