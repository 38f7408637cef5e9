"""The product on real training, end to end, as a user would run it.

It starts `stabilizer serve` and three training jobs as processes of their own, watches them over
the REST API and imports none of them.
"""
