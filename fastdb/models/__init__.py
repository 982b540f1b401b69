"""Base models: inspect, load, convert and export."""
