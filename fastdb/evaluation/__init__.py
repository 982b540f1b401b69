"""Evaluate checkpoints: same prompts and seeds for each, measured and compared."""
