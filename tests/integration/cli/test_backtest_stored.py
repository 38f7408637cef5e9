"""A stored run is judged again as it was judged live."""

import pytest

from stabilizer.cli.stored_runs import open_repositories, stored_names, stored_steps
from stabilizer.errors import ConfigurationError
from stabilizer.protocol.batches import Marker, MarkerKind
from stabilizer.protocol.decisions import Mode
from stabilizer.replay.job import replay
from stabilizer.rules.loader import load_rules


def test_the_alerts_are_those_of_the_live_run(services, make, database_url, clock):
    run_id = services.runs.register(make.register(mode=Mode.OBSERVE)).run_id
    services.ingest.accept(run_id, make.batch(0, range(1, 41)))
    clock.advance(1)
    marker = Marker(kind=MarkerKind.PHASE_CHANGE, step=45, text="unfrozen")
    services.ingest.accept(run_id, make.batch(1, range(41, 61), [2.0] * 15 + [50.0] * 5))
    clock.advance(1)
    services.ingest.accept(run_id, make.batch(2, range(61, 81), markers=(marker,)))
    start = make.rollback_start(60)
    losses = [2.0] * 60 + [99.0] * 20
    services.ingest.accept(
        run_id, make.batch(0, range(61, 141), losses, attempt=2, attempt_start=start)
    )
    live = services.queries.alerts(run_id)
    with open_repositories(database_url) as repositories:
        assert stored_names(repositories, None) == {run_id: "run"}
        assert stored_names(repositories, "run") == {run_id: "run"}
        result = replay(stored_steps(repositories, run_id), load_rules(make.rules), Mode.OBSERVE)
    assert result.attempts == 2
    assert result.rows == 160
    assert len(result.alerts) >= 2
    assert sorted((a.rule, a.series, a.step) for a in result.alerts) == sorted(
        (a.rule, a.series, a.firing_step) for a in live if a.firing_step is not None
    )


def test_a_run_that_is_not_there(services, run_id, database_url):
    with open_repositories(database_url) as repositories:
        assert stored_names(repositories, run_id) == {run_id: "run"}
        with pytest.raises(ConfigurationError, match="no such run"):
            stored_names(repositories, "none")
