"""Which documents are left out, by limits and by a person."""
