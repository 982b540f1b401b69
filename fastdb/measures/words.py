"""Words of a session that its pictures are asked for and read by."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fastdb.images.captions import instance_images_of
from fastdb.measures.shots import contains, without
from fastdb.sessions.session import Session


@dataclass(frozen=True)
class Words:
    """The instance prompts of a session, its identifier, its class word and the class prompt that it preserves.

    All but the first may be empty.
    """

    instance_prompts: tuple[str, ...]
    token: str
    class_word: str
    class_prompt: str = ""

    @property
    def plain(self) -> str:
        """The class prompt, or else the first instance prompt without the identifier; empty if there is neither."""
        plain = self.class_prompt or without(self.instance_prompts[0], self.token)
        if plain != self.instance_prompts[0]:
            return plain
        return f"a photo of {self.class_word}" if self.class_word else ""

    def with_token(self, token: str) -> str:
        """Return the first instance prompt with another identifier; empty if it contains none."""
        prompt = self.instance_prompts[0]
        if not contains(prompt, self.token):
            return ""
        return re.sub(rf"(?<!\w){re.escape(self.token)}(?!\w)", lambda _: token, prompt, flags=re.IGNORECASE)


def words_of(session: Session, most: int = 4) -> Words:
    """Return the words of a session, with at most `most` of the prompts of its images.

    Raises:
        ImageError: there are no instance images, or a caption cannot be read.
    """
    captions, subject = session.config.captions, session.record.subject
    prompts = [captions.instance_prompt]
    if not captions.instance_prompt:
        folder = session.captions if captions.caption_files else None
        prompts = [image.prompt for image in instance_images_of(session.instance_images, folder, None)]
    kept = next((prompt for prompt in session.class_prompts if contains(prompt, subject.class_word)), "")
    return Words(tuple(dict.fromkeys(prompts))[:most], subject.token, subject.class_word, kept)
