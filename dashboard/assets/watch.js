/* Detects a lost connection to the dashboard, and reloads the page when it is back.
 *
 * The server sends a heartbeat every few seconds; without heartbeats, the displayed state of the
 * collector is out of date. Dash's worker gives up after ten attempts, and lost responses are not
 * requested again, so the page is reloaded unless a dialog is open.
 *
 * Where no heartbeat can arrive (no SharedWorker, or a proxy that blocks WebSockets) the page polls
 * instead, and says so.
 */
window.dash_clientside = window.dash_clientside || {};
window.dash_clientside.stabilizer = Object.assign(
    window.dash_clientside.stabilizer || {},
    (function () {
        "use strict";

        const CHECK_MS = 1000;
        const SILENCE_MS = 12000; // several heartbeats
        const ASK_MS = 3000;
        const POLL_MS = 5000; // as the badge says (dashboard/components/connection.py)
        const TIMEOUT_MS = 4000;
        const YOUNG_MS = 60000; // reload at most this often, so that a persistent error does not loop
        const STORES = ["live-frames-incoming", "live-decisions-incoming", "live-control-incoming"];

        let checkedAt = performance.now();
        let silent = 0; // milliseconds without a heartbeat while the page was visible
        let wait = 0; // milliseconds until the next request
        let isAsking = false;
        let hasBeaten = false;
        let isOver = false; // the session has ended: no more updates
        let polls = typeof SharedWorker === "undefined";
        let count = 0;

        const dataset = document.documentElement.dataset;

        function isLost() {
            return dataset.dashboard !== undefined;
        }

        function connected() {
            silent = 0;
            delete dataset.dashboard;
        }

        function refresh() {
            count += 1;
            const set = window.dash_clientside.set_props;
            const updates = {run_id: null, count: `polled ${count}`, step: 0};
            set("live-link", {data: {link: "polled", since: null, count: count}});
            STORES.forEach((store) => set(store, {data: updates}));
        }

        function comeBack() {
            const isBusy = document.querySelector('[role="dialog"]') !== null;
            if (isBusy || performance.now() < YOUNG_MS) {
                dataset.dashboard = "back";
            } else {
                window.location.reload();
            }
        }

        function answered(response) {
            if (!response.ok) {
                throw new Error(`status ${response.status}`);
            }
            window.dash_clientside.stabilizer.keepTime(response.headers.get("date"));
            if (hasBeaten || (polls && isLost())) {
                if (isLost()) {
                    comeBack();
                }
            } else if (polls || isLost()) {
                polls = true;
                wait = POLL_MS;
                connected();
                refresh();
            }
        }

        function ask() {
            isAsking = true;
            fetch("/healthz", {cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS)})
                .then(answered)
                .catch(function () {
                    if (isLost()) {
                        dataset.dashboard = "lost";
                    }
                })
                .finally(() => (isAsking = false));
        }

        setInterval(function () {
            // A frozen page receives nothing: count only the time that it was awake.
            const passed = Math.min(performance.now() - checkedAt, 2 * CHECK_MS);
            checkedAt = performance.now();
            if (document.hidden || isOver) {
                silent = 0;
                return;
            }
            silent += passed;
            wait -= passed;
            if (silent >= SILENCE_MS && !isLost()) {
                dataset.dashboard = "lost";
            }
            if ((isLost() || polls) && wait <= 0 && !isAsking) {
                wait = isLost() ? ASK_MS : POLL_MS;
                ask();
            }
        }, CHECK_MS);

        return {
            /* Takes a heartbeat of the server. */
            takeBeat: function (beat) {
                window.dash_clientside.stabilizer.keepTime(beat.at);
                hasBeaten = true;
                polls = false;
                isOver = beat.last;
                connected();
            },
        };
    })()
);
