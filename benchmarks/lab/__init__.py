"""The laboratory: small real training runs whose outcomes under every action are computed.

`python -m benchmarks.lab` generates it; docs/lab.md describes it.
"""
