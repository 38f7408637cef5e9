"""Every id of every component, in one place: what callbacks and pages agree on."""

from __future__ import annotations

from typing import Final

# The shell, on every page.
URL: Final = "url"
THEME: Final = "theme"
BANNER: Final = "banner"
LINK_BADGE: Final = "link-badge"
ARMED_BADGE: Final = "armed-badge"
NOTICES: Final = "notices"
CLOCK: Final = "clock"
"""Ticks now and then, so that "3 min ago" does not stay so."""

# News: each holds a count that grows when something else should be asked for.
LIVE_LINK: Final = "live-link"
LIVE_FRAMES: Final = "live-frames"
LIVE_DECISIONS: Final = "live-decisions"
LIVE_CONTROL: Final = "live-control"

LIVE_BEAT: Final = "live-beat"
"""A sign of life of the server, with its time; assets/watch.js misses it."""

TOLD: Final = {store: f"{store}-told" for store in (LIVE_FRAMES, LIVE_DECISIONS, LIVE_CONTROL)}
"""Where the server puts news; assets/news.js hands them on when the page is not busy any more."""

# The list of runs.
RUNS_SEARCH: Final = "runs-search"
RUNS_STATES: Final = "runs-states"
RUNS_SORT: Final = "runs-sort"
RUNS_LIMIT: Final = "runs-limit"
RUNS_MORE: Final = "runs-more"
RUNS_COUNT: Final = "runs-count"
RUNS_PROBLEM: Final = "runs-problem"
RUNS_BODY: Final = "runs-body"
RUNS_SHOWN: Final = "runs-shown"
RUN_ROW: Final = "run-row"
"""Type of the ids of rows; a place stands beside it, from 0."""

# One run.
RUN_ID: Final = "run-id"
RUN_PROBLEM: Final = "run-problem"
RUN_BODY: Final = "run-body"
RUN_HEADER: Final = "run-header"
RUN_PLACE: Final = "run-place"
RUN_STEP: Final = "run-step"
RUN_INCIDENT: Final = "run-incident"
RUN_PROPOSALS: Final = "run-proposals"
RUN_COMMANDS: Final = "run-commands"
RUN_PAST: Final = "run-past-incidents"
RUN_RULES: Final = "run-rules"
RUN_FACTS: Final = "run-facts"
TIMELINE: Final = "timeline"
TIMELINE_MORE: Final = "timeline-more"
TIMELINE_LIMIT: Final = "timeline-limit"

# Charts. The names of the first two are known to assets/charts.js as well.
RUN_RANGE: Final = "run-range"
CHART_WIDTH: Final = "chart-width"
SHOWN: Final = "charts-shown"
EXTENSION: Final = "charts-extension"
REDRAW: Final = "charts-redraw"
PANEL_NAMES: Final = "charts-panel-names"
PICKED: Final = "picked-series"
LOG_LOSS: Final = "log-loss"
CHARTS_PROBLEM: Final = "charts-problem"
CHART_LOSS: Final = "chart-loss"
CHART_GRADIENT: Final = "chart-gradient"
CHART_RATE: Final = "chart-rate"
CHART_Z_LOSS: Final = "chart-z-loss"
CHART_ENTROPY: Final = "chart-entropy"
CHART_PICKED: Final = "chart-picked"
PANELS: Final = (CHART_LOSS, CHART_GRADIENT, CHART_RATE, CHART_Z_LOSS, CHART_PICKED)
"""Panels of series, in the order of the page; attention entropy is drawn from a map."""
HEATMAP: Final = "heatmap"
HEATMAP_METRIC: Final = "heatmap-metric"
HEATMAP_KIND: Final = "heatmap-kind"
HEATMAP_COLOURING: Final = "heatmap-colouring"
HEATMAP_SHOWN: Final = "heatmap-shown"
HEATMAP_PROBLEM: Final = "heatmap-problem"

OPEN_SEND: Final = "open-send"
OPEN_MODE: Final = "open-mode"
OPEN_SILENCE: Final = "open-silence"
OPEN_ARMING: Final = "open-arming"
ANSWER_TARGET: Final = "answer-target"
SEND_ATTEMPT: Final = "send-attempt"
END_SILENCE_TARGET: Final = "end-silence-target"

# Deeds. The types stand in pattern-matching ids beside the id of what they are about.
APPROVE: Final = "approve-command"
REJECT: Final = "reject-command"
CANCEL: Final = "cancel-command"
PREVIEW: Final = "command-preview"
END_SILENCE: Final = "end-silence"

CONTROL_FACTS: Final = "control-facts"
ARMING_TARGET: Final = "arming-target"
"""What the open dialog of the switch says that it will do."""
CONTROL_STATE: Final = "control-state"
CONTROL_SILENCES: Final = "control-silences"
CONTROL_AUDIT: Final = "control-audit"
CONTROL_PROBLEM: Final = "control-problem"
