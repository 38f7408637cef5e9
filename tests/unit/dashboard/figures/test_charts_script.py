"""assets/charts.js in a browser, with figures as the pages have them and no server."""

import json
import math
from pathlib import Path

import plotly
import pytest
from playwright.sync_api import expect

from dashboard.figures.figure import CONFIG
from dashboard.figures.heatmap import heatmap_chart
from dashboard.figures.line_chart import line_chart
from dashboard.figures.palette import BLUE
from dashboard.figures.samples import Line
from dashboard.figures.scene import Events, make_scene
from stabilizer.protocol.views import Heatmap, HeatmapColumn, HeatmapRow, HeatmapStatistic

ROOT = Path(__file__).parents[4]
ASSETS = ROOT / "dashboard" / "assets"
PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
LAST = 100
SIZE = {"width": 820, "height": 900}

PAGE = """<!doctype html><meta charset="utf-8">
<style>{css}</style><body style="margin:0;min-height:3000px"><div id="charts"></div>
<script src="{plotly}"></script>
<script>
  window.told = [];
  window.dash_clientside = {{set_props: (id, props) => window.told.push([id, props.data])}};
  window.drawn = {{}};
  window.show = async function (name, figure) {{
    const holder = document.createElement("div");
    holder.className = "chart";
    holder.append(document.createElement("div"));
    document.getElementById("charts").append(holder);
    const chart = holder.firstChild;
    chart.id = name;
    await Plotly.newPlot(chart, figure.data, figure.layout, {config});
    chart.on("plotly_afterplot", () => (window.drawn[name] = (window.drawn[name] || 0) + 1));
  }};
  window.rangeOf = (name) => document.getElementById(name)._fullLayout.xaxis.range;
  window.ranges = () =>
    Array.from(document.querySelectorAll(".js-plotly-plot"), (chart) => window.rangeOf(chart.id));
</script><script>{script}</script>"""


class Charts:
    """A page with charts, and a hand on the mouse."""

    def __init__(self, page):
        self.page = page

    def show(self, **figures):
        for name, figure in figures.items():
            self.page.evaluate("([name, figure]) => show(name, figure)", [name, figure])

    def spot(self, name, step, height=0.5):
        """Window coordinates of a step of a chart."""
        return self.page.evaluate(
            """([name, step, height]) => {
              const chart = document.getElementById(name);
              const {xaxis, yaxis} = chart._fullLayout;
              const {left, top} = chart.getBoundingClientRect();
              const y = top + yaxis._offset + height * yaxis._length;
              return [left + xaxis._offset + xaxis.d2p(step), y];
            }""",
            [name, step, height],
        )

    def point(self, name, step, height=0.5):
        self.page.mouse.move(*self.spot(name, step, height))

    def zoom(self, name, first, last):
        self.point(name, first)
        self.page.mouse.down()
        self.page.mouse.move(*self.spot(name, last), steps=5)
        self.page.mouse.up()

    def double_click(self, name):
        self.page.mouse.dblclick(*self.spot(name, 50))

    def until(self, condition, argument=None):
        self.page.wait_for_function(condition, arg=argument)

    def until_range(self, first, last, slack=1.5):
        """Wait until every chart shows a range of steps, give or take a pixel or two."""
        self.until(
            """([first, last, slack]) => ranges().every((range) =>
              Math.abs(range[0] - first) < slack && Math.abs(range[1] - last) < slack)""",
            [first, last, slack],
        )

    def told(self, store):
        return [data for name, data in self.page.evaluate("told") if name == store]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    css, script = ((ASSETS / name).read_text() for name in ("charts.css", "charts.js"))
    html = tmp_path_factory.mktemp("page") / "charts.html"
    html.write_text(
        PAGE.format(css=css, script=script, plotly=PLOTLY.as_uri(), config=json.dumps(CONFIG))
    )
    return html.as_uri()


@pytest.fixture(scope="module")
def whole_page(browser, address):
    """The page that the tests share: plotly takes its time to load."""
    page = browser.new_page(viewport=SIZE)
    page.goto(address)
    yield page
    page.close()


