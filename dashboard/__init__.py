"""The web pages to follow runs, approve commands and act; uses only the collector's REST API."""
