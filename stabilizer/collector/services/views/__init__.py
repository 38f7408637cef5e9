"""Reduced data for charts: heatmaps and sparklines."""
