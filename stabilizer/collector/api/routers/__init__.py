"""One module for each group of paths; every endpoint hands over to one service call."""
