"""Packaging: names, requirements, and the files that the package contains beside its modules.

The distribution is `fast-dreambooth`, because `fastdb` on PyPI is another project; the module is `fastdb`.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'__version__ = "(.+?)"', (here / "fastdb" / "version.py").read_text(encoding="utf-8"))

setup(
    name="fast-dreambooth",
    version=version.group(1),
    description="fast DreamBooth: teach Stable Diffusion a new subject from a handful of photos, and survive anything",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["fastdb", "fastdb.*"]), "fastdb.sessions_template", "fastdb.wheels"],
    package_dir={"fastdb.sessions_template": "sessions_template", "fastdb.wheels": "wheels"},
    package_data={
        "fastdb": ["py.typed"],
        "fastdb.models": [f"mini/**/*.{kind}" for kind in ("json", "txt", "safetensors", "md")],
        "fastdb.world": ["judge.safetensors"],
        "fastdb.notebook": ["panel.css", "panel.js"],
        "fastdb.sessions_template": ["*/README.txt"],
        # `make wheel` adds models/.
        "fastdb.wheels": ["locks/*.txt", "models.lock", "models/*"],
    },
    install_requires=[
        "accelerate>=1.10",
        "diffusers>=0.37",
        "filelock>=3.16",
        "gdown>=5.2,<7",
        "httpx>=0.27,<1",
        "huggingface_hub>=1.0,<2",
        "numpy>=2.0",
        "pillow>=11.0",
        "pydantic>=2.10",
        "PyYAML>=6.0",
        "safetensors>=0.6",
        "scikit-image>=0.25",
        "scipy>=1.15",
        "tokenizers>=0.22",
        "torch>=2.10",
        "tqdm>=4.66",
        "transformers>=5.3",
        "typer>=0.15",
        "zstandard>=0.23",
    ],
    extras_require={
        # Not for Colab, where three builds of OpenCV lie over each other already and a fourth breaks them.
        "faces": ["opencv-python-headless>=4.10,<5"],
        "gpu": ["bitsandbytes>=0.48"],
        "notebook": ["ipykernel>=6.17", "ipywidgets>=7.7"],
        "test": [
            "bitsandbytes>=0.48",
            "hypothesis>=6.140",
            "ipykernel>=6.17",
            "ipywidgets>=7.7",
            "mfusepy>=3.1,<4",
            "mypy>=1.18",
            "nbclient>=0.10",
            "nbformat>=5.10",
            "opencv-python-headless>=4.10,<5",
            "pytest>=8.4",
            "pytest-xdist>=3.6",
            "ruff>=0.14",
            "setuptools>=70.1",
            "types-PyYAML",
            "uv>=0.9",
        ],
    },
    entry_points={"console_scripts": ["fastdb = fastdb.cli:main"]},
)
