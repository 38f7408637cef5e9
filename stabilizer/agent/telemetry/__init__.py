"""The sender side of the agent: training hands over, a daemon thread talks to the collector."""
