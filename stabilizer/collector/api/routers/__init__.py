"""One module per group of paths; every endpoint makes one service call."""
