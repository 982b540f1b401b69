"""A family's layout: its table, and a plan for the way from parts to one file and back, made from names and shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from fastdb.errors import ModelError
from fastdb.models.layouts import clip, vae
from fastdb.models.layouts.tensor_mapping import Line, Shape
from fastdb.models.layouts.unet import ROOT as UNET_ROOT

CONV_IN = f"{UNET_ROOT}.input_blocks.0.0.weight"
AGAIN = "Download the model again; a download may have been cut short."
CLIP_KEY = re.compile(r"((?:cond_stage_model|conditioner\.embedders\.0)\.transformer\.)(?!text_model\.)")


def modern_name(part: str, name: str) -> str:
    """The name that today's diffusers and files from the Hub use for a tensor, given an older or a shorter one."""
    if part.startswith("text_encoder"):
        return clip.modern(name)
    return vae.modern(name) if part == "vae" else name


def modern_key(key: str) -> str:
    """The key that an original file has for a tensor, given one without `text_model.`, as some converters write it."""
    return CLIP_KEY.sub(rf"\1{clip.PREFIX}", key)


def ema_key(key: str) -> str:
    """Where an original file keeps the running average of a weight of the UNet: its dots are gone there."""
    return "model_ema." + key.removeprefix("model.").replace(".", "")


@dataclass(frozen=True, kw_only=True)
class Move:
    """A tensor on its way: the line of the table, where it is read and in which shapes it is written."""

    line: Line
    stored: tuple[str, ...]
    """The names as the source spells them: on the way to a file those in the part, in the order of `line.names`; on the
    way to diffusers one key."""
    shapes: tuple[Shape, ...]
    """What is written: one shape for `line.original`, or one for each of `line.names`."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What an original file of a family holds, and what of it diffusers has in which part."""

    family: str
    title: str
    """The family as people call it."""
    lines: Mapping[str, Line]
    """Every key that a file must have, with its line."""
    channels: int
    """Channels that the UNet takes: 4 of a latent, 9 for inpainting."""
    position_ids: tuple[str, ...]
    """Keys of int64 position numbers, [1, tokens], which old readers of files of this family expect."""
    optional: re.Pattern[str]
    """Whole keys that a file may have beside `lines`."""

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The parts of the diffusers folder."""
        return tuple(dict.fromkeys(line.part for line in self.lines.values()))

    @cached_property
    def by_name(self) -> Mapping[tuple[str, str], Line]:
        """The table by part and name in diffusers."""
        return {(line.part, name): line for line in self.lines.values() for name in line.names}

    def known(self, part: str, names: Iterable[str]) -> dict[str, str]:
        """Today's name of each tensor of a part -> the name as given; position numbers are left out.

        Raises:
            ModelError: a name that the family does not have, or two names of the same tensor.
        """
        found: dict[str, str] = {}
        for name in names:
            modern = modern_name(part, name)
            if modern == clip.POSITION_IDS:
                continue
            if (part, modern) not in self.by_name:
                what = f"the {part} has a tensor that {self.title} does not know"
                raise ModelError(what, where=name, fix=f"Give the {part} of a {self.title}.")
            if modern in found:
                what = f"the {part} holds this tensor twice, also as {found[modern]}"
                raise ModelError(what, where=name, fix="Save the model again with one library.")
            found[modern] = name
        return found

    def to_original(self, parts: Mapping[str, Mapping[str, Shape]]) -> list[Move]:
        """The plan of a file: every key it must have, in the order of the table, and what it is made of.

        Args:
            parts: of each part the names, in any generation of diffusers, and shapes.

        Raises:
            ModelError: a part or a tensor is missing, unknown, there twice, or has a shape it cannot have.
        """
        if set(parts) != set(self.parts):
            what = f"a {self.title} is made of {', '.join(self.parts)}, not of {', '.join(sorted(parts)) or 'nothing'}"
            raise ModelError(what, where=self.family, fix="Give all parts of one model.")
        names = {part: self.known(part, shapes) for part, shapes in parts.items()}
        missing = [(part, name) for part, name in self.by_name if name not in names[part]]
        if missing:
            part, name = missing[0]
            raise ModelError(f"the {part} lacks {len(missing)} tensors, among them this", where=name, fix=AGAIN)
        moves = []
        for line in self.lines.values():
            stored = tuple(names[line.part][name] for name in line.names)
            shape = line.original_shape(*(tuple(parts[line.part][name]) for name in stored))
            self._check_channels(line.original, shape)
            moves.append(Move(line=line, stored=stored, shapes=(shape,)))
        return moves

    def to_diffusers(self, file: Mapping[str, Shape]) -> list[Move]:
        """The plan of a folder: every tensor of every part, in the order of the table, and the key it comes from.

        Args:
            file: the keys of an original file and their shapes; what is optional is left out.

        Raises:
            ModelError: a key is missing, unknown (see `unknown`), there twice, or has a shape it cannot have.
        """
        strangers = self.unknown(file)
        if strangers:
            what = f"{self.title} does not know this tensor, the first of {len(strangers)}"
            raise ModelError(what, where=strangers[0], fix=f"Give a file of a {self.title}.")
        found: dict[str, str] = {}
        for key in file:
            modern = modern_key(key)
            if modern in found:
                what = f"the file holds this tensor twice, also as {found[modern]}"
                raise ModelError(what, where=key, fix="Choose another copy of this model.")
            found[modern] = key
        missing = [key for key in self.lines if key not in found]
        if missing:
            what = f"the file lacks {len(missing)} tensors of a {self.title}, among them this"
            raise ModelError(what, where=missing[0], fix=AGAIN)
        moves = []
        for key, line in self.lines.items():
            shape = tuple(file[found[key]])
            self._check_channels(key, shape)
            moves.append(Move(line=line, stored=(found[key],), shapes=line.shapes(shape)))
        return moves

    def unknown(self, keys: Iterable[str]) -> list[str]:
        """The keys that a file of this family neither must nor may have, sorted."""
        modern = {key: modern_key(key) for key in keys}
        return sorted(key for key, name in modern.items() if name not in self.lines and not self.is_optional(name))

    def is_optional(self, key: str) -> bool:
        """Whether a file may have this key without having to."""
        return self.optional.fullmatch(key) is not None

    def _check_channels(self, key: str, shape: Shape) -> None:
        if key == CONV_IN and shape[1:2] != (self.channels,):
            found = shape[1] if len(shape) > 1 else "no"
            what = f"this UNet takes {found} channels, and that of a {self.title} {self.channels}"
            kind = "an inpainting model" if found == 9 else "another kind of model"
            raise ModelError(what, where=key, fix=f"It belongs to {kind}; name the family it is of.")
