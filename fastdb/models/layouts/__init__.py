"""Tensor names and shapes in original files and diffusers folders."""
