"""How good each checkpoint is: the same prompts and seeds for all, measured, and the one to use named."""
