"""How the dashboard talks to the collector: requests, and news as it happens."""

from dashboard.client.collector import Collector, CollectorApi
from dashboard.client.live import LiveHub, News

__all__ = ["Collector", "CollectorApi", "LiveHub", "News"]
