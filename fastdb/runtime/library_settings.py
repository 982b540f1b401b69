"""Settings that libraries read when they are imported."""

from __future__ import annotations

import logging
import os

SHARED_CORES = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Variables without which torch's threads spin while they wait, which slows a small model down ten times and more once
another process shares a core."""


def prepare_libraries() -> None:
    """Set what libraries read when they are imported; call it before that.

    Warnings of transformers, huggingface_hub and bitsandbytes are silenced: transformers warns for each image processor
    that torchvision is absent, huggingface_hub for each retry without a network, and bitsandbytes that a kernel for
    4-bit inference on a CPU is absent. Users can act on none of them.
    """
    for name, value in SHARED_CORES.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
