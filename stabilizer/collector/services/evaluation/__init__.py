"""Evaluation of the rules, kept in step with the database."""
