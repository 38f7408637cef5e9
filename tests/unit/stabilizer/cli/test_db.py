"""`stabilizer db`: where the schema stands, and bringing it up to date."""

from stabilizer.clock import SystemClock
from stabilizer.collector.services.container import build_services
from stabilizer.settings import CollectorSettings

URL = "sqlite:///a.db"


class TestCurrent:
    def test_a_database_that_is_up_to_date(self, run):
        run("db", "upgrade", "--database", URL)
        result = run("db", "current", "--database", URL)
        assert (result.exit_code, result.stdout.split()[0]) == (0, "revision")

    def test_an_empty_one_is_not(self, run, tmp_path):
        (tmp_path / "a.db").touch()
        result = run("db", "current", "--database", URL)
        assert result.exit_code == 2
        assert "revision none, newest" in result.stdout

    def test_one_that_is_not_there_is_reported_and_not_made(self, run, tmp_path):
        result = run("db", "current", "--database", URL)
        assert result.exit_code == 2
        assert "a.db" in result.stderr
        assert list(tmp_path.iterdir()) == []

    def test_a_file_that_is_no_database_is_reported(self, run, tmp_path):
        (tmp_path / "a.db").write_text("not a database, but long enough to be looked at " * 100)
        result = run("db", "current", "--database", URL)
        assert result.exit_code == 2
        assert "error: " in result.stderr
        assert "Traceback" not in result.output


class TestUpgrade:
    def test_twice_is_harmless(self, run):
        first = run("db", "upgrade", "--database", URL)
        second = run("db", "upgrade", "--database", URL)
        assert (first.exit_code, second.exit_code) == (0, 0)
        assert first.stdout == second.stdout

    def test_the_environment_names_the_database_too(self, run, tmp_path, monkeypatch):
        monkeypatch.setenv("STABILIZER_DATABASE_URL", "sqlite:///b.db")
        assert run("db", "upgrade").exit_code == 0
        assert (tmp_path / "b.db").exists()

    def test_under_a_running_collector_it_is_refused(self, run):
        services = build_services(CollectorSettings(database_url=URL, tokens=()), SystemClock())
        try:
            result = run("db", "upgrade", "--database", URL)
        finally:
            services.close()
        assert result.exit_code == 2
        assert "in use by another collector" in result.stderr

    def test_a_url_that_names_no_database_is_refused(self, run):
        result = run("db", "upgrade", "--database", "sqlite://")
        assert result.exit_code == 2
        assert "database_url" in result.stderr
