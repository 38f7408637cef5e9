"""Where the agent meets training frameworks."""
