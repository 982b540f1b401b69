"""Durable files: atomic writes, manifests, safe names, deletion past the trash."""

MANIFEST = "MANIFEST.json"
"""Name of a folder's manifest, which is written last and deleted first."""
