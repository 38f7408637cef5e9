"""Frames: ingest, validation, reduction."""
