"""The host: paths, device, memory, Google Drive."""
