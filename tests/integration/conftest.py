"""A real database for every test: a SQLite file and, where its programs are, PostgreSQL."""

import shutil
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from stabilizer.collector.services.container import build_services
from stabilizer.collector.storage.engine import build_engine, parse_url
from stabilizer.collector.storage.migrate import upgrade
from stabilizer.protocol.batches import AttemptStart, BatchHeader, MarkerKind, SnapshotInfo
from stabilizer.protocol.frames import Batch, FrameBlock
from stabilizer.protocol.message import PROTOCOL_VERSION
from stabilizer.protocol.runs import RunRegister
from stabilizer.protocol.series import Catalog
from stabilizer.settings import CollectorSettings
from tests.postgres import PostgresServer, find_programs

RULES = """
rules:
  - name: loss_high
    doc: The loss is above ten.
    select: {metric: loss}
    detect: {threshold: {above: 10}}
    for: 2
    severity: divergence
  - name: gradient_high
    doc: The gradient norm is far above its window.
    select: {metric: grad_norm}
    detect: {robust_zscore: {window: 16, above: 8}}
    severity: notice
policy:
  mode: auto
  ladder:
    - {reduce_lr: {factor: 0.5, steps: 20}}
    - {rollback: {margin: 0, skip: 3}}
    - pause
  act_on: {any: ["severity:divergence"]}
  healthy_after: 5
  quiet: 3
  wait: 5
  guards: {budget: {rollback: 3, per_steps: 2000}, cooldown: 0, watch: 10}
"""


class ManualClock:
    """Stands still until told to go on."""

    def __init__(self):
        self.at = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

    def now(self):
        return self.at

    def monotonic(self):
        return self.at.timestamp()

    def advance(self, seconds):
        self.at += timedelta(seconds=seconds)


@pytest.fixture(scope="session")
def postgres():
    programs = find_programs()
    if programs is None:
        pytest.skip("no PostgreSQL programs on PATH or under /usr/lib/postgresql")
    server = PostgresServer(programs)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def migrated_postgres(postgres):
    name = postgres.create("template1")
    _migrate(postgres.url(name))
    return name


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory):
    file = tmp_path_factory.mktemp("migrated") / "migrated.db"
    _migrate(f"sqlite:///{file}")
    return file


def _migrate(url):
    engine = build_engine(parse_url(url))
    upgrade(engine)
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request):
    return request.param


@pytest.fixture
def empty_url(backend, request, tmp_path):
    """A database without any table."""
    if backend == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.db'}"
    server = request.getfixturevalue("postgres")
    return server.url(server.create("template1"))


@pytest.fixture
def database_url(backend, request, tmp_path):
    """A database with all tables and nothing in them."""
    if backend == "sqlite":
        file = tmp_path / "collector.db"
        shutil.copyfile(request.getfixturevalue("migrated_sqlite"), file)
        return f"sqlite:///{file}"
    server = request.getfixturevalue("postgres")
    return server.url(server.create(request.getfixturevalue("migrated_postgres")))


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def open_services(database_url, clock):
    """Start a collector on the test's database; a further one needs the first to be closed."""
    opened = []

    def start(**changes):
        settings = CollectorSettings(database_url=database_url, tokens=(), **changes)
        opened.append(build_services(settings, clock))
        return opened[-1]

    yield start
    for services in opened:
        services.close()


@pytest.fixture
def services(open_services):
    return open_services()


class Factory:
    """Whole objects with everything good; a test overrides what it is about."""

    catalog = Catalog.of(["loss", "grad_norm"])
    rules = RULES

    def register(self, **changes):
        given = {
            "protocol_version": PROTOCOL_VERSION,
            "name": "run",
            "policy": RULES,
            "catalogs": (self.catalog,),
        }
        return RunRegister(**given | changes)

    def block(self, steps, losses=None, *, catalog=None, values=None, present=None):
        catalog = catalog or self.catalog
        steps = np.asarray(steps, np.int64)
        if values is None:
            values = np.ones((len(steps), len(catalog)), np.float32)
            values[:, 0] = 2.0 if losses is None else losses
        return FrameBlock(catalog.id, steps, steps + 0.5, np.asarray(values, np.float32), present)

    def batch(self, sequence, steps=(), losses=None, *, blocks=None, **header):
        if blocks is None:
            blocks = (self.block(steps, losses),) if len(steps) else ()
        header = BatchHeader(**{"attempt": 1, "sequence": sequence} | header)
        return Batch(header, tuple(blocks))

    def snapshot(self, step, **changes):
        given = {"id": f"s{step}", "attempt": 1, "step": step, "finite": True, "samples": step * 4}
        return SnapshotInfo(**given | changes)

    def rollback_start(self, step, **changes):
        given = {"from_step": step, "parent": 1, "reason": MarkerKind.ROLLBACK}
        return AttemptStart(**given | changes)


@pytest.fixture
def make():
    return Factory()


@pytest.fixture
def run_id(services, make):
    """A registered run."""
    return services.runs.register(make.register()).run_id
