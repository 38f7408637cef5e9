/* Passes updates to the callbacks of a page, but not during a request or while a button is pressed.
 *
 * Dash drops the response of a callback that is called again meanwhile. If updates arrive faster
 * than responses, with a busy job or a slow connection, the page would never change. So the newest
 * update of each store is kept until all responses have arrived; those in between are merged, since
 * updates are counts. And a press that starts on a button and ends on its replacement gives no
 * click, since Dash rebuilds what it updates.
 */
window.dash_clientside = window.dash_clientside || {};
window.dash_clientside.stabilizer = Object.assign(
    window.dash_clientside.stabilizer || {},
    (function () {
        "use strict";

        const LONGEST_WAIT_MS = 15000; // after this, a response is considered lost
        const pending = new Map(); // callback -> number of its pending requests
        const kept = new Map(); // store -> its newest update
        const CLICK_MS = 100; // a click follows the release of the pointer within this time, by touch too
        let timer = 0;
        let isPressed = false;
        let release = 0;

        function isBusy() {
            return pending.size > 0 || isPressed;
        }

        function pass() {
            clearTimeout(timer);
            timer = 0;
            const updates = Array.from(kept);
            kept.clear();
            updates.forEach(([store, data]) => window.dash_clientside.set_props(store, {data: data}));
        }

        function passIfIdle() {
            if (!isBusy() && kept.size > 0) {
                pass();
            }
        }

        function stopWaiting() {
            pending.clear();
            isPressed = false;
            pass();
        }

        function press(event) {
            if (event.button === 0) {
                clearTimeout(release);
                release = 0;
                isPressed = true;
            }
        }

        function releaseSoon() {
            if (release === 0) {
                release = setTimeout(function () {
                    release = 0;
                    isPressed = false;
                    passIfIdle();
                }, CLICK_MS);
            }
        }

        function move(event) {
            // Released outside of the page: on a scroll bar, or in another window.
            if (isPressed && event.buttons === 0 && event.pointerType === "mouse") {
                releaseSoon();
            }
        }

        window.addEventListener("pointerdown", press, true);
        window.addEventListener("pointermove", move, true);
        window.addEventListener("pointerup", releaseSoon, true);
        window.addEventListener("pointercancel", releaseSoon, true);
        window.addEventListener("blur", releaseSoon);

        return {
            /* Called by Dash before a request; the stream of updates itself has no outputs. */
            requestBegan: function (payload) {
                if (payload.outputs && payload.outputs.length !== 0) {
                    pending.set(payload.output, (pending.get(payload.output) || 0) + 1);
                }
            },

            /* Called by Dash after a response or failure, just before the response is used. */
            requestEnded: function (callback) {
                const left = (pending.get(callback.output) || 0) - 1;
                if (left > 0) {
                    pending.set(callback.output, left);
                } else {
                    pending.delete(callback.output);
                }
                if (!isBusy() && kept.size > 0) {
                    clearTimeout(timer);
                    timer = setTimeout(pass, 0);
                }
            },

            /* Takes an update from the server for a store. */
            keepUpdates: function (data, store) {
                kept.set(store, data);
                if (!isBusy()) {
                    pass();
                } else if (timer === 0) {
                    timer = setTimeout(stopWaiting, LONGEST_WAIT_MS);
                }
            },
        };
    })()
);
