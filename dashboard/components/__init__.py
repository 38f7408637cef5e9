"""What pages are made of: plain functions from the collector's messages to components.

They hold no state, ask nobody and look at no clock: what they show is what they were given.
"""
