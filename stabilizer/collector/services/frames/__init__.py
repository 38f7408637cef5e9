"""Frames on their way in and out."""
