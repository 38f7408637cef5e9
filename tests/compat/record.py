"""Record what users hold: exchanges, command lines, databases, a checkpoint, a spool.

    python tests/compat/record.py      (in a checkout of the version; needs PostgreSQL's programs)

It uses the project as a user does, by its commands and over HTTP, and imports nothing of it. Run it
for a new version into a new folder (`VERSIONS` in wire.py); it never overwrites a recording.
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import httpx

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.compat.wire import VERSIONS, folder_of, pack, save, without_repetitions
from tests.postgres import PostgresServer, find_programs

RECORDED = folder_of(VERSIONS[-1])
SECONDS = 120
KEPT_HEADERS = ("content-type", "accept", "user-agent", "x-stabilizer-actor", "authorization")
PERSON = {"X-Stabilizer-Actor": "ada"}
SMALL_MODEL = {
    "model.hidden_size": 16,
    "model.intermediate_size": 16,
    "model.layers": 2,
    "model.heads": 2,
    "model.cross_attention_every": 1,
    "model.vision.hidden_size": 16,
    "model.vision.intermediate_size": 16,
    "model.vision.layers": 1,
    "model.vision.heads": 2,
    "model.resampler.latents": 2,
    "model.resampler.layers": 1,
    "model.resampler.heads": 2,
    "model.resampler.head_size": 8,
    "data.batch_size": 2,
    "optimizer.warmup_steps": 2,
}


class Recorder(ThreadingHTTPServer):
    """A proxy that keeps every exchange, in the order in which they were answered."""

    daemon_threads = True

    def __init__(self, target):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = target
        self.exchanges = []
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def handle_one_request(self):
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def _carry(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        # One after the other, so that the order is that of the collector; only polls wait beside.
        waits = "/commands/next" in self.path
        with contextlib.nullcontext() if waits else self.server.lock:
            status, answer, kind = self._forward(body)
            with self.server.lock if waits else contextlib.nullcontext():
                self._keep(body, status, answer)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if status != 204:
            self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _forward(self, body):
        connection = http.client.HTTPConnection(self.server.target.removeprefix("http://"))
        connection.request(self.command, self.path, body=body or None, headers=self._headers())
        response = connection.getresponse()
        answer = response.read()
        connection.close()
        return response.status, answer, response.getheader("content-type", "")

    def _headers(self):
        return {name: self.headers[name] for name in KEPT_HEADERS if name in self.headers}

    def _keep(self, body, status, answer):
        self.server.exchanges.append(
            {
                "method": self.command,
                "path": self.path,
                "headers": self._headers(),
                "body": pack(body),
                "status": status,
                "answer": pack(answer),
            }
        )

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _carry  # noqa: N815  as the base class asks


class Story:
    """A database with a life behind it."""

    def __init__(self, folder, database):
        self.folder, self.database = folder, database
        folder.mkdir(parents=True)
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "STABILIZER_SPOOL_DIRECTORY": str(folder / "spool"),
            # What runs now is to run still when the database is opened in some years.
            "STABILIZER_LOST_AFTER_HEARTBEATS": "1e7",
        }

    def start(self, *arguments):
        log = (self.folder / f"{arguments[0]}.log").open("ab")
        return subprocess.Popen(
            [sys.executable, "-m", *arguments], env=self.environment, stdout=log, stderr=log
        )

    @contextlib.contextmanager
    def collector(self):
        ready = self.folder / "url"
        ready.unlink(missing_ok=True)
        arguments = ["--port", "0", "--database", self.database, "--ready-file", str(ready)]
        process = self.start("stabilizer", "serve", *arguments)
        try:
            wait_until(lambda: ready.exists() and ready.read_text().strip())
            yield ready.read_text().strip()
        finally:
            process.terminate()
            process.wait(30)

    def fit(self, name, url, *more, steps=100_000):
        arguments = ["fit", "--data", str(self.folder / "corpus"), "--steps", str(steps)]
        arguments += ["--run", name, "--collector", url, "--out", str(self.folder / name)]
        arguments += [
            "--policy",
            str(RECORDED / "rules.yaml"),
            "--set",
            "monitor.snapshot_every=10",
        ]
        for field, value in SMALL_MODEL.items():
            arguments += ["--set", f"{field}={value}"]
        for setting in more:
            arguments += ["--set", setting]
        return self.start("trainer", *arguments)

    def tell(self):
        """Let it all happen; return the exchanges."""
        make = ["trainer", "data", "make", "--out", str(self.folder / "corpus")]
        assert self.start(*make, "--documents", "24").wait(SECONDS) == 0
        with self.collector() as url:
            recorder = Recorder(url)
            with User(recorder.url) as user:
                a_watched_job(self, user)
                a_job_in_json(user)
                everything(user)
            recorder.shutdown()
            killed = self.fit("killed", url)
            with User(url) as user:
                run = user.reach("killed", 20)
        wait_until(lambda: any((self.folder / "spool").rglob("*.spool")))
        time.sleep(1)
        killed.kill()
        killed.wait()
        with self.collector() as url, User(url) as user:
            week = {"ttl_seconds": 7 * 86400}
            user.order(run, {"kind": "checkpoint_now"}, **week)
        return recorder.exchanges

    def reads(self):
        """What every endpoint answers about it."""
        with self.collector() as url:
            recorder = Recorder(url)
            with User(recorder.url) as user:
                everything(user)
            recorder.shutdown()
        return recorder.exchanges


class User:
    """Someone with an HTTP client."""

    def __init__(self, url):
        self.url = url
        self.http = httpx.Client(
            base_url=f"{url}/api/v1", timeout=60, trust_env=False, headers=PERSON
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.http.close()

    def get(self, path, **query):
        return self.http.get(path, params=query).json()

    def ask(self, method, path, expected=200, **body):
        answer = self.http.request(method, path, json=body)
        assert answer.status_code == expected, f"{method} {path}: {answer.text}"
        return answer.json() if answer.content else None

    def order(self, run, parameters, expected=201, **more):
        body = {"parameters": parameters, "reason": "tried by hand", **more}
        return self.ask("POST", f"/runs/{run}/commands", expected, **body)

    def reach(self, name, step):
        def there():
            runs = self.get("/runs")["runs"]
            return next((r["id"] for r in runs if r["name"] == name and r["step"] >= step), None)

        return wait_until(there)

    def settled(self, command):
        def settled():
            now = self.get(f"/commands/{command['id']}")
            return now if now["settled_at"] else None

        return wait_until(settled)

    def obeyed(self, run, kind, **parameters):
        command = self.settled(self.order(run, {"kind": kind, **parameters}))
        assert command["state"] == "applied", command
        return command


def a_watched_job(story, user):
    """Knobs turned by hand, a NaN, a proposal, a rollback, a checkpoint, an orderly end."""
    job = story.fit("watched", user.url, "faults.nan_gradient.step=400")
    run = user.reach("watched", 25)
    user.ask("PATCH", f"/runs/{run}", mode="observe", reason="only look")
    user.ask("PATCH", f"/runs/{run}", mode="propose", reason="ask me")
    cut = {"kind": "reduce_lr", "factor": 0.5}
    user.ask("POST", f"/runs/{run}/commands/preview", parameters=cut)
    user.obeyed(run, **cut, hold_steps=3, ramp_steps=2)
    user.obeyed(run, "pause")
    time.sleep(1)  # so that the job polls
    user.obeyed(run, "resume")
    proposed = wait_until(
        lambda: user.get(f"/runs/{run}/commands", states="proposed"),
    )[0]
    user.get(f"/commands/{proposed['id']}/preview")
    user.ask("POST", f"/commands/{proposed['id']}/approve", reason="I agree")
    assert user.settled(proposed)["state"] == "applied"
    user.obeyed(run, "reduce_lr", factor=0.5)
    user.obeyed(run, "checkpoint_now")
    user.obeyed(run, "stop")
    assert job.wait(SECONDS) == 0


class JsonJob:
    """A job in another language, sending JSON by hand."""

    beat: ClassVar = {"attempt": 1, "step": 20}

    def __init__(self, user):
        self.user = user
        self.name = {"protocol_version": 1, "name": "by hand", "key": "1"}
        answer = user.ask(
            "POST",
            "/runs",
            201,
            **self.name,
            policy=(RECORDED / "rules.yaml").read_text(),
            config={"lr": 0.1, "layers": [1, 2]},
            global_batch=4,
            heartbeat_seconds=60,
            git_revision="0" * 40,
        )
        self.run = answer["run_id"]

    def batch(self, sequence, steps, loss, **more):
        frames = []
        for step in steps:
            values = {"loss": loss, "grad_norm": 1.0}
            frames.append({"step": step, "values": values | ({"mfu": 0.5} if step % 2 else {})})
        body = {"attempt": 1, "sequence": sequence, "frames": frames, **more}
        return self.user.ask("POST", f"/runs/{self.run}/frames", **body)

    def heartbeat(self):
        self.user.ask("POST", f"/runs/{self.run}/heartbeat", **self.beat)

    def end(self, state, **more):
        """Take a command up and report its end, and then another one, which changes nothing."""
        command = self.user.order(self.run, {"kind": "checkpoint_now"})
        self.heartbeat()
        path = f"/runs/{self.run}/commands/{command['id']}/result"
        body = {"command_id": command["id"], "state": state, **more}
        self.user.ask("POST", path, **body)
        self.user.http.post(path, json={**body, "state": "failed"})


def a_job_in_json(user):
    """Commands end in every way; what cannot be used is refused; the policy proposes."""
    job = JsonJob(user)
    held = [{"id": f"s{step}", "attempt": 1, "step": step, "finite": True} for step in (5, 10)]
    job.batch(0, range(1, 11), 2.0, snapshots=held)
    job.batch(0, range(1, 11), 2.0, snapshots=held)
    job.batch(1, range(11, 21), 2.0, markers=[{"kind": "lr_change", "step": 15, "text": "mine"}])
    job.heartbeat()
    commands_in_every_state(job, user)
    silences_and_the_switch(job, user)
    refusals(job, user)
    job.batch(5, range(61, 71), 50.0)
    job.batch(6, range(71, 76), "inf")
    (proposed, *_) = user.get(f"/runs/{job.run}/commands", states="proposed")
    user.ask("POST", f"/commands/{proposed['id']}/reject", reason="not today")
    job.batch(7, range(76, 90), 50.0)
    delivered = user.order(job.run, {"kind": "pause"})
    job.heartbeat()
    assert user.get(f"/commands/{delivered['id']}")["state"] == "delivered"


def commands_in_every_state(job, user):
    read_back = {"attempt": 1, "step": 20, "lr": {"0": 0.1}, "checkpoint_path": "/c/20"}
    job.end("applied", applied_step=20, read_back=read_back)
    job.end("rejected", reason="unsupported", message="no such thing here")
    job.end("failed", reason="restore_failed")
    cancelled = user.order(job.run, {"kind": "pause"})
    user.ask("POST", f"/commands/{cancelled['id']}/cancel", reason="a mistake")
    user.http.post(f"/commands/{cancelled['id']}/approve", json={"reason": "too late"})
    short = user.order(job.run, {"kind": "stop"}, ttl_seconds=0.5)
    time.sleep(3)  # until the collector has swept
    assert user.get(f"/commands/{short['id']}")["state"] == "expired"


def silences_and_the_switch(job, user):
    silence = {"rule": "gradient_high", "reason": "known", "until": "2999-01-01T00:00:00Z"}
    user.ask("POST", "/silences", 201, **silence)
    ended = user.ask("POST", "/silences", 201, **silence, run_id=job.run)
    user.http.delete(f"/silences/{ended['id']}", params={"reason": "over"})
    user.ask("PUT", "/control", disarmed=True, reason="night")
    job.batch(2, range(21, 31), "nan")
    user.ask("PUT", "/control", disarmed=False, reason="day")
    job.batch(3, range(31, 41), 2.0)
    job.batch(4, range(41, 61), 2.0)


def refusals(job, user):
    post, run = user.http.post, job.run
    post("/runs", json={**job.name, "protocol_version": 99})
    post("/runs", json={"name": "x"})
    post(f"/runs/{run}/catalogs", json={"catalogs": []})
    order = {"reason": "tried", "parameters": {"kind": "pause"}}
    post(f"/runs/{run}/commands", json={**order, "attempt": 7})
    post(f"/runs/{run}/commands", json={**order, "parameters": {"kind": "jump"}})
    post(f"/runs/{run}/frames", json={"attempt": 1, "sequence": 7, "frames": [{}]})
    binary = {"Content-Type": "application/vnd.stabilizer.frames"}
    post(f"/runs/{run}/frames", content=b"STBF nonsense", headers=binary)
    post("/runs/nonsense/heartbeat", json=job.beat)
    user.get("/nonsense")


def everything(user):
    """Read from every endpoint."""
    runs = user.get("/runs")["runs"]
    user.get("/runs", limit=1)
    user.get("/control")
    user.get("/silences")
    user.get("/audit", limit=500)
    user.get("/runs/nonsense")
    for run in (run["id"] for run in runs):
        for what in ("", "/snapshots", "/markers", "/series", "/metrics", "/commands"):
            user.get(f"/runs/{run}{what}")
        for what in ("/alerts", "/incidents", "/rules"):
            user.get(f"/runs/{run}{what}")
        user.get(f"/runs/{run}/audit", limit=500)
        user.get(f"/runs/{run}/series/data", series=["loss", "grad_norm"])
        user.get(f"/runs/{run}/series/data", series="loss", points=20)
        user.get(f"/runs/{run}/heatmap", metric="grad_norm")
        for command in user.get(f"/runs/{run}/commands"):
            user.get(f"/commands/{command['id']}")
        for incident in user.get(f"/runs/{run}/incidents"):
            user.get(f"/incidents/{incident['id']}")
    user.get("/overview")


def wait_until(predicate):
    deadline = time.monotonic() + SECONDS
    while not (answer := predicate()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)
    return answer


# What is unsettled stays so, whenever the database is opened.
KEEP_OPEN = """UPDATE commands SET expires_at = '2999-01-01 00:00:00.000000'
WHERE state IN ('proposed', 'pending', 'delivered')"""


def record_sqlite(folder):
    story = Story(folder, f"sqlite:///{folder}/collector.db")
    save(RECORDED, "wire.json.gz", without_repetitions(story.tell()))
    with contextlib.closing(sqlite3.connect(folder / "collector.db")) as database:
        database.execute(KEEP_OPEN)
        database.commit()
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database.execute("VACUUM")
    content = (folder / "collector.db").read_bytes()
    (RECORDED / "collector.db.gz").write_bytes(gzip.compress(content, 9, mtime=0))
    save(RECORDED, "reads_sqlite.json.gz", story.reads())
    keep_job(story.folder)
    record_command_lines(folder)


def record_postgres(folder):
    server = PostgresServer(find_programs())
    server.start()
    try:
        database = server.create("template1")
        story = Story(folder, server.url(database))
        story.tell()
        server.run("psql", "-h", str(server.folder), "-U", "stabilizer", "-c", KEEP_OPEN, database)
        dump = server.folder / "dump.sql"
        where = ["-h", str(server.folder), "-U", "stabilizer", "--no-owner", "--inserts"]
        server.run("pg_dump", *where, "-f", str(dump), database)
        (RECORDED / "collector.sql.gz").write_bytes(gzip.compress(dump.read_bytes(), 9, mtime=0))
        save(RECORDED, "reads_postgresql.json.gz", story.reads())
    finally:
        server.stop()


def keep_job(folder):
    """The corpus, the watched job's folder with its checkpoint, and the spool of the killed one."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name in ("corpus", "watched", "spool"):
            tar.add(folder / name, arcname=name)
    (RECORDED / "job.tar.gz").write_bytes(gzip.compress(packed.getvalue(), 9, mtime=0))


