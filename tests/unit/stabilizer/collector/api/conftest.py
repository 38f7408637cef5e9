"""A small app with the pieces under test, and nothing behind it."""

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from stabilizer.collector.api.error_handlers import add_error_handlers
from stabilizer.settings import CollectorSettings

LOOPBACK = "http://127.0.0.1:8000"


@pytest.fixture
def settings():
    return CollectorSettings(tokens=(), max_body_bytes=4096)


@pytest.fixture
def app(settings):
    """An app without routes that answers errors as the collector does."""
    app = FastAPI()
    app.state.settings = settings
    add_error_handlers(app)
    return app


@pytest.fixture
def client(app):
    return TestClient(app, base_url=LOOPBACK, raise_server_exceptions=False)
