"""A drawn world, small enough to be learned whole, whose pictures can be read back."""