COMMAND_LINES = [
    "stabilizer --help",
    "stabilizer",
    "stabilizer nonsense",
    "stabilizer serve --help",
    "stabilizer serve --host 0.0.0.0",
    "stabilizer serve --database nonsense://",
    "stabilizer rules --help",
    "stabilizer rules check --help",
    "stabilizer rules check {recorded}/rules.yaml",
    "stabilizer rules check {recorded}/bad_rules.yaml {recorded}/rules.yaml",
    "stabilizer rules check {folder}/missing.yaml",
    "stabilizer rules show",
    "stabilizer rules explain --help",
    "stabilizer rules explain loss_nonfinite",
    "stabilizer rules explain nonsense",
    "stabilizer rules apply --help",
    "stabilizer rules versions --help",
    "stabilizer rules test --help",
    "stabilizer rules test {recorded}/rule_tests.yaml",
    "stabilizer backtest --help",
    "stabilizer backtest {recorded}/log.csv --rules {recorded}/rules.yaml",
    "stabilizer backtest {recorded}/log.csv --rules {recorded}/rules.yaml --json",
    "stabilizer backtest {folder}/missing.csv",
    "stabilizer follow --help",
    "stabilizer import --help",
    "stabilizer import {recorded}/log.csv --database sqlite:///{folder}/imported.db",
    "stabilizer db --help",
    "stabilizer db upgrade --help",
    "stabilizer db current --help",
    "stabilizer db current --database sqlite:///{folder}/missing.db",
    "stabilizer db upgrade --database sqlite:///{folder}/fresh.db",
    "stabilizer db current --database sqlite:///{folder}/fresh.db",
    "stabilizer token --help",
    "stabilizer token new --help",
    "stabilizer token new",
    "trainer --help",
    "trainer fit --help",
    "trainer fit --preset nonsense",
    "trainer fit --set training.stepz=5",
    "trainer export --help",
    "trainer demo --help",
    "trainer config --help",
    "trainer config show --help",
    "trainer config show",
    "trainer config show --preset idefics-80b --set training.steps=7",
    "trainer config show --preset nonsense",
    "trainer config explain",
    "trainer config explain optimizer.betas",
    "trainer config explain nonsense",
    "trainer config count --preset idefics-1b",
    "trainer config list",
    "trainer data --help",
    "trainer data make --help",
    "trainer data make --out {folder}/made --documents 20 --conversations 4",
    "trainer data inspect --help",
    "trainer data inspect --run {folder}/watched --set {data} --window 5:8 --out {folder}/report",
    "trainer data skipped --help",
    "trainer data skipped --run {folder}/watched --set {data}",
    "trainer data skipped --run {folder}/nowhere",
    "trainer data quarantine --help",
    "trainer data quarantine {folder}/quarantine.jsonl --sample-id a --sample-id b",
    "trainer data quarantine {folder}/quarantine.jsonl",
    "dashboard --help",
    "dashboard --collector nonsense",
]


def record_command_lines(folder):
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    recorded = []
    for line in COMMAND_LINES:
        arguments = line.format(
            folder=folder, recorded=RECORDED, data=f"data.folder={folder}/corpus"
        ).split()
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        entry = {"command": line, "status": done.returncode}
        for name in ("stdout", "stderr"):
            text = getattr(done, name).replace(str(folder), "{folder}")
            entry[name] = text.replace(str(RECORDED), "{recorded}")
        recorded.append(entry)
    save(RECORDED, "command_lines.json.gz", recorded)


if __name__ == "__main__":
    if any(RECORDED.glob("*.gz")) and "--overwrite" not in sys.argv:
        sys.exit(f"{RECORDED} holds a recording; a released version is never recorded again")
    scratch = Path(tempfile.mkdtemp(prefix="stabilizer-compat-"))
    try:
        record_sqlite(scratch / "sqlite")
        record_postgres(scratch / "postgresql")
    finally:
        if "--keep" not in sys.argv:
            shutil.rmtree(scratch)
    sizes = {file.name: file.stat().st_size for file in sorted(RECORDED.iterdir())}
    sys.stdout.write(json.dumps(sizes) + "\n")
