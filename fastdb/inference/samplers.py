"""Samplers by their common names."""

from __future__ import annotations

from typing import Any

from fastdb.errors import ConfigError

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "DDIM": ("DDIMScheduler", {}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "LMS": ("LMSDiscreteScheduler", {}),
    "PNDM": ("PNDMScheduler", {}),
    "UniPC": ("UniPCMultistepScheduler", {}),
}
"""Name -> diffusers class and its options; noise schedule and prediction type remain the model's own."""

DEFAULT = "DPM++ 2M"


def check_sampler(name: str) -> str:
    """Return a sampler's name in its usual case.

    Raises:
        ConfigError: the sampler is unknown; the message names the nearest.
    """
    import difflib

    spelled = {known.lower(): known for known in SAMPLERS}
    if name.lower() in spelled:
        return spelled[name.lower()]
    near = difflib.get_close_matches(name.lower(), spelled, n=1)
    fix = f"Did you mean {spelled[near[0]]}?" if near else f"Choose from: {', '.join(SAMPLERS)}."
    raise ConfigError("there is no such sampler", where=f"sampler {name!r}", fix=fix)


def make_sampler(name: str, config: Any) -> Any:
    """Return the diffusers scheduler of a sampler with the noise schedule of `config`.

    Raises:
        ConfigError: the sampler is unknown.
    """
    import diffusers

    kind, options = SAMPLERS[check_sampler(name)]
    return getattr(diffusers, kind).from_config(config, **options)
