"""Tensors to statistics: pure functions, the hooks that feed them, one vector per step."""
