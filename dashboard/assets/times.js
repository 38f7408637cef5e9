/* Keeps "3 min ago" and "8 min" true; the words are those of dashboard/words/amounts.py. */
(function () {
    "use strict";

    const UNITS = [[86400, "d"], [3600, "h"], [60, "min"]];
    const JUST_NOW_SECONDS = 5;
    const EVERY_MS = 1000;

    function roughly(seconds) {
        for (const [size, unit] of UNITS) {
            if (seconds >= size) {
                return Math.floor(seconds / size) + " " + unit;
            }
        }
        return Math.max(1, Math.floor(seconds)) + " s";
    }

    function words(element) {
        const seconds = (Date.now() - Date.parse(element.dateTime)) / 1000;
        if (element.className === "time-ago") {
            return seconds < JUST_NOW_SECONDS ? "just now" : roughly(seconds) + " ago";
        }
        return seconds >= 0 ? "a moment" : roughly(-seconds);
    }

    setInterval(function () {
        if (document.hidden) {
            return;
        }
        for (const element of document.querySelectorAll("time.time-ago, time.time-left-word")) {
            const text = words(element);
            // The text node itself is changed, so that what drew it can still replace it.
            if (element.firstChild && element.firstChild.nodeValue !== text) {
                element.firstChild.nodeValue = text;
            }
        }
    }, EVERY_MS);
})();
