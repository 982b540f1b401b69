"""Warnings about settings, words and photos of a session."""

from __future__ import annotations

import re

from fastdb.config.lora import LoRAConfig
from fastdb.errors import ImageError
from fastdb.images.captions import instance_images_of, prompt_from_name
from fastdb.images.photo_files import photos_in
from fastdb.reporting import Note, argument, counted
from fastdb.runtime.gpu import find_gpu
from fastdb.sessions.session import Session

_CAMERA = re.compile(
    r"(?i)(img|dsc|dscn|dscf|dsc_|pxl|gopr|mvimg|vid|p|pic|picture|image|photo|photos|screenshot|screen shot|capture"
    r"|scan|whatsapp|whatsapp image|wa|signal|fb|fb_img|telegram|snapchat|received|download|unnamed|untitled|user|file"
    r"|burst|pano|camera|foto)( image)?( ?at)?"
)
"""Texts that remain of the names that cameras, messengers and browsers give, such as IMG of IMG_2041."""

SHOWN = 3
"""Prompts and names in one line."""


def setting_warnings(session: Session, size: int | None = None) -> list[Note]:
    """Return the warnings about a session's settings and words.

    Args:
        size: image size of its base model in pixels, if known.
    """
    config, subject = session.config, session.record.subject
    notes = []
    if size and not size // 2 <= config.resolution <= size * 5 // 4:
        notes.append(Note("resolution unusual", str(config.resolution), str(size)))
    if config.precision in ("fp16", "bf16"):
        gpu = find_gpu()
        if gpu is None and config.precision == "fp16":
            notes.append(Note("precision needs a GPU", config.precision))
        elif gpu is not None and config.precision == "bf16" and not gpu.has_bf16:
            notes.append(Note("precision emulated", config.precision, gpu.name))
    if config.method != "lora" and (unused := config.lora.model_dump().items() - LoRAConfig().model_dump().items()):
        names = ", ".join(sorted(f"lora.{name}" for name, _ in unused))
        notes.append(Note("lora settings unused", names, argument(session.name)))
    words = subject.token.casefold().split()
    if subject.class_word and set(subject.class_word.casefold().split()) & set(words):
        notes.append(Note("class word in token", subject.token, config.captions.instance_prompt))
    elif subject.token and subject.token not in (prompt := config.captions.instance_prompt or subject.token):
        notes.append(Note("token not in prompt", subject.token, prompt))
    elif not subject.token and subject.class_word:
        notes.append(Note("no token", subject.class_word, config.captions.instance_prompt))
    return notes


def prompts_of(session: Session) -> list[str]:
    """Return the distinct prompts of the instance images, in their order; empty if they cannot be told."""
    config = session.config.captions
    try:
        images = instance_images_of(
            session.instance_images,
            session.captions if config.caption_files else None,
            config.instance_prompt or None,
        )
    except ImageError:
        return []
    return list(dict.fromkeys(image.prompt for image in images))


def prompt_notes(session: Session) -> list[Note]:
    """Return a note of the prompts that will be trained, and a warning if they are cameras' names or missing."""
    prompts = prompts_of(session)
    if not prompts:
        named = photos_in(session.instance_images, skip_copies=True)
        silent = [path.stem for path in named if not prompt_from_name(path.stem)]
        return [Note("no prompt", argument(session.name), ", ".join(map(repr, silent[:SHOWN])))] if silent else []
    notes = [Note("prompts", counted(len(prompts), "prompt"), shown_prompts(prompts))]
    if not session.config.captions.instance_prompt:
        names = [path.stem for path in photos_in(session.instance_images, skip_copies=True)]
        camera = [name for name in names if _CAMERA.fullmatch(prompt_from_name(name).strip(" ._"))]
        if camera:
            notes.append(Note("prompts from camera names", ", ".join(camera[:SHOWN]), f"{len(camera)} of {len(names)}"))
    return notes


def shown_prompts(prompts: list[str]) -> str:
    """Return the first prompts in one line."""
    rest = f" and {len(prompts) - SHOWN} more" if len(prompts) > SHOWN else ""
    return ", ".join(repr(prompt) for prompt in prompts[:SHOWN]) + rest
