"""The story of the product on real training, told as a user would live it.

It starts `stabilizer serve` and three training jobs as processes of their own, watches them over
the REST API and imports none of them.
"""
