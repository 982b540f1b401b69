"""Checkpoints: save, verify, publish to the session's folder, prune, export."""
