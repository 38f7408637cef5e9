"""One HTML page about the documents of a window: plain, whole in itself, for any width.

Everything that comes from a document is escaped, and the page may load nothing and run nothing.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Final

from trainer.data import BadDocumentError, Document
from trainer.data.documents import Mark
from trainer.inspection.findings import Finding
from trainer.inspection.pictures import thumbnail
from trainer.module import as_json

_STYLE: Final = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 25%, transparent); }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 60rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1rem; overflow-wrap: anywhere; margin: 0 0 .5rem; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .5rem 1rem;
     margin: 0 0 .75rem; }
dt { font-size: .8rem; opacity: .75; } dd { margin: 0; overflow-wrap: anywhere; }
article { border: 1px solid var(--line); border-radius: .5rem; padding: .75rem; margin: 1rem 0; }
p { margin: .5rem 0; overflow-wrap: anywhere; white-space: pre-wrap; }
img { display: block; max-width: 100%; min-width: 4rem; max-height: 20rem; margin: .5rem 0;
      object-fit: contain; object-position: left; image-rendering: pixelated;
      border: 1px solid var(--line); }
.bad { border-left: .25rem solid #c0392b; padding-left: .5rem; }
.end { border: 0; border-top: 1px dashed var(--line); }
.asked { opacity: .75; }
"""
_POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def render_page(
    title: str, facts: Mapping[str, str], findings: Sequence[Finding], remark: str
) -> Iterator[str]:
    """Yield the page, bit by bit.

    Args:
        title: Its heading.
        facts: What is said about the window as a whole.
        findings: The documents, in the order in which they are shown.
        remark: What is not shown, or where losses are from.
    """
    yield f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
{_definitions(facts)}
<p>{escape(remark)}</p>
</header>
<main>
"""
    for finding in findings:
        yield _article(finding)
    yield "</main>\n</body>\n</html>\n"


def _article(finding: Finding) -> str:
    where = finding.occurrence
    facts = {
        "loss": _number(finding.loss),
        "source": where.source,
        "position": str(where.position),
        "step": "-" if where.step is None else f"{where.step} (attempt {where.attempt})",
    }
    damage = "" if finding.damage is None else f'<p class="bad">{escape(finding.damage)}</p>\n'
    content = ""
    if finding.document is not None:  # else nothing was measured
        facts |= _measures(finding)
        content = "".join(_content(finding.document, finding.damage))
    return (
        f"<article>\n<h2>{escape(where.sample_id)}</h2>\n{_definitions(facts)}\n{damage}{content}"
        "</article>\n"
    )


def _measures(finding: Finding) -> dict[str, str]:
    return {
        "words": str(finding.words),
        "tokens": str(finding.tokens),
        "pictures": str(finding.pictures),
        "repeated words": f"{finding.word_repetition:.1%}",
        "repeated characters": f"{finding.char_repetition:.1%}",
        "filters": ", ".join(finding.verdict) or "pass",
    }


def _content(document: Document, told: str | None) -> Iterator[str]:
    """Yield the parts of a document; what was told of it already is not told again."""
    learned = document.learned or (True,) * len(document.parts)
    for part, is_learned in zip(document.parts, learned, strict=True):
        if isinstance(part, Mark):
            yield '<hr class="end">\n'
        elif isinstance(part, str):
            opening = "<p>" if is_learned else '<p class="asked">'
            yield f"{opening}{escape(part)}</p>\n"
        else:
            yield _picture(document.sample_id, part, told)


def _picture(sample_id: str, file: bytes, told: str | None) -> str:
    try:
        shown = base64.b64encode(thumbnail(sample_id, file)).decode("ascii")
    except BadDocumentError as error:
        problem = "that picture" if str(error) == told else str(error)
        return f'<p class="bad">{escape(problem)}</p>\n'
    return f'<img alt="picture of the document" src="data:image/png;base64,{shown}">\n'


def _definitions(facts: Mapping[str, str]) -> str:
    pairs = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in facts.items()
    )
    return f"<dl>{''.join(pairs)}</dl>"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if math.isfinite(value) else str(as_json(value))
