"""Building blocks of the pages: pure functions from messages of the protocol to components."""
