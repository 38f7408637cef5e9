"""Ids of all components, shared by pages and callbacks."""

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
"""Interval that triggers a periodic refresh."""

# Stores of update counts: a new count triggers the callbacks that read the store.
LIVE_LINK: Final = "live-link"
LIVE_FRAMES: Final = "live-frames"
LIVE_DECISIONS: Final = "live-decisions"
LIVE_CONTROL: Final = "live-control"

LIVE_BEAT: Final = "live-beat"
"""Heartbeat of the server, with its time; assets/watch.js checks for it."""

INCOMING: Final = {
    store: f"{store}-incoming" for store in (LIVE_FRAMES, LIVE_DECISIONS, LIVE_CONTROL)
}
"""Stores that the server writes; assets/updates.js copies them on when the page is idle."""

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
"""Type of the pattern-matching ids of rows; `place` counts from 0."""

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

# Charts. assets/charts.js uses the first two as well.
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
"""Panels of series, in page order; the panel of attention entropy is drawn from a heatmap."""
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

# Actions: types of pattern-matching ids; `id` is that of the command or silence.
APPROVE: Final = "approve-command"
REJECT: Final = "reject-command"
CANCEL: Final = "cancel-command"
PREVIEW: Final = "command-preview"
END_SILENCE: Final = "end-silence"

CONTROL_FACTS: Final = "control-facts"
ARMING_TARGET: Final = "arming-target"
"""State that the open dialog will set."""
CONTROL_STATE: Final = "control-state"
CONTROL_SILENCES: Final = "control-silences"
CONTROL_AUDIT: Final = "control-audit"
CONTROL_PROBLEM: Final = "control-problem"
