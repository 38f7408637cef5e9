"""All services of one collector, built once and shared by its threads.

    runs:     register(RunRegister) -> RunRegistered; get(run_id) -> Run; list(RunQuery) -> RunPage;
              update(run_id, RunUpdate, actor) -> Run; add_catalogs(run_id, CatalogsAdd) -> tuple[str, ...] (catalog ids);
              heartbeat(run_id, Heartbeat) -> BatchAnswer; sweep_lost() -> list[str]; delete(run_id, actor, reason) -> None
    ingest:   accept(run_id, Batch) -> BatchAnswer; accept_json(run_id, JsonBatch) -> BatchAnswer
    queries:  series(run_id) -> list[SeriesInfo]; read(run_id, SeriesQuery) -> list[SeriesData];
              alerts(run_id, state: AlertState | None = None, limit: int = 200) -> list[Alert];
              incidents(run_id) -> list[Incident]; incident(incident_id) -> Incident; rules(run_id) -> RunRules;
              audit(run_id | None = None, after: int = 0, limit: int = 200) -> AuditPage
    commands: create(run_id, CommandCreate, actor) -> Command; list(run_id, states: Collection[CommandState] = ()) -> list[Command];
              get(command_id) -> Command; approve/reject/cancel(command_id, Note, actor) -> Command;
              poll(run_id, attempt) -> BatchAnswer; result(run_id, CommandResult) -> Command; expire_due() -> int
    control:  get() -> ControlState; update(ControlUpdate, actor) -> ControlState;
              silences() -> list[Silence]; add_silence(SilenceCreate, actor) -> Silence; remove_silence(silence_id, Note, actor) -> None
    changes:  version(run_id) -> int; wait(run_id, version, timeout_seconds) -> int
    Services.version(run_id) / Services.wait_for_change(run_id, version, timeout) go to `changes`; Services.ready() raises
    StorageError if the database does not answer; Services.close().
"""
