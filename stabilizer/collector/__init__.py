"""The service: stores frames, evaluates rules, and sends commands."""
