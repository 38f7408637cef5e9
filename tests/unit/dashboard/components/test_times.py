from datetime import timedelta

from dash import html

from dashboard.components.elements import since, timeless, until


def test_an_age_is_told_with_its_moment(now):
    told = since(now - timedelta(minutes=3), now)
    assert told.children == "3 min ago"
    assert told.dateTime == (now - timedelta(minutes=3)).isoformat()
    assert told.className == "time-ago"


def test_what_has_just_run_out_has_a_moment_left(now):
    assert until(now + timedelta(minutes=8), now).children == "8 min"
    assert until(now - timedelta(seconds=1), now).children == "a moment"


def test_a_part_is_the_same_as_time_goes_by_and_another_when_anything_else_changes(now):
    def part(text, at, seen):
        return html.Div([html.P(text), since(at, seen)])

    later = now + timedelta(hours=1)
    assert timeless(part("a", now, now)) == timeless(part("a", now, later))
    assert timeless(part("a", now, now)) != timeless(part("b", now, now))
    assert timeless(part("a", now, now)) != timeless(part("a", later, later))
