"""Remarks of libraries that a person can do nothing about."""

from __future__ import annotations

import logging
import os


def hush_libraries() -> None:
    """Leave only errors of transformers, its Hub and bitsandbytes; call it before they are loaded.

    transformers says for each image processor that torchvision is absent, which we do not use, the Hub each time
    that it tries again without a network, and bitsandbytes that a kernel for 4-bit inference on a CPU is absent.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
