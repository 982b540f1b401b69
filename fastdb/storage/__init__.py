"""Durable files: atomic writes, manifests, safe names, deletion past the trash."""
