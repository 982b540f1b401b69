"""Evaluation of checkpoints on common prompts and seeds."""
