"""Instance prompts from file names, templates and caption files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fastdb.errors import ImageError
from fastdb.images.photo_files import photos_in
from fastdb.storage.atomic_write import explained

_DROPPED = re.compile(r"[()\[\]{}\-]")


@dataclass(frozen=True)
class InstanceImage:
    """An image to train on with its prompt."""

    path: Path
    prompt: str
    bare: str
    """The prompt without the caption."""


def instance_images_of(instance_images: Path, captions: Path | None, template: str | None) -> list[InstanceImage]:
    """Return the images to train on with their prompts, in natural order.

    A prompt is the template, or else the text of the file name, followed by the caption if there is one.

    Args:
        instance_images: the folder of images.
        captions: the folder of caption files, or None to ignore captions.
        template: the prompt of every image, such as "a photo of sks cup"; None or blank uses the file names.

    Raises:
        ImageError: the folder has no images, a caption is not UTF-8 text, or a prompt would be empty.
        StorageError: the disk does not answer.
    """
    with explained(instance_images):
        paths = photos_in(instance_images, skip_copies=True) if instance_images.is_dir() else []
    if not paths:
        raise ImageError("the folder has no instance images", where=instance_images, fix="Run add-images first.")
    texts = {path: read_caption(captions / f"{path.stem}.txt") if captions else "" for path in paths}
    images = []
    for path, caption in texts.items():
        subject = " ".join((template or "").split()) or prompt_from_name(path.stem)
        prompt = f"{subject} {' '.join(caption.split())}".strip()
        if not prompt:
            raise ImageError(
                "the file name gives no prompt",
                where=path.stem,
                fix='Rename the photo, for example to "sks cup (1)", or set the subject token and class.',
            )
        # Without a subject the caption is the whole prompt, and dropping captions must not leave it empty.
        images.append(InstanceImage(path, prompt, subject or prompt))
    return images


def instance_prompt(token: str, class_word: str) -> str:
    """Return the prompt of every instance image for a subject; empty without one."""
    words = " ".join(word for word in (token, class_word) if word)
    return f"a photo of {words}" if words else ""


def prompt_from_name(stem: str) -> str:
    """Return the prompt for a photo's name, as the classic notebook.

    It removes digits, brackets and `-`, and replaces `_` by a space, so that "sks_cup (3)" gives "sks cup".
    """
    without_digits = "".join(character for character in stem if not character.isdigit())
    return " ".join(_DROPPED.sub("", without_digits.replace("_", " ")).split())


def read_caption(path: Path) -> str:
    """Return the text of a caption file, if it exists.

    Raises:
        ImageError: the file has another encoding or cannot be read.
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
    return ImageError("the caption is not UTF-8 text", where=path, fix="Save it as UTF-8.")
