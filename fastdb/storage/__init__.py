"""Bytes that survive: durable writes and manifests."""
