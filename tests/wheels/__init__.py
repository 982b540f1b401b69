"""The wheel, its locks and the set-up cell, tried with real pip and uv in environments of their own."""
