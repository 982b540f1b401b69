"""Generate images from a base model, a session or an export."""
