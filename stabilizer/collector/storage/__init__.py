"""Tables and repositories: the only place with SQL."""
