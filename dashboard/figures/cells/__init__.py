"""Cells of a heatmap: where they lie, and what their colours say."""
