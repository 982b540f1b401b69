"""Log levels of libraries."""

from __future__ import annotations

import logging
import os


def hush_libraries() -> None:
    """Silence warnings of transformers, huggingface_hub and bitsandbytes; call it before they are imported.

    transformers warns for each image processor that torchvision is absent, huggingface_hub for each retry without a
    network, and bitsandbytes that a kernel for 4-bit inference on a CPU is absent. Users can act on none of them.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
