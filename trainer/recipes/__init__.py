"""Recipes: configurations of whole runs, as YAML (package data only)."""
