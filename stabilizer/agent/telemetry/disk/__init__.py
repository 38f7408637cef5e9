"""On the disk: what could not be delivered waits here."""