@pytest.fixture
def charts(whole_page):
    """The page without charts, as after its loading."""
    complaints = []

    def complain(error):
        complaints.append(str(error))

    whole_page.on("pageerror", complain)
    yield Charts(whole_page)
    whole_page.set_viewport_size(SIZE)
    whole_page.mouse.move(400, 850)
    # Pending reports arrive now, with the zoom reset.
    whole_page.evaluate("told.length = 0, [[0, 1], null].forEach(stabilizerCharts.zoomTo)")
    whole_page.wait_for_function(
        "told.length && told.at(-1)[0] === 'run-range' && told.at(-1)[1] === null"
    )
    whole_page.evaluate("document.getElementById('charts').replaceChildren()")
    whole_page.evaluate("told.length = 0, (drawn = {}), null")
    whole_page.remove_listener("pageerror", complain)
    assert complaints == []


@pytest.fixture
def panel(make):
    """A panel of one line, y = step / 10, with a few odd samples and events."""

    def build(label="loss", zoom=None, last=LAST, **events):
        values = [step / 10 for step in range(1, last + 1)]
        values[49], values[69] = math.nan, 1e6
        scene = make_scene(
            [make.attempt(1, 0, last)], last, events=Events(**events) if events else None, zoom=zoom
        )
        line = Line(series="loss", label=label, colour=BLUE)
        return line_chart([line], [make.data(range(1, last + 1), values)], scene)

    return build


@pytest.fixture
def cells(make):
    row = HeatmapRow(
        series='activation_rms{kind="fc2"}', module="m.fc2", tower="vision", kind="fc2", layer=3
    )
    heatmap = Heatmap(
        metric="activation_rms",
        statistic=HeatmapStatistic.MAX,
        rows=(row, row),
        columns=tuple(HeatmapColumn(first_step=n, last_step=n + 9) for n in range(1, 100, 10)),
        values=((1.0,) * 9 + (4.0,), (1.0,) * 9 + (None,)),
        nonfinite=((0,) * 9 + (2,), (0,) * 10),
    )
    return heatmap_chart(heatmap, make_scene([make.attempt(1, 0, LAST)], LAST))


def test_one_crosshair_passes_through_all_charts(charts, panel, cells):
    charts.show(one=panel(), two=panel("norm"), map=cells)
    charts.point("one", 30)
    lines = charts.page.locator(".chart-crosshair")
    expect(lines).to_have_count(3)
    lefts = [line.bounding_box()["x"] for line in lines.all()]
    assert max(lefts) - min(lefts) < 0.01
    assert lefts[0] == pytest.approx(charts.spot("two", 30)[0], abs=0.6)


def test_pointing_reads_the_values_of_all_panels_at_that_step(charts, panel):
    charts.show(one=panel(), two=panel("norm"))
    charts.point("one", 30)
    expect(charts.page.locator(".chart-tooltip")).to_have_text("step 30loss3")
    expect(charts.page.locator("#two .chart-reading")).to_have_text("norm3")
    expect(charts.page.locator("#one .chart-reading")).to_be_hidden()


def test_crosshair_is_hidden_when_the_pointer_leaves(charts, panel):
    charts.show(one=panel(), two=panel())
    charts.point("one", 30)
    expect(charts.page.locator("#two .chart-crosshair")).to_be_visible()
    charts.page.mouse.move(400, 850)
    for made in ("#one .chart-crosshair", "#two .chart-crosshair", ".chart-tooltip"):
        expect(charts.page.locator(made)).to_be_hidden()


@pytest.mark.parametrize(
    ("step", "text"), [(50, "loss: NaN at step 50"), (70, "loss: 1,000,000 at step 70")]
)
def test_tooltip_shows_an_edge_mark(charts, panel, step, text):
    charts.show(one=panel())
    charts.point("one", step)
    expect(charts.page.locator(".chart-mark")).to_have_text(text)


