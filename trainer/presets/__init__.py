"""Recipes of the trainer as YAML, and the rule files that go with them (package data only)."""
