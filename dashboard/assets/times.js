/* Keeps ages ("3 min ago") and times left ("8 min") current, in the format of dashboard/formatting.py. */
window.dash_clientside = window.dash_clientside || {};
window.dash_clientside.stabilizer = window.dash_clientside.stabilizer || {};
(function () {
    "use strict";

    const UNITS = [[86400, "d"], [3600, "h"], [60, "min"]];
    const JUST_NOW_SECONDS = 5;
    const EVERY_MS = 1000;
    const WITHIN_MS = 1000; // differences within the latency of a message are ignored

    let ahead = 0; // of this clock to the server's

    function roughly(seconds) {
        for (const [size, unit] of UNITS) {
            if (seconds >= size) {
                return Math.floor(seconds / size) + " " + unit;
            }
        }
        return Math.max(1, Math.floor(seconds)) + " s";
    }

    function textOf(element) {
        const seconds = (Date.now() - ahead - Date.parse(element.dateTime)) / 1000;
        if (element.className === "time-ago") {
            return seconds < JUST_NOW_SECONDS ? "just now" : roughly(seconds) + " ago";
        }
        return seconds >= 0 ? "a moment" : roughly(-seconds);
    }

    /* Sets the server's time, since ages refer to its clock. */
    window.dash_clientside.stabilizer.keepTime = function (at) {
        const found = Date.now() - Date.parse(at);
        if (Math.abs(found - ahead) > WITHIN_MS) {
            ahead = found;
        }
    };

    setInterval(function () {
        if (document.hidden) {
            return;
        }
        for (const element of document.querySelectorAll("time.time-ago, time.time-left-text")) {
            const text = textOf(element);
            // Change the text node itself, so that React can still replace it.
            if (element.firstChild && element.firstChild.nodeValue !== text) {
                element.firstChild.nodeValue = text;
            }
        }
    }, EVERY_MS);
})();
