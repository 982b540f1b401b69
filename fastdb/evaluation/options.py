"""Options of an evaluation; needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from fastdb.errors import ConfigError
from fastdb.inference.request import Request
from fastdb.reporting import argument

MEASURES = ("auto", "drawn", "clip")
MOST_SEEDS = 1000
"""Pictures per prompt, the limit of `generate --count`."""


@dataclass(frozen=True)
class Options:
    """Options of an evaluation; None stands for the default.

    Attributes:
        checkpoints: steps of the UNet stage, None for all valid checkpoints.
        seeds: pictures per prompt.
        first_seed: another number gives other pictures.
        until_decided: draw more pictures of the checkpoints in question, up to `at_most` of each one's subject.
        prompts: replace those derived from the session.
        measure: an element of `MEASURES`.
        clip, dino: a folder or a name on the Hub.
        steps, guidance, sampler: settings of pictures; by default the session's sample settings.
        file: an exported file to evaluate instead of checkpoints.
    """

    checkpoints: Sequence[int] | None = None
    seeds: int = 4
    first_seed: int = 0
    until_decided: bool = False
    at_most: int = 256
    prompts: Sequence[str] = ()
    measure: str = "auto"
    clip: str | None = None
    dino: str | None = None
    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    file: Path | None = None

    def __post_init__(self) -> None:
        """Validate what can be without a session.

        Raises:
            ConfigError: a value is out of bounds or unknown.
        """
        if self.measure not in MEASURES:
            raise ConfigError("is an unknown measure", subject=repr(self.measure), fix=f"Choose {', '.join(MEASURES)}.")
        if not 1 <= self.seeds <= MOST_SEEDS:
            raise ConfigError(f"is not between 1 and {MOST_SEEDS}", subject=f"seeds {self.seeds}", fix="Try 4.")
        if self.at_most < 1:
            raise ConfigError("is not at least 1", subject=f"at_most {self.at_most}", fix="Try 256.")
        drawn = {"steps": self.steps, "guidance": self.guidance, "sampler": self.sampler}
        Request("", **{name: value for name, value in drawn.items() if value is not None})  # type: ignore[arg-type]


def command(name: str, options: Options) -> str:
    """Return the command that evaluates a session with these options."""
    words = [argument(name)]
    for option in fields(Options):
        value = getattr(options, option.name)
        if value == option.default or (option.name == "at_most" and not options.until_decided):
            continue
        flag = f"--{'prompt' if option.name == 'prompts' else option.name.replace('_', '-')}"
        if option.name == "prompts":
            words += [f"{flag} {argument(prompt)}" for prompt in value]
        elif value is True:
            words.append(flag)
        else:
            text = ",".join(map(str, value)) if option.name == "checkpoints" else value
            words.append(f"{flag} {argument(text)}")
    return " ".join(words)
