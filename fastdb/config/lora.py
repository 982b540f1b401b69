"""Settings of low-rank adapters."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fastdb.config.validation import Settings


class LoRAConfig(Settings):
    """Low-rank adapters (Hu et al. 2021), which train if `method` is lora."""

    rank: int = Field(16, ge=1, le=1024, description="Rank of each adapter.")
    alpha: float = Field(
        0, ge=0, le=65_504, description="Adapters are scaled by alpha / rank; 0 uses the rank, a scale of 1."
    )
    targets: Literal["kohya", "kohya-conv", "attention"] = Field(
        "kohya",
        description="Adapted layers. kohya: attention and feed-forward; kohya-conv: also the ResNet blocks; "
        "attention: only the attention's query, key, value and output.",
    )
    init: Literal["kaiming", "gaussian"] = Field(
        "kaiming",
        description="Initial values of the first factor: kaiming as peft and sd-scripts, with a standard deviation of "
        "1/sqrt(3 fan_in); gaussian as diffusers' scripts, 1/rank. Learning rates do not transfer.",
    )
    dropout: float = Field(0, ge=0, lt=1, description="Fraction of an adapter's inputs that is dropped in training.")
    rslora: bool = Field(False, description="Scale by alpha / sqrt(rank) instead (Kalajdzievski 2023).")

    @property
    def scale(self) -> float:
        """Factor of the product of the two factors."""
        alpha = self.alpha or float(self.rank)
        return float(alpha / (self.rank**0.5 if self.rslora else self.rank))
