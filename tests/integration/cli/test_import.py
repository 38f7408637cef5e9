"""`stabilizer import` and `follow` with a real database and a real collector."""

from stabilizer.protocol.queries import RunQuery, SeriesQuery
from stabilizer.protocol.runs import RunState

LOG = "step,loss,grad_norm,grad_norm/fc2/layer0\n"


def write(path, first, count):
    with path.open("a") as file:
        if not first - 1:
            file.write(LOG)
        file.writelines(f"{step},2.5,{step},nan\n" for step in range(first, first + count))


def stored(services):
    (found,) = services.runs.list(RunQuery()).runs
    return found


def test_a_log_becomes_a_finished_run(run, tmp_path, database_url, open_services):
    log = tmp_path / "tuning.csv"
    write(log, 1, 400)
    result = run("import", log, "--database", database_url)
    assert result.exit_code == 0, result.output
    assert "400 new steps" in result.stdout
    assert "0 new steps" in run("import", log, "--database", database_url).stdout
    write(log, 401, 10)
    assert "tuning: run" in run("import", log, "--database", database_url).stdout
    services = open_services()
    found = stored(services)
    assert (found.name, found.state, found.step) == ("tuning", RunState.FINISHED, 410)
    query = SeriesQuery(series=("loss", "grad_norm"), max_points=1000)
    loss, norm = services.queries.read(found.id, query)
    assert len(loss.steps) == len(norm.steps) == 410


def test_over_http(run, tmp_path, collector, services):
    log = tmp_path / "tuning.csv"
    write(log, 1, 300)
    for expected in ("300 new steps", "0 new steps"):
        result = run("import", log, "--collector", collector)
        assert result.exit_code == 0, result.output
        assert expected in result.stdout
    result = run("follow", log, "--collector", collector, "--until-idle", "0")
    assert result.exit_code == 0, result.output
    assert stored(services).step == 300


def test_a_collector_that_refuses_or_is_not_there(run, tmp_path, collector):
    log = tmp_path / "tuning.csv"
    write(log, 1, 3)
    for arguments, message in (
        (("--collector", "http://127.0.0.1:1"), "cannot be reached"),
        (("--collector", "ftp://x"), "allowed: http"),
        (("--collector", f"{collector}/nothing"), "404"),
        (("--collector", collector, "--database", "sqlite:///x.db"), "either"),
    ):
        result = run("import", log, *arguments)
        assert result.exit_code == 2
        assert message in result.stderr
        assert "Traceback" not in result.output
