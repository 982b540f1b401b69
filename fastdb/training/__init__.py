"""Two stages, one loop, one process of its own that writes events."""
