"""The service: hears, remembers, decides, tells."""