def test_events_are_shown_as_plain_text(charts, panel, make):
    nasty = "<img src=x onerror=\"told.push(['hacked', 1])\"><b>bold</b>"
    incident = make.incident(first_step=20, resolved_step=40, message=nasty)
    charts.show(one=panel(incidents=[incident], commands=[make.command(step=30)]))
    charts.point("one", 30)
    notes = charts.page.locator(".chart-note")
    expect(notes).to_have_count(2)
    expect(notes.nth(0)).to_contain_text("Incident 1: divergence, open")
    expect(notes.nth(0)).to_contain_text(nasty)
    expect(notes.nth(1)).to_contain_text("applied at step 30")
    assert charts.page.locator(".chart-tooltip img").count() == 0
    assert charts.told("hacked") == []
    charts.point("one", 60)
    expect(notes).to_have_count(0)


def test_tooltip_of_a_cell(charts, cells):
    charts.show(map=cells)
    charts.point("map", 95, height=0.9)
    tooltip = charts.page.locator(".chart-tooltip")
    expect(tooltip).to_contain_text("vision 3 fc2")
    expect(tooltip).to_contain_text("steps 91 to 100")
    expect(tooltip).to_contain_text("max 4 (4x the row median)")
    expect(tooltip).to_contain_text("2 NaN or Inf")
    charts.point("map", 95, height=0.1)
    expect(tooltip).to_contain_text("not measured")


def test_zoom_applies_to_all_charts_and_is_reported_once(charts, panel, cells):
    charts.show(one=panel(), two=panel(), map=cells)
    charts.zoom("one", 20, 60)
    charts.until_range(20, 60)
    charts.until("() => told.some(([name]) => name === 'run-range')")
    (zoom,) = charts.told("run-range")
    assert zoom == charts.page.evaluate("rangeOf('two')")
    assert all(isinstance(end, int) for end in zoom)


def test_charts_settle_once_ranges_agree(charts, panel):
    charts.show(one=panel(), two=panel())
    charts.zoom("one", 20, 60)
    charts.until_range(20, 60)
    still = """() => new Promise((done) => {
      const frames = (left, before) => requestAnimationFrame(() => {
        const now = JSON.stringify(drawn);
        left ? frames(left - 1, now) : done(now === before);
      });
      frames(20, "");
    })"""
    assert charts.page.evaluate(still)
    assert max(charts.page.evaluate("drawn").values()) < 8


def test_a_double_click_undoes_the_zoom(charts, panel):
    charts.show(one=panel(), two=panel())
    charts.zoom("one", 20, 60)
    charts.until_range(20, 60)
    charts.double_click("two")
    charts.until_range(0, 103)
    charts.until("() => told.length && told.at(-1)[1] === null")


def test_a_double_click_without_a_zoom_shows_the_spikes_and_another_hides_them(charts, panel):
    charts.show(one=panel(), two=panel())
    top = "(high) => (document.getElementById('one')._fullLayout.yaxis.range[1] > 1e5) === high"
    charts.double_click("one")
    charts.until(top, True)
    assert charts.page.evaluate("document.getElementById('two')._fullLayout.yaxis.range[1]") < 100
    # By its event: a third and fourth click at once would be no double click to plotly.
    charts.page.evaluate("document.getElementById('one').emit('plotly_doubleclick')")
    charts.until(top, False)


def test_a_figure_that_the_server_replaces_keeps_the_zoom(charts, panel):
    charts.show(one=panel(), two=panel())
    charts.zoom("one", 20, 60)
    charts.until_range(20, 60)
    charts.until("() => told.some(([name]) => name === 'run-range')")
    charts.page.evaluate(
        "(figure) => Plotly.react(document.getElementById('two'), figure)", panel("finer")
    )
    charts.until("() => document.getElementById('two').data[0].name === 'finer'")
    charts.until_range(20, 60)
    assert len(charts.told("run-range")) == 1


def test_new_samples_move_the_range_of_all_charts(charts, panel):
    charts.show(one=panel(), two=panel())
    charts.page.evaluate(
        """() => Plotly.extendTraces(
          document.getElementById("one"), {x: [[150]], y: [[3]], customdata: [[1]]}, [0])"""
    )
    charts.until_range(0, 154.5, slack=0.1)
    assert charts.told("run-range") == []


