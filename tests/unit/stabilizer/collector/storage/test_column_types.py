import math
from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy.dialects import postgresql, sqlite

from stabilizer.collector.storage.column_types import ExactFloat, Id, JsonText, UtcDateTime, Words

DIALECTS = [sqlite.dialect(), postgresql.dialect()]


def round_trip(column, value, dialect):
    stored = column.process_bind_param(value, dialect)
    return column.process_result_value(stored, dialect)


@pytest.mark.parametrize("dialect", DIALECTS, ids=["sqlite", "postgresql"])
class TestColumns:
    def test_a_moment_keeps_its_instant_and_comes_back_in_utc(self, dialect):
        moment = datetime(2026, 3, 1, 12, 0, 0, 123456, timezone(timedelta(hours=5)))
        found = round_trip(UtcDateTime(), moment, dialect)
        assert (found, found.tzinfo) == (moment, UTC)

    def test_a_moment_without_zone_is_refused(self, dialect):
        naive = datetime(2026, 3, 1)  # noqa: DTZ001  what is tested
        with pytest.raises(ValueError, match="no time zone"):
            UtcDateTime().process_bind_param(naive, dialect)

    @pytest.mark.parametrize(
        "value", [0.1, -0.0, 1e-320, 1.7976931348623157e308, math.inf, -math.inf, math.nan]
    )
    def test_a_float_keeps_every_value(self, dialect, value):
        found = round_trip(ExactFloat(), value, dialect)
        assert repr(found) == repr(value)

    @pytest.mark.parametrize(
        "value", [{}, [], {"a": [1, None, True, "\x00 \u20ac"]}, [math.nan, math.inf], 2**60]
    )
    def test_json_keeps_what_json_cannot_say(self, dialect, value):
        assert repr(round_trip(JsonText(), value, dialect)) == repr(value)

    @pytest.mark.parametrize("column", [Words(), Id()])
    def test_text_is_what_a_database_can_hold(self, dialect, column):
        stored = column.process_bind_param("a\x00b", dialect)
        assert stored == "a\N{REPLACEMENT CHARACTER}b"

    @pytest.mark.parametrize("column", [UtcDateTime(), ExactFloat(), JsonText(), Words()])
    def test_nothing_stays_nothing(self, dialect, column):
        assert column.process_bind_param(None, dialect) is None
        if hasattr(column, "process_result_value") and not isinstance(column, Words):
            assert column.process_result_value(None, dialect) is None
