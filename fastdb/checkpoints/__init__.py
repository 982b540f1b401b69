"""Checkpoints on their way from this machine's disk into the session's folder."""
