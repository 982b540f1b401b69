"""Names and shapes of the same weights in two layouts: one original file, or a diffusers folder of parts."""
