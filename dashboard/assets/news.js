/* Hands news on to the callbacks of a page, but never while one of them is still under way.
 *
 * Dash drops the answer of a callback that is called again before it has come. Where news come
 * faster than answers, of a busy job or over a slow line, the page would show nothing at all until
 * the job falls silent. So the newest news of each kind are kept until all answers are there; what
 * comes in between is told with them, since news are counts.
 */
window.dash_clientside = window.dash_clientside || {};
window.dash_clientside.stabilizer = Object.assign(
    window.dash_clientside.stabilizer || {},
    (function () {
        "use strict";

        const LONGEST_WAIT_MS = 15000; // an answer that has not come by then is not waited for
        const underWay = new Map(); // callback -> how many of its requests are not answered yet
        const kept = new Map(); // store -> the newest news for it
        let timer = 0;

        function handOn() {
            clearTimeout(timer);
            timer = 0;
            const news = Array.from(kept);
            kept.clear();
            news.forEach(([store, data]) => window.dash_clientside.set_props(store, {data: data}));
        }

        function giveUpWaiting() {
            underWay.clear();
            handOn();
        }

        return {
            /* Called by Dash before it asks the server; the stream of news itself has no outputs. */
            requestBegan: function (payload) {
                if (payload.outputs && payload.outputs.length !== 0) {
                    underWay.set(payload.output, (underWay.get(payload.output) || 0) + 1);
                }
            },

            /* Called by Dash when a callback has its answer or has failed, just before it is used. */
            requestEnded: function (callback) {
                const left = (underWay.get(callback.output) || 0) - 1;
                if (left > 0) {
                    underWay.set(callback.output, left);
                } else {
                    underWay.delete(callback.output);
                }
                if (underWay.size === 0 && kept.size > 0) {
                    clearTimeout(timer);
                    timer = setTimeout(handOn, 0);
                }
            },

            /* Takes news from the server for a store. */
            keepNews: function (data, store) {
                kept.set(store, data);
                if (underWay.size === 0) {
                    handOn();
                } else if (timer === 0) {
                    timer = setTimeout(giveUpWaiting, LONGEST_WAIT_MS);
                }
            },
        };
    })()
);
