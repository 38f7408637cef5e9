"""Exchanges on the wire: sent as they were recorded, and answers compared with the recorded ones.

Ids and times are new in every recording. An id that stands where the recording has another one is
taken for it from then on, in answers and in whatever is sent later.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
import re
import threading
import time
from pathlib import Path

import httpx

VERSIONS = ("v0_1", "v0_2")
"""Folders of the recordings, oldest first; the newest is the one that `record.py` fills."""

_ID = re.compile(r"[0-9a-f]{32}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d.*")
_TEXTS = frozenset({"message", "detail", "title", "explanation", "text"})
"""Fields that operators read; what they say may be put better."""
_MOMENTS = frozenset({"times", "next_cursor"})
"""Fields that hold the time of arrival in other forms."""
_FITTED = frozenset({"risk"})
"""Fields of a model that is fitted again for every version: only their names are compared."""
_SWEPT_SECONDS = 10.0
"""What the collector does by the clock, such as expiry, has happened by then."""


def folder_of(version):
    """Return where the recording of a version is."""
    return Path(__file__).parent / version


def load(version, name):
    """Read a recorded JSON file."""
    return json.loads(gzip.decompress((folder_of(version) / name).read_bytes()))


def save(folder, name, content):
    """Write a JSON file so that the same content gives the same bytes."""
    text = json.dumps(content, indent=0, sort_keys=True)
    (folder / name).write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def pack(body: bytes):
    """Make bytes fit into JSON: JSON as it is, other bytes as base64."""
    try:
        return {"json": json.loads(body)} if body else {}
    except ValueError:
        return {"base64": base64.b64encode(body).decode()}


def unpack(packed) -> bytes:
    """Undo `pack`."""
    if "base64" in packed:
        return base64.b64decode(packed["base64"])
    return json.dumps(packed["json"]).encode() if "json" in packed else b""


class Mapping:
    """What the recorded ids are called now."""

    def __init__(self, known=None, *, fixed=False):
        """`fixed`: ids and times are still those of the recording."""
        self.known = dict(known or {})
        self.fixed = fixed

    def translate(self, data: bytes) -> bytes:
        """Put today's ids into something recorded."""
        for recorded, current in self.known.items():
            data = data.replace(recorded.encode(), current.encode())
        return data

    def differences(self, recorded, current, where="answer"):
        """List where the current answer lacks something recorded, or has another value."""
        if isinstance(recorded, dict) and isinstance(current, dict):
            found = [f"{where}.{name} is missing" for name in recorded if name not in current]
            for name in recorded.keys() & current.keys():
                if name in _FITTED and isinstance(recorded[name], dict):
                    lacking = recorded[name].keys() - (current[name] or {}).keys()
                    found += [f"{where}.{name}.{each} is missing" for each in lacking]
                elif name not in _TEXTS and (self.fixed or name not in _MOMENTS):
                    found += self.differences(recorded[name], current[name], f"{where}.{name}")
            return found
        if isinstance(recorded, list) and isinstance(current, list):
            if not self.fixed and all(_is_alert(each) for each in (*recorded, *current)):
                recorded, current = sorted(recorded, key=_place), sorted(current, key=_place)
            if len(recorded) != len(current):
                return [f"{where} has {len(current)} items instead of {len(recorded)}"]
            pairs = enumerate(zip(recorded, current, strict=True))
            return [
                each
                for index, pair in pairs
                for each in self.differences(*pair, f"{where}[{index}]")
            ]
        if self._are_same(recorded, current):
            return []
        return [f"{where} is {current!r} instead of {recorded!r}"]

    def _are_same(self, recorded, current):
        if recorded == current:
            return True
        if isinstance(recorded, float) and isinstance(current, int | float):
            return math.isclose(recorded, current, rel_tol=1e-9)
        if self.fixed or not isinstance(recorded, str) or not isinstance(current, str):
            return False
        if _TIME.fullmatch(recorded) and _TIME.fullmatch(current):
            return True
        if _ID.fullmatch(recorded) and _ID.fullmatch(current):
            return self.known.setdefault(recorded, current) == current
        return self.translate(recorded.encode()) == current.encode()


def _is_alert(item):
    return isinstance(item, dict) and item.keys() >= {"rule", "series", "pending_step"}


def _place(alert):
    """Where an alert belongs among others; those of one step are listed by their random ids."""
    return (alert["pending_step"], alert["rule"], alert["series"])


def replay(url, exchanges, mapping):
    """Send recorded requests to a collector; return what it answers differently."""
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        return [
            f"{number}: {exchange['method']} {exchange['path']}: {difference}"
            for number, exchange in enumerate(exchanges)
            for difference in _repeat(client, exchange, mapping)
        ]


def _repeat(client, exchange, mapping):
    """Send a request; one that only reads again, until the collector has swept."""
    deadline, pause = time.monotonic() + _SWEPT_SECONDS, threading.Event()
    while True:
        trial = Mapping(mapping.known, fixed=mapping.fixed)
        found = _send(client, exchange, trial)
        if not found or exchange["method"] != "GET" or time.monotonic() > deadline:
            mapping.known = trial.known
            return found
        pause.wait(0.2)


def _send(client, exchange, mapping):
    path = mapping.translate(exchange["path"].encode()).decode()
    recorded = exchange["answer"]
    if is_poll := "/commands/next" in path:
        # A poll does not wait: whatever it waited for has been sent by now, and frames as well.
        path = re.sub(r"\bwait=\d+", "wait=0", path)
    answer = client.request(
        exchange["method"],
        path,
        content=mapping.translate(unpack(exchange["body"])),
        headers=exchange["headers"],
    )
    if answer.status_code != exchange["status"]:
        return [f"status {answer.status_code} instead of {exchange['status']}: {answer.text[:500]}"]
    if "json" not in recorded:
        return []
    expected = recorded["json"]
    if is_poll:
        expected = {name: expected[name] for name in expected if name != "accepted_sequence"}
    return mapping.differences(expected, answer.json())


def without_repetitions(exchanges):
    """Leave out what a user asked again and again while waiting, but for the last time."""
    kept, asked = [], set()
    for exchange in reversed(exchanges):
        is_read = exchange["method"] == "GET" and "/commands/next" not in exchange["path"]
        if is_read and exchange["path"] in asked:
            continue
        agent = exchange["headers"].get("user-agent") == "stabilizer-agent"
        asked = asked | {exchange["path"]} if is_read else asked if agent else set()
        kept.append(exchange)
    return kept[::-1]
