import pytest
from alembic import command
from sqlalchemy import inspect, text

from stabilizer.collector.storage.engine import build_engine, parse_url
from stabilizer.collector.storage.migrate import (
    alembic_config,
    downgrade,
    migrations_folder,
    upgrade,
)
from stabilizer.collector.storage.models import Table
from stabilizer.errors import StorageError


@pytest.fixture
def engine(empty_url):
    engine = build_engine(parse_url(empty_url))
    yield engine
    engine.dispose()


def tables(engine):
    return set(inspect(engine).get_table_names()) - {"alembic_version"}


def test_from_empty_every_table_is_there_and_twice_is_harmless(engine):
    upgrade(engine)
    upgrade(engine)
    assert tables(engine) == set(Table.metadata.tables)


def test_the_migrations_say_what_the_models_say(engine):
    upgrade(engine)
    with engine.begin() as connection:
        command.check(alembic_config(connection))  # raises on any difference


@pytest.mark.parametrize("back_to", ["0003", "0002", "0001", "base"])
def test_down_and_up_again(engine, back_to):
    upgrade(engine)
    downgrade(engine, back_to)
    assert "audit" not in tables(engine)
    upgrade(engine)
    assert tables(engine) == set(Table.metadata.tables)


def test_a_schema_of_a_newer_version_is_left_alone(engine):
    upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StorageError) as caught:
        upgrade(engine)
    assert caught.value.code == "schema_unknown"
    assert tables(engine) == set(Table.metadata.tables)


def test_it_works_from_any_folder(engine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    upgrade(engine)
    assert tables(engine)
    assert list(tmp_path.glob("alembic*")) == []


def test_our_folder_does_not_hide_the_library():
    assert not (migrations_folder() / "__init__.py").exists()


def test_a_failed_migration_changes_nothing(engine):
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE incidents (id INTEGER)"))  # in the way of 0003
    with pytest.raises(StorageError):
        upgrade(engine)
    assert tables(engine) == {"incidents"}
