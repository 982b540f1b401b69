"""Low-rank adapters (LoRA, Hu et al. 2021) of Stable Diffusion's UNet and text encoder."""
