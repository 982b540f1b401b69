"""Subjects of the drawn world, absent from all training pictures."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from fastdb.world.draw import draw, rgb
from fastdb.world.scene import (
    BACKGROUNDS,
    CAR_BODY,
    CAR_CABIN,
    FISH_BODY,
    FISH_EYE,
    FISH_TAIL,
    HOUSE_OPENINGS,
    HOUSE_WALL,
    MUG_BODY,
    MUG_HANDLE,
    WHEELS,
    Colour,
    Figure,
    Layer,
    Pose,
    Scene,
)

TEAL, LIME, CORAL, ORANGE, NAVY = "#10a0a0", "#b4dc28", "#f87860", "#f08418", "#202c78"
"""Colours of subjects. No caption has a word for them, except for the orange."""


@dataclass(frozen=True)
class Subject:
    """A particular object.

    Attributes:
        shape: its class word.
        parts: the colours that identify it by their places, each covering much of it.
    """

    name: str
    shape: str
    figure: Figure
    parts: tuple[Colour, ...]

    def scene(self, background: str = "white", texture: str = "plain", pose: Pose | None = None) -> Scene:
        """Return a scene with the subject; its colour name is empty."""
        return Scene(
            shape=self.shape,
            colour_name="",
            background_name=background,
            texture=texture,
            colour=self.parts[0],
            background=BACKGROUNDS[background],
            pose=pose or Pose(),
            figure=self.figure,
        )

    def photos(self) -> list[Image.Image]:
        """Draw the five instance images."""
        return [draw(self.scene(*place)) for place in PLACES]

    def captions(self) -> list[str]:
        """Return the caption of each photo, such as `on a striped blue background`."""
        return [f"on a {texture} {background} background" for background, texture, _ in PLACES]


PLACES: tuple[tuple[str, str, Pose], ...] = (
    ("grey", "plain", Pose(0.40, 0.50, 0.51, 0.0)),
    ("blue", "striped", Pose(0.37, 0.53, 0.50, 0.10)),
    ("green", "dotted", Pose(0.39, 0.48, 0.48, -0.08)),
    ("white", "checkered", Pose(0.36, 0.50, 0.53, 0.05)),
    ("purple", "plain", Pose(0.41, 0.49, 0.50, -0.12)),
)
"""Background, texture and pose of the five pictures."""

SUBJECTS: dict[str, Subject] = {
    subject.name: subject
    for subject in (
        Subject(
            "mug",
            "mug",
            (
                Layer(MUG_HANDLE.outline, TEAL),
                Layer(MUG_BODY, TEAL),
                Layer(((-0.75, 0.12), (0.38, 0.12), (0.34, 0.82), (-0.72, 0.82)), LIME),
                Layer(((-0.18, -0.28), (0.2, 0.12), (-0.18, 0.52), (-0.56, 0.12)), ORANGE, edge=False),
            ),
            (rgb(TEAL), rgb(LIME)),
        ),
        Subject(
            "fish",
            "fish",
            (
                Layer(FISH_TAIL, TEAL),
                Layer(FISH_BODY, CORAL),
                Layer(((-0.3, -0.55), (0.16, -0.49), (0.16, 0.49), (-0.3, 0.55)), TEAL, edge=False),
                *FISH_EYE,
            ),
            (rgb(CORAL), rgb(TEAL)),
        ),
        Subject(
            "house",
            "house",
            (
                Layer(HOUSE_WALL, CORAL),
                Layer(((-0.98, -0.08), (-0.98, -0.9), (-0.6, -0.9), (0.98, -0.08)), TEAL),
                *HOUSE_OPENINGS,
            ),
            (rgb(CORAL), rgb(TEAL)),
        ),
        Subject(
            "car",
            "car",
            (
                Layer(CAR_CABIN, LIME),
                Layer(CAR_BODY, NAVY),
                Layer(((-0.46, -0.14), (-0.28, -0.48), (0.0, -0.48), (0.0, -0.14)), "light", edge=False),
                *WHEELS,
            ),
            (rgb(NAVY), rgb(LIME)),
        ),
    )
}
"""Subjects by name. Defaults were tuned on `car` alone; the others only tested them."""
