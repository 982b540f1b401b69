"""Downloads of base models with resume and a cache."""
