"""Likeness of a stage's samples to the instance images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from fastdb.downloads.encoders import cached_encoder
from fastdb.images.photo_files import photos_in
from fastdb.images.photos import read_photo
from fastdb.measures.drawn import autoencoder
from fastdb.models.diffusers_folder import BaseModel
from fastdb.models.registry import MINI
from fastdb.sessions.session import Session
from fastdb.world.likeness import read_subject

if TYPE_CHECKING:
    from PIL.Image import Image


def sample_likeness(session: Session, base: BaseModel) -> Callable[[Sequence[Image]], float] | None:
    """Return a function from pictures of the subject to their mean likeness, at most 1; None if nothing can read them.

    On mini it is the score of the drawn world's reading, elsewhere the cosine similarity by a DINO model in the cache.
    Nothing is downloaded.
    """
    if not session.config.samples.every_steps:
        return None
    images = [read_photo(path) for path in photos_in(session.instance_images)]
    if session.record.base_model.folder == MINI:
        subject = read_subject(images, autoencoder(base.folder))
        if subject is None:
            return None
        return lambda pictures: fmean(likeness.layout for likeness in subject.find(pictures))
    from fastdb.measures.encoders import DINO, Dino  # loads transformers' models of pictures, seldom needed

    folder = cached_encoder(DINO)
    if folder is None:
        return None
    dino = Dino(str(folder), "cpu")
    own = dino.images(images)
    return lambda pictures: fmean((dino.images(pictures) @ own.T).mean(dim=1).tolist())
