"""Drawn world of mini's training pictures, and the network that reads its pictures."""
