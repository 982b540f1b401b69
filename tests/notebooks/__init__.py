"""The notebook: its source, its limits, and real runs of it."""
