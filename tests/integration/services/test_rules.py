"""Rule files change while jobs run, in versions, without a loss of what unchanged rules know."""

import numpy as np
import pytest

from stabilizer.errors import ConflictError, NotFoundError, RuleFileError
from stabilizer.protocol.decisions import AlertState
from stabilizer.protocol.queries import RulesUpdate
from stabilizer.protocol.runs import Heartbeat

ADA = "person:ada"
NEW_RULE = """
  - name: gradient_absent
    select: {metric: grad_norm}
    detect: {absent: {}}
    severity: notice
policy:"""


def update(text=None, **fields):
    return RulesUpdate(text=text, reason="try it", **fields)


def health(services, run_id):
    return {rule.name: rule.evaluations for rule in services.queries.rules(run_id).health}


@pytest.fixture
def changed(make):
    """Another threshold for loss_high, and a new rule."""
    return make.rules.replace("above: 10}", "above: 20}").replace("\npolicy:", NEW_RULE)


class TestRun:
    def test_unchanged_rules_keep_their_state(self, services, run_id, make, changed):
        services.ingest.accept(run_id, make.batch(0, np.arange(1, 11)))
        change = services.rules.update_run(run_id, update(changed), ADA)
        assert (change.kept, change.changed) == (("gradient_high",), ("loss_high",))
        assert (change.added, change.removed) == (("gradient_absent",), ())
        services.ingest.accept(run_id, make.batch(1, np.arange(11, 16)))
        assert health(services, run_id) == {
            "loss_high": 5,
            "gradient_high": 15,
            "gradient_absent": 5,
        }

    def test_alerts_of_changed_rules_end_and_others_go_on(self, services, run_id, make):
        text = make.rules.replace("severity: notice", "severity: notice\n    for: 1")
        high = make.block(np.arange(1, 31), values=np.ones((30, 2)))
        values = high.values.copy()
        values[25:] = 99.0
        services.ingest.accept(
            run_id, make.batch(0, blocks=[make.block(np.arange(1, 31), values=values)])
        )
        firing = services.queries.alerts(run_id, AlertState.FIRING)
        assert {alert.rule for alert in firing} == {"loss_high", "gradient_high"}
        services.rules.update_run(run_id, update(text.replace("above: 10}", "above: 11}")), ADA)
        assert [a.rule for a in services.queries.alerts(run_id, AlertState.FIRING)] == [
            "gradient_high"
        ]
        [incident] = services.queries.incidents(run_id)
        assert incident.resolved_step is None
        services.ingest.accept(run_id, make.batch(1, np.arange(31, 45)))
        [incident] = services.queries.incidents(run_id)
        assert incident.number == 1

    def test_a_new_threshold_counts_from_the_next_step_on(self, services, run_id, make, changed):
        services.rules.update_run(run_id, update(changed), ADA)
        services.ingest.accept(run_id, make.batch(0, np.arange(1, 6), 15.0))
        assert services.queries.alerts(run_id) == []
        services.ingest.accept(run_id, make.batch(1, np.arange(6, 11), 25.0))
        assert {alert.rule for alert in services.queries.alerts(run_id)} == {"loss_high"}

    def test_a_collector_that_restarts_goes_on_with_the_newest(
        self, services, run_id, make, changed, open_services
    ):
        services.ingest.accept(run_id, make.batch(0, np.arange(1, 11)))
        services.rules.update_run(run_id, update(changed), ADA)
        services.ingest.accept(run_id, make.batch(1, np.arange(11, 16)))
        services.close()
        again = open_services()
        again.ingest.accept(run_id, make.batch(2, np.arange(16, 21)))
        assert health(again, run_id) == {
            "loss_high": 10,
            "gradient_high": 20,
            "gradient_absent": 10,
        }

    def test_a_job_that_restarts_goes_on_with_the_newest(self, services, run_id, make, changed):
        services.rules.update_run(run_id, update(changed), ADA)
        services.runs.register(make.register())
        assert services.queries.rules(run_id).text == changed

    def test_a_file_that_its_job_has_changed_counts_again(self, services, run_id, make, changed):
        services.rules.update_run(run_id, update(changed), ADA)
        edited = make.rules.replace("above: 10}", "above: 30}")
        services.runs.register(make.register(policy=edited))
        assert services.queries.rules(run_id).text == edited

    def test_versions_are_listed_and_restored(self, services, run_id, make, changed, clock):
        [only] = services.rules.history(run_id).versions
        assert (only.number, only.text, only.actor) == (1, make.rules, "job")
        clock.advance(60)
        assert services.rules.update_run(run_id, update(changed), ADA).version == 2
        assert services.rules.update_run(run_id, update(version=1), ADA).version == 3
        versions = services.rules.history(run_id).versions
        assert [(v.number, v.actor, v.text == changed) for v in versions] == [
            (3, ADA, False),
            (2, ADA, True),
            (1, "job", False),
        ]
        assert versions[0].created_at == clock.now()
        assert services.queries.rules(run_id).text == make.rules

    def test_a_change_is_audited(self, services, run_id, changed):
        services.rules.update_run(run_id, update(changed), ADA)
        entry = services.queries.audit(run_id, 0, 100).entries[-1]
        assert (entry.actor, entry.action, entry.message) == (ADA, "run_rules_changed", "try it")
        assert entry.before["rules_hash"] != entry.after["rules_hash"]

    def test_a_dry_run_changes_nothing(self, services, run_id, make, changed):
        change = services.rules.update_run(run_id, update(changed, dry_run=True), ADA)
        assert (change.dry_run, change.version, change.added) == (True, 1, ("gradient_absent",))
        assert services.queries.rules(run_id).text == make.rules
        assert len(services.rules.history(run_id).versions) == 1

    def test_the_same_file_is_no_new_version(self, services, run_id, make):
        comment = f"# a comment\n{make.rules}"
        change = services.rules.update_run(run_id, update(comment), ADA)
        assert (change.version, change.kept) == (1, ("loss_high", "gradient_high"))
        assert len(services.rules.history(run_id).versions) == 1

    def test_warnings_are_returned(self, services, run_id, make):
        text = make.rules.replace("metric: grad_norm", "metric: grad_norms")
        change = services.rules.update_run(run_id, update(text, dry_run=True), ADA)
        assert "'grad_norms'" in change.warnings[0]

    @pytest.mark.parametrize("text", ["", "rules: []", "a: [", "rules: {}\npolicy: {}\nx: 1"])
    def test_invalid_files_are_refused_and_change_nothing(self, services, run_id, make, text):
        with pytest.raises(RuleFileError):
            services.rules.update_run(run_id, update(text), ADA)
        assert services.queries.rules(run_id).text == make.rules

    def test_unknown_versions_runs_and_ended_runs(self, services, run_id, changed):
        with pytest.raises(NotFoundError, match="version 7"):
            services.rules.update_run(run_id, update(version=7), ADA)
        with pytest.raises(NotFoundError):
            services.rules.update_run("0" * 32, update(changed), ADA)
        services.runs.heartbeat(run_id, Heartbeat(attempt=1, step=0, state="finished"))
        with pytest.raises(ConflictError, match="finished"):
            services.rules.update_run(run_id, update(changed), ADA)


