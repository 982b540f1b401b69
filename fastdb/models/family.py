"""Families of base models, their parts and their obstacles to training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TextEncoder:
    """A text encoder as diffusers runs it."""

    name: str
    width: int
    """Width of its states, [77 tokens, width]."""
    layers: int
    reads: Literal["last state, normed", "last state but one", "pooled state"]
    """The state that the UNet receives. Files of SD 2 lack the original's last layer."""
    padding: str
    """The token that fills a prompt up to 77."""


@dataclass(frozen=True, kw_only=True)
class Vae:
    """An autoencoder."""

    scale: float
    """Latents are multiplied by this after encoding and after subtraction of `shift`."""
    shift: float = 0.0
    channels: int = 4
    half: bool = True
    """Whether it works in fp16. Otherwise decode in fp32 or bf16, or use the replacement."""
    replacement: str = ""
    """A repository with another autoencoder for the same latents."""
    note: str = ""
    """Reasons for the replacement."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Models with the same parts and keys."""

    name: str
    """Also the name of its layout in `models.layouts`."""
    title: str
    text_encoders: tuple[TextEncoder, ...]
    cross_attention_dim: int
    """Width of the text states that the UNet, or transformer, receives."""
    vae: Vae
    channels: int = 4
    """Input channels of the UNet, or transformer."""
    obstacle: str = ""
    """Why fastdb cannot train it yet, a clause; empty if it can."""


CLIP_L = TextEncoder(name="CLIP ViT-L/14", width=768, layers=12, reads="last state, normed", padding="<|endoftext|>")
CLIP_L_XL = TextEncoder(name="CLIP ViT-L/14", width=768, layers=12, reads="last state but one", padding="<|endoftext|>")
OPENCLIP_H = TextEncoder(name="OpenCLIP ViT-H/14", width=1024, layers=23, reads="last state, normed", padding="!")
OPENCLIP_G = TextEncoder(name="OpenCLIP ViT-bigG/14", width=1280, layers=32, reads="last state but one", padding="!")
CLIP_L_POOLED = TextEncoder(name="CLIP ViT-L/14", width=768, layers=12, reads="pooled state", padding="<|endoftext|>")
T5 = TextEncoder(name="T5 v1.1 XXL", width=4096, layers=24, reads="last state, normed", padding="<pad>")

SD_VAE = Vae(
    scale=0.18215,
    replacement="stabilityai/sd-vae-ft-mse",
    note="The replacement has a decoder trained longer: smoother faces, the same latents.",
)
SDXL_VAE = Vae(
    scale=0.13025,
    half=False,
    replacement="madebyollin/sdxl-vae-fp16-fix",
    note="Its activations overflow in fp16 and give black pictures; the replacement is the same within fp16's range.",
)

SD1 = Family(name="sd1", title="Stable Diffusion 1.x", text_encoders=(CLIP_L,), cross_attention_dim=768, vae=SD_VAE)
SD1_INPAINTING = Family(
    name="sd1-inpainting",
    title="Stable Diffusion 1.x inpainting",
    text_encoders=(CLIP_L,),
    cross_attention_dim=768,
    vae=SD_VAE,
    channels=9,
    obstacle="its UNet also needs a mask and a masked picture, and training makes neither",
)
SD2 = Family(
    name="sd2",
    title="Stable Diffusion 2.x",
    text_encoders=(OPENCLIP_H,),
    cross_attention_dim=1024,
    vae=SD_VAE,
    obstacle="training supports only the text encoder and the UNet of Stable Diffusion 1.x",
)
SDXL = Family(
    name="sdxl",
    title="SDXL",
    text_encoders=(CLIP_L_XL, OPENCLIP_G),
    cross_attention_dim=2048,
    vae=SDXL_VAE,
    obstacle="it has two text encoders and is conditioned on picture sizes, and training supports neither",
)
SD35 = Family(
    name="sd35",
    title="Stable Diffusion 3.5",
    text_encoders=(CLIP_L_XL, OPENCLIP_G, T5),
    cross_attention_dim=4096,
    vae=Vae(scale=1.5305, shift=0.0609, channels=16),
    channels=16,
    obstacle="it is a transformer trained by flow matching, and training supports only UNets",
)
FLUX = Family(
    name="flux",
    title="Flux",
    text_encoders=(CLIP_L_POOLED, T5),
    cross_attention_dim=4096,
    vae=Vae(scale=0.3611, shift=0.1159, channels=16),
    channels=64,
    obstacle="it is a transformer trained by flow matching, and training supports only UNets",
)

FAMILIES = {family.name: family for family in (SD1, SD1_INPAINTING, SD2, SDXL, SD35, FLUX)}

NAME_PATTERNS = {
    r"\bflux": FLUX,
    r"\bsd-?35?\b|\bstable-diffusion-35?\b": SD35,
}
"""Families by patterns in names, in lower case with hyphens, for models that the registry lacks."""
