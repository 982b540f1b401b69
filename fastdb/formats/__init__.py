"""Model file formats, read as data: nothing in a file runs, every claim is checked."""
