"""Instance images: photos come in, are cropped and captioned, and are shown for review."""
