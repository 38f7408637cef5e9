"""Training-stability observability and automatic intervention.

The rooms, and who may import whom, are described in docs/architecture.md.
"""

__version__ = "0.2.0"
