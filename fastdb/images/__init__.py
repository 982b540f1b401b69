"""Instance images: read, crop, caption and review photos."""
