"""Figures of the pages: pure functions from messages of the protocol to plotly's JSON form.

They draw on transparent ground and leave the colour of text, ticks and grid lines to
`assets/charts.css`, so that a figure need not be built anew when the colour scheme changes.
"""
