from datetime import timedelta

import pytest

from stabilizer.errors import NotFoundError
from stabilizer.protocol.queries import ControlUpdate, Note, SilenceCreate

ADA = "person:ada"


@pytest.fixture(params=["sqlite"])
def backend(request):
    return request.param


def silence(**changes):
    return SilenceCreate(**{"rule": "loss_high", "reason": "known"} | changes)


def test_untouched_it_is_armed(services):
    state = services.control.get()
    assert (state.disarmed, state.changed_at, state.silences) == (False, None, ())


def test_the_switch_survives_a_restart(open_services):
    services = open_services()
    services.control.update(ControlUpdate(disarmed=True, reason="night"), ADA)
    before = services.control.get()
    services.close()
    assert open_services().control.get() == before


class TestSilences:
    def test_for_a_time(self, services, clock):
        until = clock.now() + timedelta(hours=1)
        made = services.control.add_silence(silence(until=until), ADA)
        assert services.control.silences() == [made]
        clock.advance(3600)
        assert services.control.silences() == []

    def test_for_steps(self, services, run_id, make):
        made = services.control.add_silence(silence(run_id=run_id, until_step=5), ADA)
        services.ingest.accept(run_id, make.batch(0, range(1, 6)))
        assert services.control.get().silences == (made,)
        services.ingest.accept(run_id, make.batch(1, [6]))
        assert services.control.silences() == []

    @pytest.mark.parametrize("rule", ["loss_high", "*"])
    def test_a_muted_rule_is_seen_and_not_acted_upon(self, services, run_id, make, clock, rule):
        until = clock.now() + timedelta(hours=1)
        services.control.add_silence(silence(rule=rule, until=until), ADA)
        answer = services.ingest.accept(run_id, make.batch(0, range(1, 6), 50.0))
        assert answer.commands == ()
        assert len(services.queries.alerts(run_id)) == 1

    def test_another_run_is_not_muted(self, services, run_id, make, clock):
        other = services.runs.register(make.register(name="other")).run_id
        until = clock.now() + timedelta(hours=1)
        services.control.add_silence(silence(run_id=other, until=until), ADA)
        answer = services.ingest.accept(run_id, make.batch(0, range(1, 6), 50.0))
        assert len(answer.commands) == 1

    def test_one_that_ends_within_a_batch_ends_there(self, services, run_id, make):
        services.control.add_silence(silence(run_id=run_id, until_step=7), ADA)
        answer = services.ingest.accept(run_id, make.batch(0, range(1, 11), 50.0))
        assert answer.commands[0].issued_step == 8

    def test_removed_it_is_gone_and_on_record(self, services, clock):
        until = clock.now() + timedelta(hours=1)
        made = services.control.add_silence(silence(until=until), ADA)
        services.control.remove_silence(made.id, Note(reason="fixed"), ADA)
        assert services.control.silences() == []
        created, removed = services.queries.audit().entries
        assert (created.action, removed.action) == ("silence_created", "silence_removed")
        assert created.after == removed.before
        with pytest.raises(NotFoundError):
            services.control.remove_silence(made.id, Note(reason="again"), ADA)

    def test_for_a_run_that_is_not_there_it_is_refused(self, services):
        with pytest.raises(NotFoundError):
            services.control.add_silence(silence(run_id="nobody", until_step=5), ADA)
