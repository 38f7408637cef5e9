/* Notices that the page has lost the dashboard, and comes back when it answers again.
 *
 * The server shows a beat every few seconds; without beats, what the page says of the link to the
 * collector is worth nothing. Dash's worker gives up for good after ten attempts, and an answer that
 * was lost is not asked for again: so the page is loaded anew, unless a dialog is open.
 *
 * Where no beat can come (no SharedWorker, or a proxy that lets no WebSocket through) the page asks
 * for everything now and then instead, and says so.
 */
window.dash_clientside = window.dash_clientside || {};
window.dash_clientside.stabilizer = Object.assign(
    window.dash_clientside.stabilizer || {},
    (function () {
        "use strict";

        const LOOK_MS = 1000;
        const SILENCE_MS = 12000; // several beats, and a network's hiccup
        const ASK_MS = 3000;
        const POLL_MS = 5000; // as the badge says (dashboard/components/link.py)
        const TIMEOUT_MS = 4000;
        const YOUNG_MS = 60000; // what goes wrong after each loading must not load for ever
        const STORES = ["live-frames-told", "live-decisions-told", "live-control-told"];

        let looked = performance.now();
        let silent = 0; // for how long, while somebody could see the page
        let wait = 0; // until the dashboard is asked
        let isAsked = false;
        let hasBeaten = false;
        let isOver = false; // the session has ended: nothing is told any more
        let polls = typeof SharedWorker === "undefined";
        let count = 0;

        const look = () => document.documentElement.dataset;

        function isLost() {
            return look().dashboard !== undefined;
        }

        function calmDown() {
            silent = 0;
            delete look().dashboard;
        }

        function refresh() {
            count += 1;
            const set = window.dash_clientside.set_props;
            const news = {run_id: null, count: `polled ${count}`, step: 0};
            set("live-link", {data: {link: "polled", since: null, count: count}});
            STORES.forEach((store) => set(store, {data: news}));
        }

        function comeBack() {
            const isBusy = document.querySelector('[role="dialog"]') !== null;
            if (isBusy || performance.now() < YOUNG_MS) {
                look().dashboard = "back";
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
                calmDown();
                refresh();
            }
        }

        function ask() {
            isAsked = true;
            fetch("/healthz", {cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS)})
                .then(answered)
                .catch(function () {
                    if (isLost()) {
                        look().dashboard = "lost";
                    }
                })
                .finally(() => (isAsked = false));
        }

        setInterval(function () {
            // A page that was frozen has not listened: only what it was awake for counts.
            const passed = Math.min(performance.now() - looked, 2 * LOOK_MS);
            looked = performance.now();
            if (document.hidden || isOver) {
                silent = 0;
                return;
            }
            silent += passed;
            wait -= passed;
            if (silent >= SILENCE_MS && !isLost()) {
                look().dashboard = "lost";
            }
            if ((isLost() || polls) && wait <= 0 && !isAsked) {
                wait = isLost() ? ASK_MS : POLL_MS;
                ask();
            }
        }, LOOK_MS);

        return {
            /* Takes a beat of the server. */
            takeBeat: function (beat) {
                window.dash_clientside.stabilizer.keepTime(beat.at);
                hasBeaten = true;
                polls = false;
                isOver = beat.last;
                calmDown();
            },
        };
    })()
);
