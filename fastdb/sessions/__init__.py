"""The session: a folder a person can read, and the object that stands for it."""
