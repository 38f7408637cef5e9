"""A real database for every test: a SQLite file and, where its programs are, PostgreSQL."""

import os
import pwd
import shutil
import subprocess
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import create_engine, text

from stabilizer.collector.services.container import build_services
from stabilizer.collector.storage.engine import build_engine, parse_url
from stabilizer.collector.storage.migrate import upgrade
from stabilizer.protocol.batches import AttemptStart, BatchHeader, MarkerKind, SnapshotInfo
from stabilizer.protocol.frames import Batch, FrameBlock
from stabilizer.protocol.message import PROTOCOL_VERSION
from stabilizer.protocol.runs import RunRegister
from stabilizer.protocol.series import Catalog
from stabilizer.settings import CollectorSettings

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


class PostgresServer:
    """A server of its own in a temporary folder, reached through a socket file."""

    def __init__(self, programs):
        self.programs = programs
        self.folder = Path(tempfile.mkdtemp(prefix="stabilizer-pg-"))
        # The server refuses to run as root.
        self.user = pwd.getpwnam(_account()) if os.geteuid() == 0 else None
        if self.user is not None:
            os.chown(self.folder, self.user.pw_uid, self.user.pw_gid)
        self.num_databases = 0

    def run(self, program, *arguments):
        identity = {} if self.user is None else {"user": self.user.pw_uid, "extra_groups": []}
        done = subprocess.run(
            [str(self.programs / program), *arguments],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,  # a pipe would stay open as long as the server runs
            stderr=subprocess.DEVNULL,
            timeout=60,
            check=False,
            **identity,
        )
        if done.returncode:
            raise RuntimeError(f"{program} ended with {done.returncode}; see {self.folder}/log")

    def start(self):
        data = str(self.folder / "data")
        self.run(
            "initdb",
            "-D",
            data,
            "-U",
            "stabilizer",
            "-A",
            "trust",
            "-N",
            "-E",
            "UTF8",
            "--locale=C",
        )
        options = f"-c listen_addresses='' -k {self.folder} -F"
        self.run("pg_ctl", "-D", data, "-l", str(self.folder / "log"), "-w", "-o", options, "start")

    def stop(self):
        self.run("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "stop")
        shutil.rmtree(self.folder)

    def url(self, database):
        return f"postgresql+psycopg://stabilizer@/{database}?host={self.folder}"

    def create(self, template):
        self.num_databases += 1
        name = f"test_{self.num_databases}"
        engine = create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
        engine.dispose()
        return name


def _account():
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _postgres_programs():
    found = shutil.which("postgres")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in folders:
        if all((folder / name).exists() for name in ("postgres", "initdb", "pg_ctl")):
            return folder
    return None


@pytest.fixture(scope="session")
def postgres():
    programs = _postgres_programs()
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
