"""Base models: read, understood, loaded, and written out as one file."""
