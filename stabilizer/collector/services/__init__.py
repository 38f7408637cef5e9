"""Use cases: ingest, runs, commands, control and queries. Each public call is one transaction."""
