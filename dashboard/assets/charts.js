/* One crosshair and one range of steps for all charts of a page.
 *
 * A chart is a plotly figure within an element of class `chart`. Its layout.meta, written by
 * dashboard/figures/, has x_range, is_zoomed and notes of any chart; shown and y_full of a panel;
 * cells of a heatmap.
 *
 * The common range is kept here and applied to every chart with another one: after a zoom, a new
 * figure or an extension. Only differences are applied, so updates do not loop. Plotly.update is
 * used because dcc.Graph redraws the chart after Plotly.relayout.
 *
 * Tooltips are elements of the page, not plotly's labels, which are clipped at the edge of their
 * chart. Text from jobs and users is only ever set as textContent.
 */
(function () {
    "use strict";

    const ROOM = 0.03; // fraction of the range kept free to the right of the newest step
    const NEAR = 0.005; // fraction of the range: closer to the right end, the range advances
    const REPORT_AFTER_MS = 150;
    const WIDTH_STEP = 50; // pixels
    const SAMPLE_REACH = 20; // pixels from the crosshair within which a sample is shown
    const EVENT_REACH = 7; // likewise an event or a mark
    const MAX_NOTES = 4;

    const emitters = new WeakMap(); // chart -> its emitter with our listeners
    const narrowed = new WeakMap(); // chart with its full y range -> the ranges before
    let zoom = null; // [first, last] chosen by the user
    let whole = null; // [first, last] of the run
    let pointer = null; // {chart, step, x, y}; x and y in window pixels
    let width = 0;
    let reportTimer = 0;

    function onceAFrame(act) {
        let isScheduled = false;
        return function () {
            if (!isScheduled) {
                isScheduled = true;
                requestAnimationFrame(function () {
                    isScheduled = false;
                    act();
                });
            }
        };
    }

    function allCharts() {
        return Array.from(document.querySelectorAll(".chart .js-plotly-plot")).filter(
            (chart) => chart.on && chart._fullLayout && chart._fullLayout.xaxis
        );
    }

    function metaOf(chart) {
        return (chart.layout && chart.layout.meta) || {};
    }

    function linesOf(chart) {
        const {shown} = metaOf(chart);
        return shown ? shown.lines.map((line, index) => ({...line, ...chart.data[index]})) : [];
    }

    function setStore(id, data) {
        if (window.dash_clientside && window.dash_clientside.set_props) {
            window.dash_clientside.set_props(id, {data: data});
        }
    }

    /* The range of steps. */

    function isSame(one, other) {
        const slack = 1e-9 * Math.max(Math.abs(other[0]), Math.abs(other[1]), 1);
        return Math.abs(one[0] - other[0]) <= slack && Math.abs(one[1] - other[1]) <= slack;
    }

    function newestStep(chart) {
        return Math.max(...linesOf(chart).map((line) => line.x[line.x.length - 1] ?? -Infinity));
    }

    function widenWhole(charts) {
        for (const chart of charts) {
            const meta = metaOf(chart);
            if (!meta.x_range || meta.is_zoomed) {
                continue;
            }
            const [first, last] = meta.x_range;
            whole = whole ? [Math.min(whole[0], first), Math.max(whole[1], last)] : [first, last];
            const newest = newestStep(chart);
            if (newest > whole[1] - NEAR * (whole[1] - whole[0])) {
                whole = [whole[0], newest + Math.max(1, ROOM * (newest - whole[0]))];
            }
        }
    }

    function align() {
        const charts = allCharts();
        widenWhole(charts);
        const range = zoom || whole;
        for (const chart of charts) {
            const change = narrowed.has(chart) ? fullRanges(chart) : {};
            if (range && metaOf(chart).x_range && !isSame(chart._fullLayout.xaxis.range, range)) {
                change["xaxis.range"] = range.slice();
            }
            if (Object.keys(change).length) {
                window.Plotly.update(chart, {}, change);
            }
        }
    }

    const alignSoon = onceAFrame(align);

    function zoomTo(range) {
        const next = range && [Math.floor(range[0]), Math.ceil(range[1])];
        if (next ? zoom && isSame(zoom, next) : !zoom) {
            return;
        }
        zoom = next;
        align();
        clearTimeout(reportTimer);
        reportTimer = setTimeout(() => setStore("run-range", zoom), REPORT_AFTER_MS);
    }

    function onRelayout(change) {
        if ("xaxis.range[0]" in change && "xaxis.range[1]" in change) {
            zoomTo([change["xaxis.range[0]"], change["xaxis.range[1]"]]);
        } else if (Array.isArray(change["xaxis.range"])) {
            zoomTo(change["xaxis.range"]);
        } else if (change["xaxis.autorange"]) {
            zoomTo(null);
            alignSoon();
        }
    }

    /* The range of values: a double click without zoom shows all spikes. */

    function fullRanges(chart) {
        const change = {};
        (metaOf(chart).y_full || []).forEach((full, index) => {
            const name = index ? "yaxis2" : "yaxis";
            const axis = chart._fullLayout[name];
            if (full && axis && !isSame(axis.range, full)) {
                narrowed.set(chart, {...narrowed.get(chart), [name + ".range"]: axis.range.slice()});
                change[name + ".range"] = full.slice();
            }
        });
        return change;
    }

    function onDoubleClick(chart) {
        if (zoom) {
            zoomTo(null);
        } else if (narrowed.has(chart)) {
            const before = narrowed.get(chart);
            narrowed.delete(chart);
            window.Plotly.update(chart, {}, before);
        } else {
            narrowed.set(chart, {});
            align();
        }
    }

    /* Contents of tooltips. */

    function format(value) {
        const size = Math.abs(value);
        if (size !== 0 && (size < 1e-4 || size >= 1e7)) {
            return value.toExponential(3).replace(/\.?0*e/, "e");
        }
        const digits = size >= 1e4 ? {maximumFractionDigits: 0} : {maximumSignificantDigits: 4};
        return value.toLocaleString("en-US", digits);
    }

    function nearest(steps, step) {
        let low = 0;
        let high = steps.length - 1;
        while (low < high) {
            const middle = (low + high) >> 1;
            if (steps[middle] < step) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        return low > 0 && step - steps[low - 1] < steps[low] - step ? low - 1 : low;
    }

    function sampleAt(chart, trace, step, reach) {
        const {xaxis} = chart._fullLayout;
        if (!trace.x || !trace.x.length || trace.visible === "legendonly") {
            return -1;
        }
        const at = nearest(trace.x, step);
        return Math.abs(xaxis.d2p(trace.x[at]) - xaxis.d2p(step)) <= reach ? at : -1;
    }

    function valuesAt(chart, traces, step) {
        const values = [];
        for (const trace of traces) {
            const at = sampleAt(chart, trace, step, SAMPLE_REACH);
            if (at >= 0 && trace.y[at] !== null) {
                values.push({
                    name: trace.label || trace.meta.label,
                    colour: trace.line.color,
                    value: trace.y[at],
                    step: trace.x[at],
                });
            }
        }
        return values;
    }

    function abandonedBranches(chart) {
        return chart.data.filter((trace) => trace.meta && trace.meta.label);
    }

    function notesAt(chart, step) {
        const {xaxis} = chart._fullLayout;
        const reach = Math.abs(xaxis.p2d(EVENT_REACH) - xaxis.p2d(0));
        const count = linesOf(chart).length;
        const marks = chart.data
            .slice(count, count + 3)
            .filter((trace) => trace.customdata)
            .flatMap((trace) =>
                Array.from(trace.x, (at, index) => ({distance: Math.abs(at - step), text: trace.customdata[index]}))
            )
            .filter((mark) => mark.distance <= reach)
            .sort((one, other) => one.distance - other.distance)
            .slice(0, 1)
            .map((mark) => mark.text);
        const events = (metaOf(chart).notes || [])
            .filter((note) => note.first - reach <= step && step <= note.last + reach)
            .map((note) => note.text);
        return {marks: marks, events: events.slice(0, MAX_NOTES)};
    }

    function cellAt(chart, step, y) {
        const {rows, columns, statistic, medians} = metaOf(chart).cells;
        const {yaxis} = chart._fullLayout;
        const cells = chart.data[0];
        const row = Math.round(yaxis.p2d(y - chart.getBoundingClientRect().top - yaxis._offset));
        const column = cells.x.findIndex((edge, index) => edge <= step && step < cells.x[index + 1]);
        const steps = columns[column];
        if (!steps || row < 0 || row >= rows.length) {
            return null;
        }
        const value = cells.customdata[row][column];
        const numNonfinite = chart.data[1] && chart.data[1].z[row][column];
        const parts = [];
        if (value !== null) {
            const factor = medians && medians[row] ? value / medians[row] : null;
            const times = factor === null ? "" : ` (${format(factor)}x the row median)`;
            parts.push(`${statistic} ${format(value)}${times}`);
        }
        if (numNonfinite) {
            parts.push(`${numNonfinite} NaN or Inf`);
        }
        const [first, last] = steps.map((one) => one.toLocaleString("en-US"));
        const when = first === last ? `step ${first}` : `steps ${first} to ${last}`;
        return [rows[row], when, parts.join("\n") || "not measured"].join("\n");
    }

    /* Elements of tooltips. */

    function element(name, className, text) {
        const made = document.createElement(name);
        made.className = className;
        if (text !== undefined) {
            made.textContent = text;
        }
        return made;
    }

    function within(holder, className) {
        let found = holder.querySelector(`:scope > .${className}`);
        if (!found) {
            found = element("div", className);
            holder.append(found);
        }
        return found;
    }

    function valueRows(values) {
        return values.map(function (one) {
            const row = element("div", "chart-value");
            const swatch = element("span", "chart-swatch");
            swatch.style.background = one.colour;
            row.append(swatch, element("span", "chart-name", one.name), element("b", "", format(one.value)));
            return row;
        });
    }

    function paragraph(text) {
        const [heading, ...rest] = text.split("\n");
        const made = element("div", "chart-note");
        made.append(element("b", "", heading), ...rest.map((line) => element("div", "", line)));
        return made;
    }

    function tooltipContent(chart) {
        const {step, y} = pointer;
        if (metaOf(chart).cells) {
            const cell = cellAt(chart, step, y);
            return cell ? [paragraph(cell)] : [];
        }
        const lines = linesOf(chart);
        const values = valuesAt(chart, lines, step);
        const {marks, events} = notesAt(chart, step);
        const at = values.length ? values[0].step : step;
        const content = [element("div", "chart-step", `step ${at.toLocaleString("en-US")}`)];
        content.push(...valueRows(values), ...valueRows(valuesAt(chart, abandonedBranches(chart), step)));
        content.push(...marks.map((text) => element("div", "chart-mark", text)));
        content.push(...events.map(paragraph));
        return content;
    }

    function placeBeside(tooltip, x, y) {
        const gap = 14;
        const box = tooltip.getBoundingClientRect();
        const room = document.documentElement;
        const fitsRight = x + gap + box.width <= room.clientWidth;
        const left = fitsRight ? x + gap : Math.max(4, x - gap - box.width);
        // On a narrow screen it may cover the pointer's column; then place it above the pointer.
        const covers = left < x && left + box.width > x;
        const top = covers ? y - gap - box.height : y - box.height / 2;
        const bottom = Math.max(4, Math.min(room.clientHeight - box.height - 4, top));
        tooltip.style.transform = `translate(${Math.round(left)}px, ${Math.round(bottom)}px)`;
    }

    function drawCrosshair(chart, step) {
        const holder = chart.querySelector(".svg-container");
        const line = within(holder, "chart-crosshair");
        const {xaxis, yaxis} = chart._fullLayout;
        const x = xaxis.d2p(step);
        const isSeen = x >= 0 && x <= xaxis._length;
        line.hidden = !isSeen;
        line.style.height = yaxis._length + "px";
        line.style.transform = `translate(${xaxis._offset + x}px, ${yaxis._offset}px)`;
        return isSeen;
    }

    function drawReading(chart, step) {
        const holder = chart.querySelector(".svg-container");
        const reading = within(holder, "chart-reading");
        const values = valuesAt(chart, linesOf(chart), step);
        reading.hidden = !values.length;
        if (values.length) {
            const {xaxis, yaxis} = chart._fullLayout;
            const x = xaxis._offset + xaxis.d2p(step);
            const isLeft = xaxis.d2p(step) > xaxis._length / 2;
            reading.replaceChildren(...valueRows(values));
            reading.style.top = yaxis._offset + 2 + "px";
            reading.style.left = isLeft ? "auto" : x + 5 + "px";
            reading.style.right = isLeft ? holder.clientWidth - x + 5 + "px" : "auto";
        }
    }

    function isOnScreen(chart) {
        const {top, bottom} = chart.getBoundingClientRect();
        return bottom > 0 && top < window.innerHeight;
    }

    const drawPointer = onceAFrame(function () {
        if (!pointer || !pointer.chart.isConnected) {
            leave();
            return;
        }
        for (const chart of allCharts().filter(isOnScreen)) {
            const isSeen = drawCrosshair(chart, pointer.step);
            if (chart !== pointer.chart && isSeen) {
                drawReading(chart, pointer.step);
            } else {
                within(chart.querySelector(".svg-container"), "chart-reading").hidden = true;
            }
        }
        const tooltip = within(document.body, "chart-tooltip");
        const content = tooltipContent(pointer.chart);
        tooltip.hidden = !content.length;
        if (content.length) {
            tooltip.replaceChildren(...content);
            placeBeside(tooltip, pointer.x, pointer.y);
        }
    });

    function leave() {
        pointer = null;
        document
            .querySelectorAll(".chart-crosshair, .chart-reading, .chart-tooltip")
            .forEach((made) => (made.hidden = true));
    }

    function onPointer(event) {
        const holder = event.target.closest && event.target.closest(".chart");
        const chart = holder && holder.querySelector(".js-plotly-plot");
        const xaxis = chart && chart._fullLayout && chart._fullLayout.xaxis;
        const x = xaxis ? event.clientX - chart.getBoundingClientRect().left - xaxis._offset : -1;
        if (x >= 0 && x <= xaxis._length && metaOf(chart).x_range) {
            const step = Math.round(xaxis.p2d(x));
            pointer = {chart: chart, step: step, x: event.clientX, y: event.clientY};
            drawPointer();
        } else if (pointer) {
            leave();
        }
    }

    /* Charts are added and removed. */

    function listenTo(chart) {
        emitters.set(chart, chart._ev);
        chart.on("plotly_relayout", onRelayout);
        chart.on("plotly_afterplot", alignSoon);
        chart.on("plotly_doubleclick", () => onDoubleClick(chart));
        sizes.observe(chart.closest(".chart"));
    }

    function reset() {
        // Another page: the zoom of the previous one does not apply.
        whole = null;
        width = 0;
        if (zoom) {
            zoom = null;
            clearTimeout(reportTimer);
            setStore("run-range", null);
        }
    }

    const findNewCharts = onceAFrame(function () {
        const charts = allCharts();
        if (!charts.length) {
            reset();
        }
        const fresh = charts.filter((chart) => emitters.get(chart) !== chart._ev);
        if (!fresh.length) {
            return;
        }
        if (fresh.length === charts.length) {
            reset();
        }
        fresh.forEach(listenTo);
        alignSoon();
    });

    const sizes = new ResizeObserver(function (entries) {
        const widest = Math.max(...entries.map((entry) => entry.target.clientWidth));
        const rounded = Math.max(WIDTH_STEP, Math.round(widest / WIDTH_STEP) * WIDTH_STEP);
        if (widest > 0 && rounded !== width) {
            width = rounded;
            setStore("chart-width", width);
        }
    });

    new MutationObserver(findNewCharts).observe(document.documentElement, {
        childList: true,
        subtree: true,
    });
    document.addEventListener("pointermove", onPointer, {passive: true});
    document.addEventListener("pointerdown", onPointer, {passive: true});
    document.addEventListener("scroll", () => pointer && leave(), {passive: true, capture: true});
    document.documentElement.addEventListener("pointerleave", function (event) {
        if (pointer && event.pointerType !== "touch") {
            leave(); // a touched value stays after the finger is lifted
        }
    });
    // Plotly would treat every touch as a zoom, so that the page could not be scrolled over a
    // chart. Instead, horizontal moves read values and vertical ones scroll.
    document.addEventListener(
        "touchstart",
        function (event) {
            if (event.target.closest && event.target.closest(".chart .draglayer")) {
                event.stopPropagation();
            }
        },
        {capture: true, passive: true}
    );

    window.stabilizerCharts = {zoomTo: zoomTo};
})();
