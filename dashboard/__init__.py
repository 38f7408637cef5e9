"""The page on which people follow, approve and act. Knows the collector by its REST API only."""
