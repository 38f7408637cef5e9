"""From documents to the tensors of sequences: tokens, pictures, masks, and packing."""
