"""Two-stage training: one loop in a process of its own that writes events."""
