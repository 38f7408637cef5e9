"""No file that collector and dashboard serve makes a browser load anything from another host.

The browser tests watch the requests of the pages that they open; this reads every file, those for
charts and components that no page of ours shows included.
"""

import importlib
import re
from pathlib import Path

import dash_mantine_components
import fastapi_offline
import plotly
import pytest
from dash import _dash_renderer, dcc, html

from stabilizer.collector.api.access import DOCS_FILES

DASHBOARD = Path(__file__).parents[2] / "dashboard"
PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
SWAGGER = Path(fastapi_offline.__file__).parent / "static"

_HOST = r"(?:(?:https?|wss?):)?(?:\\?/){2}[\w\[]"
_QUOTE = r"\\?[\"'`]"
_CALLS = "import|importScripts|fetch|Worker|WebSocket|EventSource|sendBeacon|FontFace"
LOADS = re.compile(
    "|".join(
        (
            rf"sourceMappingURL=\s*{_HOST}",
            rf"@import\s+{_QUOTE}{_HOST}",
            rf"\burl\(\s*(?:{_QUOTE})?{_HOST}",
            rf"\b(?:src|srcset|poster)\s*[=:]\s*(?:{_QUOTE})?{_HOST}",
            rf"<(?:link|script|image|use)\b[^<>]*\bhref\s*=\s*(?:{_QUOTE})?{_HOST}",
            rf"\b(?:from|import)\s*{_QUOTE}{_HOST}",
            rf"\b(?:{_CALLS})\s*\(\s*(?:{_QUOTE}\w+{_QUOTE},\s*)?{_QUOTE}{_HOST}",
        )
    ),
    re.IGNORECASE,
)


def packaged(distributions):
    """Yield files of Dash's packages, as the packages register them for their pages."""
    for distribution in distributions:
        folder = Path(importlib.import_module(distribution["namespace"]).__file__).parent
        paths = distribution.get("relative_package_path", [])
        paths = paths["prod"] if isinstance(paths, dict) else paths
        yield from (folder / path for path in ([paths] if isinstance(paths, str) else paths))


def served():
    yield PLOTLY
    yield from (SWAGGER / name for name in DOCS_FILES)
    yield from (DASHBOARD / "assets").iterdir()
    yield from (DASHBOARD / "app" / "templates").iterdir()
    yield from packaged(_dash_renderer._js_dist + _dash_renderer._js_dist_dependencies)
    for package in (dcc, html, dash_mantine_components):
        yield from packaged([*package._js_dist, *getattr(package, "_css_dist", [])])


FILES = sorted({path for path in served() if path.suffix in {".js", ".css", ".html"}})


def found_in(text):
    return [text[max(0, hit.start() - 40) : hit.end() + 80] for hit in LOADS.finditer(text)]


def test_the_files_are_those_of_all_packages():
    names = {path.name for path in FILES}
    assert {"swagger-ui-bundle.js", "swagger-ui.css"} <= names
    assert {"charts.js", "app.css", "signin.html"} <= names
    assert {"dash_renderer.min.js", "dash_core_components.js"} <= names
    assert "dash_mantine_components.js" in names
    assert any(name.startswith("react-dom") for name in names)
    assert "plotly.min.js" in names


def test_no_file_loads_anything_from_another_host():
    found = {path.name: hits for path in FILES if (hits := found_in(path.read_text("utf-8")))}
    (icons,) = found.pop(PLOTLY.name)
    assert "https://cdn.jsdelivr.net/npm/@mapbox/maki@" in icons  # markers on maps
    assert found == {}


def test_no_chart_is_a_map():
    """Plotly loads tiles, borders and icons of maps from other hosts."""
    maps = re.compile(r"scattergeo|choropleth|scattermap|densitymap|mapbox", re.IGNORECASE)
    sources = [path for path in DASHBOARD.rglob("*") if path.suffix in {".py", ".js"}]
    assert [path.name for path in sources if maps.search(path.read_text("utf-8"))] == []


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://cdn.example/x.js">',
        "<script src=//cdn.example/x.js>",
        '<link rel="stylesheet" href="https://cdn.example/x.css">',
        '"<img src=\\"https://cdn.example/x.png\\">"',
        "image.src='https:\\/\\/cdn.example/x.png'",
        '{src:"//cdn.example/x.png"}',
        "a{background:url(https://cdn.example/x.png)}",
        "@font-face{src:local(x),url('//cdn.example/x.woff2')}",
        '@import "https://cdn.example/x.css";',
        "@import url(//cdn.example/x.css);",
        "//# sourceMappingURL=https://cdn.example/x.js.map",
        'import("https://cdn.example/x.js")',
        'import x from "https://cdn.example/x.js"',
        'import"https://cdn.example/x.js"',
        "importScripts('https://cdn.example/x.js')",
        "fetch(`https://cdn.example/x.json`)",
        "new Worker('//cdn.example/x.js')",
        'new WebSocket("wss://[::2]/live")',
        'new FontFace("x", "https://cdn.example/x.woff2")',
    ],
)
def test_a_load_from_another_host_is_found(text):
    assert found_in(text)


@pytest.mark.parametrize(
    "text",
    [
        '<script src="/assets/app.js">',
        "url(data:image/svg+xml;base64,AAAA)",
        "url(#clip)",
        '"http://www.w3.org/2000/svg"',
        '<a href="https://docs.example/">',
        "//# sourceMappingURL=x.js.map",
        'from "./x.js" // see https://docs.example',
    ],
)
def test_links_names_and_own_files_are_not(text):
    assert not found_in(text)
