"""Figures of the pages: pure functions from messages of the protocol to plotly's JSON form.

Backgrounds are transparent, and `assets/charts.css` colours text, ticks and grid lines, so that a
change of the colour scheme needs no new figure.
"""
