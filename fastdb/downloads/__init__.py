"""Download base models: parse what a person typed, fetch it with resume, cache it."""
