"""Delivers records in the name of one session: this process', or one that an earlier one left."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import Final

from stabilizer.agent.telemetry.attempts import Start, move_header, move_start
from stabilizer.agent.telemetry.client import CollectorClient, RefusedError
from stabilizer.agent.telemetry.spool import Record, RecordKind
from stabilizer.errors import TelemetryError
from stabilizer.protocol.batches import AttemptStart, BatchAnswer, MarkerKind
from stabilizer.protocol.commands import CommandResult
from stabilizer.protocol.frames import decode_batch, encode_batch
from stabilizer.protocol.runs import CatalogsAdd, RunRegister, RunRegistered
from stabilizer.protocol.series import Catalog

_CATALOGS_PER_REQUEST: Final = 100


class Verdict(Enum):
    """What a failure means for what was to be delivered."""

    RETRY = auto()
    """The collector is away or unwell: later, with growing waits."""
    REFUSED = auto()
    """It does not want us: a retry mends nothing, a person does."""
    FINAL = auto()
    """It does not want this one: the next may be well."""
    LOST_RUN = auto()
    """It does not know the run: register again."""


def judge(error: TelemetryError) -> Verdict:
    """Tell what a failure means."""
    if not isinstance(error, RefusedError):
        permanent = error.code in ("redirect_refused", "tls_failed")
        return Verdict.REFUSED if permanent else Verdict.RETRY
    if error.status in (401, 403, 426):
        return Verdict.REFUSED
    if error.code == "unknown_run":
        return Verdict.LOST_RUN
    if error.code == "unknown_command":
        return Verdict.FINAL
    if error.status >= 500 or error.status in (404, 408, 425, 429):
        return Verdict.RETRY
    return Verdict.FINAL


class Delivery:
    """One session's side of the conversation.

    Args:
        client: Talks to the collector.
        register: How the session introduces itself.
        catalogs: Its catalogs by id; may grow.
        starts: Its attempts after the first, by local number; may grow.
        is_live: Whether its snapshots still exist; a dead process' inventory is not told.
    """

    def __init__(
        self,
        client: CollectorClient,
        register: RunRegister,
        *,
        catalogs: dict[str, Catalog],
        starts: Mapping[int, Start],
        is_live: bool,
    ) -> None:
        self._client = client
        self._register = register
        self._catalogs = catalogs
        self._starts = starts
        self._is_live = is_live
        self._announced: set[str] = set()
        self.run_id: str | None = None
        self.base = 1

    @property
    def is_registered(self) -> bool:
        """Whether the collector knows the session."""
        return self.run_id is not None

    @property
    def message(self) -> RunRegister:
        """How the session introduces itself now, with every catalog it has used."""
        return self._register.model_copy(update={"catalogs": tuple(self._catalogs.values())})

    def register(self) -> RunRegistered:
        """Introduce the session; the collector begins an attempt for it."""
        message = self.message
        answer = self._client.register(message)
        self.run_id, self.base = answer.run_id, answer.attempt
        self._announced = {catalog.id for catalog in message.catalogs}
        return answer

    def resume(self, run_id: str, base: int) -> None:
        """Go on where an earlier process stood; its catalogs were told or will be asked for."""
        self.run_id, self.base = run_id, base
        self._announced = set(self._catalogs)

    def forget(self) -> None:
        """The collector does not know the run any more."""
        self.run_id = None

    def send(self, record: Record) -> BatchAnswer | None:
        """Deliver a record; mend what the collector says it is missing.

        Returns:
            The answer to a batch; None for a result.

        Raises:
            TelemetryError: It was not delivered, or that is unclear; see `judge`.
        """
        run_id = self._known_run()
        if record.kind is RecordKind.RESULT:
            self._client.send_result(run_id, CommandResult.model_validate_json(record.payload))
            return None
        self._announce()
        body = self._body(record, with_start=False)
        mended: set[str] = set()
        while True:
            try:
                return self._client.send_frames(run_id, body)
            except RefusedError as error:
                if error.code in mended:
                    raise
                mended.add(error.code)
                if error.code == "unknown_catalog":
                    self._announced = set()
                    self._announce()
                elif error.code == "unknown_attempt":
                    body = self._body(record, with_start=True)
                else:
                    raise

    def _announce(self) -> None:
        if len(self._announced) == len(self._catalogs):
            return
        fresh = [item for key, item in self._catalogs.items() if key not in self._announced]
        for begin in range(0, len(fresh), _CATALOGS_PER_REQUEST):
            part = tuple(fresh[begin : begin + _CATALOGS_PER_REQUEST])
            self._client.add_catalogs(self._known_run(), CatalogsAdd(catalogs=part))
            self._announced.update(catalog.id for catalog in part)

    def _body(self, record: Record, *, with_start: bool) -> bytes:
        """Return the batch in today's numbers; the very bytes of the record where nothing moved."""
        if record.base == self.base and self._is_live and not with_start:
            return record.payload
        batch = decode_batch(record.payload)
        header = move_header(batch.header, record.base, self.base)
        if not self._is_live:
            header = header.model_copy(update={"snapshots": None})
        if with_start:
            start = self._start((header.attempt or 1) - self.base + 1)
            header = header.model_copy(update={"attempt_start": start})
        return encode_batch(header, batch.blocks)

    def _start(self, local: int) -> AttemptStart:
        known = self._starts.get(local)
        if known is not None:
            return move_start(known.start, known.base, self.base)
        return AttemptStart(from_step=self._register.start_step, reason=MarkerKind.RESUME)

    def _known_run(self) -> str:
        if self.run_id is None:
            raise TelemetryError("the run is not registered", code="not_registered")
        return self.run_id
