from datetime import timedelta

from dash import html

from dashboard.components.elements import since, timeless, until


def test_age_has_the_full_time_as_tooltip(now):
    told = since(now - timedelta(minutes=3), now)
    assert told.children == "3 min ago"
    assert told.dateTime == (now - timedelta(minutes=3)).isoformat()
    assert told.className == "time-ago"


def test_elapsed_time_left_is_a_moment(now):
    assert until(now + timedelta(minutes=8), now).children == "8 min"
    assert until(now - timedelta(seconds=1), now).children == "a moment"


def test_only_changes_other_than_ages_make_a_part_differ(now):
    def part(text, at, seen):
        return html.Div([html.P(text), since(at, seen)])

    later = now + timedelta(hours=1)
    assert timeless(part("a", now, now)) == timeless(part("a", now, later))
    assert timeless(part("a", now, now)) != timeless(part("b", now, now))
    assert timeless(part("a", now, now)) != timeless(part("a", later, later))
