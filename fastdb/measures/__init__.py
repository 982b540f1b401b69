"""Readings of pictures: the drawn world, CLIP and DINO, and figures with intervals."""
