"""Draw docs/schedules.png, the learning rate of the UNet and of each kind of extension."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from fastdb.config import Config
from fastdb.training.schedules import default_peak, rate_at

TARGET = Path(__file__).with_suffix(".png")
EXTENSION = 500
COLOURS = {"hold": "#c0392b", "decay": "#2c54cc", "rewarm": "#1e8449"}
INK, GREY, RULE, PAPER = "#1c1c1e", "#6b6b70", "#e4e4e8", "#ffffff"
WIDE, HIGH, LEFT, TOP, RIGHT, BOTTOM = 1600, 560, 130, 90, 60, 80
"""Size of the picture and its margins in pixels; it is halved at the end for smooth lines."""


def picture() -> Image.Image:
    """Draw the chart for the default settings, RGB, 800 x 280 pixels."""
    unet = Config().unet
    peak, whole = default_peak(unet), unet.steps + EXTENSION
    sheet = Image.new("RGB", (WIDE, HIGH), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(24)

    def at(step: float, rate: float) -> tuple[float, float]:
        x = LEFT + (WIDE - LEFT - RIGHT) * step / whole
        return x, HIGH - BOTTOM - (HIGH - TOP - BOTTOM) * rate / unet.learning_rate

    for rate in (0, peak, unet.learning_rate):
        pen.line((at(0, rate), at(whole, rate)), fill=RULE, width=2)
        pen.text((LEFT - 16, at(0, rate)[1]), f"{rate:g}", fill=GREY, font=font, anchor="rm")
    for step in (0, unet.steps, whole):
        pen.text((at(step, 0)[0], HIGH - BOTTOM + 20), str(step), fill=GREY, font=font, anchor="ma")
    trained = [at(step, rate_at(unet, step)) for step in range(unet.steps)]
    pen.line(trained, fill=INK, width=5)
    pen.text(at(unet.steps * 0.36, unet.learning_rate * 0.74), "as trained", fill=INK, font=font)
    for number, (schedule, colour) in enumerate(COLOURS.items()):
        extension = {"steps": EXTENSION, "schedule": schedule, "learning_rate": peak}
        longer = Config().changed({"unet.extensions": [extension]}).unet
        pen.line([at(step, rate_at(longer, step)) for step in range(unet.steps, whole)], fill=colour, width=5)
        x, y = at(unet.steps, unet.learning_rate)
        pen.text((x + number * 130, y), schedule, fill=colour, font=font)
    pen.text((LEFT, 26), f"learning rate of the UNet, extended by {EXTENSION} steps at half of it", fill=INK, font=font)
    return sheet.resize((WIDE // 2, HIGH // 2), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    picture().save(TARGET, optimize=True)
