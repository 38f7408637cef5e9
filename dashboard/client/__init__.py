"""Client of the collector: requests, and live updates."""

from dashboard.client.collector import Collector, CollectorApi
from dashboard.client.live import LiveHub, Updates

__all__ = ["Collector", "CollectorApi", "LiveHub", "Updates"]
