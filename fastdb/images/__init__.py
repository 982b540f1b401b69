"""Decoding, cropping, captioning and review of instance images."""
