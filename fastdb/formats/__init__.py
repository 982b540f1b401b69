"""Model files from strangers, read as data: nothing in them runs, and nothing is believed before it is checked."""
