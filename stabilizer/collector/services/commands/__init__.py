"""Commands: their life, their targets, and the answers that carry them."""
