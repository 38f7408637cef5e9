/* Hands news on to the callbacks of a page, but never while one of them is still under way, nor
 * while a person presses a button.
 *
 * Dash drops the answer of a callback that is called again before it has come. Where news come
 * faster than answers, of a busy job or over a slow line, the page would show nothing at all until
 * the job falls silent. So the newest news of each kind are kept until all answers are there; what
 * comes in between is told with them, since news are counts. And Dash makes what it renews
 * anew: of a press that begins on the old button and ends on the new one there comes no click.
 */
window.dash_clientside = window.dash_clientside || {};
window.dash_clientside.stabilizer = Object.assign(
    window.dash_clientside.stabilizer || {},
    (function () {
        "use strict";

        const LONGEST_WAIT_MS = 15000; // an answer that has not come by then is not waited for
        const underWay = new Map(); // callback -> how many of its requests are not answered yet
        const kept = new Map(); // store -> the newest news for it
        const CLICK_MS = 100; // a click comes this soon after the pointer is let go, by touch too
        let timer = 0;
        let isPressed = false;
        let release = 0;

        function isBusy() {
            return underWay.size > 0 || isPressed;
        }

        function handOn() {
            clearTimeout(timer);
            timer = 0;
            const news = Array.from(kept);
            kept.clear();
            news.forEach(([store, data]) => window.dash_clientside.set_props(store, {data: data}));
        }

        function handOnIfFree() {
            if (!isBusy() && kept.size > 0) {
                handOn();
            }
        }

        function giveUpWaiting() {
            underWay.clear();
            isPressed = false;
            handOn();
        }

        function press(event) {
            if (event.button === 0) {
                clearTimeout(release);
                release = 0;
                isPressed = true;
            }
        }

        function letGo() {
            if (release === 0) {
                release = setTimeout(function () {
                    release = 0;
                    isPressed = false;
                    handOnIfFree();
                }, CLICK_MS);
            }
        }

        function move(event) {
            // Let go where the page could not see it: on a scroll bar, or in another window.
            if (isPressed && event.buttons === 0 && event.pointerType === "mouse") {
                letGo();
            }
        }

        window.addEventListener("pointerdown", press, true);
        window.addEventListener("pointermove", move, true);
        window.addEventListener("pointerup", letGo, true);
        window.addEventListener("pointercancel", letGo, true);
        window.addEventListener("blur", letGo);

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
                if (!isBusy() && kept.size > 0) {
                    clearTimeout(timer);
                    timer = setTimeout(handOn, 0);
                }
            },

            /* Takes news from the server for a store. */
            keepNews: function (data, store) {
                kept.set(store, data);
                if (!isBusy()) {
                    handOn();
                } else if (timer === 0) {
                    timer = setTimeout(giveUpWaiting, LONGEST_WAIT_MS);
                }
            },
        };
    })()
);