class TestDefault:
    @pytest.fixture
    def runs(self, services, make):
        """Two runs without rules of their own, and one with."""
        policies = (None, None, make.rules)
        registers = [make.register(name=f"r{i}", policy=p) for i, p in enumerate(policies)]
        return [services.runs.register(register).run_id for register in registers]

    def test_live_runs_without_rules_of_their_own_change_over(
        self, services, runs, make, changed, open_services
    ):
        change = services.rules.update_default(update(changed), ADA)
        assert (change.version, change.num_runs) == (2, 2)
        texts = [services.queries.rules(run_id).text for run_id in runs]
        assert texts == [changed, changed, make.rules]
        new = services.runs.register(make.register(name="new", policy=None)).run_id
        assert services.queries.rules(new).text == changed
        services.close()
        again = open_services()
        late = again.runs.register(make.register(name="late", policy=None)).run_id
        assert again.queries.rules(late).text == changed
        assert [v.number for v in again.rules.history(None).versions] == [2, 1]

    def test_a_run_with_a_version_of_its_own_keeps_it(self, services, runs, make, changed):
        services.rules.update_run(runs[0], update(make.rules), ADA)
        assert services.rules.update_default(update(changed), ADA).num_runs == 1
        assert services.queries.rules(runs[0]).text == make.rules

    def test_first_version_is_the_collectors_file(self, services, runs, changed):
        [first] = services.rules.history(None).versions
        services.rules.update_default(update(changed), ADA)
        services.rules.update_default(update(version=1), ADA)
        assert services.queries.rules(runs[0]).text == first.text

    def test_a_dry_run_counts_the_runs(self, services, runs, changed):
        change = services.rules.update_default(update(changed, dry_run=True), ADA)
        assert (change.num_runs, change.version) == (2, 1)
        assert services.queries.rules(runs[0]).text != changed

    def test_another_file_of_the_collector_counts_again(
        self, services, runs, make, changed, open_services, tmp_path
    ):
        services.rules.update_default(update(changed), ADA)
        services.close()
        file = tmp_path / "rules.yaml"
        file.write_text(make.rules)
        again = open_services(rules_file=file)
        late = again.runs.register(make.register(name="late", policy=None)).run_id
        assert again.queries.rules(late).text == make.rules

    def test_a_change_is_audited_once_for_all_and_once_a_run(self, services, runs, changed):
        services.rules.update_default(update(changed), ADA)
        entries = services.queries.audit(None, 0, 100).entries
        made = [e.run_id for e in entries if e.action == "run_rules_changed"]
        assert sorted(made, key=str) == sorted([None, *runs[:2]], key=str)
