"""Tensor names and shapes in two layouts: one original file, or a diffusers folder."""
