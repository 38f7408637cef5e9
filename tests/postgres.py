"""A PostgreSQL server of its own for tests, where its programs are installed."""

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

from sqlalchemy import create_engine, text


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


def find_programs():
    found = shutil.which("postgres")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in folders:
        if all((folder / name).exists() for name in ("postgres", "initdb", "pg_ctl")):
            return folder
    return None
