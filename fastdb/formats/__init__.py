"""Readers and writers of model files that run no code."""
