import threading

import pytest
from sqlalchemy import text

from stabilizer.collector.storage.engine import Database, parse_url
from stabilizer.collector.storage.models import RuleSetRow
from stabilizer.errors import ConfigurationError, StorageError


@pytest.fixture
def database(database_url):
    database = Database(parse_url(database_url))
    yield database
    database.close()


def rule_set(name, clock):
    return RuleSetRow(hash=name, text="rules", created_at=clock.now())


def hashes(database):
    with database.reading() as session:
        return list(session.scalars(text("SELECT hash FROM rule_sets ORDER BY hash")))


class TestUrl:
    @pytest.mark.parametrize(
        "url", ["mysql://host/db", "sqlite://", "sqlite:///:memory:", "nonsense", ""]
    )
    def test_what_is_no_database_of_ours_is_refused(self, url):
        with pytest.raises(ConfigurationError, match="database_url"):
            parse_url(url)

    @pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg"])
    def test_postgresql_is_spoken_to_through_psycopg(self, scheme):
        assert parse_url(f"{scheme}://u@h/d").drivername == "postgresql+psycopg"

    def test_a_password_is_not_shown(self):
        with pytest.raises(ConfigurationError) as caught:
            parse_url("mysql://me:secret@host/db")
        assert "secret" not in str(caught.value)


class TestTransaction:
    def test_it_is_all_or_nothing(self, database, clock):
        def break_off():
            with database.transaction() as session:
                session.add(rule_set("a", clock))
                session.flush()
                raise KeyError

        with pytest.raises(KeyError):
            break_off()
        assert hashes(database) == []

    def test_a_refusal_of_the_database_is_ours(self, database, clock):
        with database.transaction() as session:
            session.add(rule_set("a", clock))
        with pytest.raises(StorageError, match="refused"), database.transaction() as session:
            session.add(rule_set("a", clock))
        assert hashes(database) == ["a"]

    def test_readers_see_one_moment_while_a_writer_writes(self, database, clock):
        with database.reading() as reader:
            before = reader.scalars(text("SELECT hash FROM rule_sets")).all()
            with database.transaction() as session:
                session.add(rule_set("a", clock))
            after = reader.scalars(text("SELECT hash FROM rule_sets")).all()
        assert (before, after, hashes(database)) == ([], [], ["a"])

    def test_many_writers_take_turns(self, database, clock):
        def write(number):
            for part in range(5):
                with database.transaction() as session:
                    session.add(rule_set(f"{number}-{part}", clock))

        threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(hashes(database)) == 30

    def test_foreign_keys_hold(self, database):
        insert = "INSERT INTO run_catalogs (run_id, catalog_id, position) VALUES ('x', 'y', 0)"
        with pytest.raises(StorageError), database.transaction() as session:
            session.execute(text(insert))


class TestSqlite:
    @pytest.fixture(params=["sqlite"])
    def backend(self, request):
        return request.param

    @pytest.mark.parametrize(
        ("pragma", "value"), [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1)]
    )
    def test_what_is_acknowledged_survives_a_power_cut(self, database, pragma, value):
        with database.reading() as session:
            assert session.scalar(text(f"PRAGMA {pragma}")) == value

    def test_a_second_collector_is_refused_until_the_first_has_gone(self, database, database_url):
        with pytest.raises(StorageError, match="in use by another collector") as caught:
            Database(parse_url(database_url))
        assert caught.value.code == "database_in_use"
        database.close()
        Database(parse_url(database_url)).close()

    def test_a_folder_that_is_not_there_is_named(self, tmp_path):
        with pytest.raises(StorageError, match="nowhere"):
            Database(parse_url(f"sqlite:///{tmp_path}/nowhere/file.db"))

    def test_a_file_that_is_no_database_is_refused(self, tmp_path):
        file = tmp_path / "text.db"
        file.write_text("this is no database" * 100)
        database = Database(parse_url(f"sqlite:///{file}"))
        with pytest.raises(StorageError):
            database.check()
        database.close()