def test_new_samples_do_not_move_a_zoom(charts, panel):
    charts.show(one=panel(), two=panel())
    charts.zoom("one", 20, 60)
    charts.until_range(20, 60)
    charts.page.evaluate(
        """() => Plotly.extendTraces(
          document.getElementById("one"), {x: [[150]], y: [[3]], customdata: [[1]]}, [0])"""
    )
    charts.until("() => document.getElementById('one').data[0].x.includes(150)")
    charts.until_range(20, 60)


def test_a_chart_that_comes_later_takes_part(charts, panel):
    charts.show(one=panel())
    charts.zoom("one", 20, 60)
    charts.until_range(20, 60)
    charts.show(late=panel("late"))
    charts.until_range(20, 60)
    charts.point("one", 30)
    expect(charts.page.locator("#late .chart-reading")).to_have_text("late3")


def test_removed_chart_hides_the_crosshair(charts, panel):
    charts.show(one=panel(), two=panel())
    charts.point("one", 30)
    expect(charts.page.locator("#two .chart-crosshair")).to_be_visible()
    charts.page.evaluate("document.getElementById('one').closest('.chart').remove()")
    charts.page.mouse.move(500, 100)
    charts.page.mouse.move(500, 850)
    expect(charts.page.locator(".chart-tooltip")).to_be_hidden()
    expect(charts.page.locator("#two .chart-crosshair")).to_be_hidden()


def test_another_page_resets_the_zoom_and_reports_its_width(charts, panel):
    charts.show(one=panel())
    charts.zoom("one", 20, 60)
    charts.until_range(20, 60)
    charts.until("() => told.some(([name]) => name === 'run-range')")
    charts.page.evaluate("document.getElementById('charts').replaceChildren()")
    charts.show(other=panel(last=400))
    charts.until_range(0, 412)
    assert charts.told("run-range")[1:] == [None]
    charts.until("() => told.filter(([name]) => name === 'chart-width').length === 2")


def test_width_is_reported_in_steps_of_fifty_pixels(charts, panel):
    charts.show(one=panel())
    charts.until("() => told.length > 0")
    assert charts.told("chart-width") == [800]
    charts.page.set_viewport_size({"width": 815, "height": 900})
    charts.page.set_viewport_size({"width": 392, "height": 900})
    charts.until("() => told.length > 1")
    assert charts.told("chart-width") == [800, 400]


def test_the_page_can_set_and_undo_the_zoom(charts, panel):
    charts.show(one=panel(), two=panel())
    charts.until("() => told.length > 0")
    charts.page.evaluate("stabilizerCharts.zoomTo([10, 20])")
    charts.until_range(10, 20, slack=0.01)
    charts.page.evaluate("stabilizerCharts.zoomTo(null)")
    charts.until_range(0, 103)


def test_a_line_hidden_in_the_legend_is_not_read(charts, panel):
    charts.show(one=panel(), two=panel())
    charts.page.evaluate(
        "() => Plotly.restyle(document.getElementById('two'), {visible: 'legendonly'}, [0])"
    )
    charts.point("one", 30)
    expect(charts.page.locator("#two .chart-crosshair")).to_be_visible()
    expect(charts.page.locator("#two .chart-reading")).to_be_hidden()


@pytest.fixture
def telephone(browser, address):
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True
    )
    page = context.new_page()
    page.goto(address)
    yield Charts(page)
    context.close()


def test_a_finger_reads_along_the_steps_and_never_zooms(telephone, panel):
    telephone.show(one=panel(), two=panel("norm"))
    telephone.page.touchscreen.tap(*telephone.spot("one", 30))
    step = telephone.page.locator(".chart-step")
    expect(step).to_have_text("step 30")
    fingers = telephone.page.context.new_cdp_session(telephone.page)

    def touch(kind, *steps):
        spots = [telephone.spot("one", at) for at in steps]
        points = [{"x": x, "y": y} for x, y in spots]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", 40)
    for at in range(45, 85, 5):
        touch("touchMove", at)
    expect(step).to_have_text("step 80")
    touch("touchEnd")
    expect(telephone.page.locator("#two .chart-reading")).to_have_text("norm8")
    telephone.until_range(0, 103)
    assert telephone.told("run-range") == []
