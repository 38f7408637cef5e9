"""Wiring: a decorated function hands over to a plain one, since only plain ones can be tested."""
