"""Two-stage training in its own process, which writes events."""
