"""The report on a window: a page with pictures, and JSON lines."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Final, TextIO

from PIL import Image

from stabilizer.errors import ConfigurationError
from trainer.data import BadDocumentError, Document
from trainer.data.documents import Mark
from trainer.data.sequences import open_upright
from trainer.inspection.findings import Finding
from trainer.module import as_json

_SIDE = 320  # pixels; enough to judge, and a page of hundreds stays light


def thumbnail(sample_id: str, file: bytes) -> bytes:
    """Return a PNG of at most 320 pixels a side.

    Raises:
        BadDocumentError: The picture cannot be decoded.
    """
    image = open_upright(sample_id, file)
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()


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


def _content(document: Document, reported: str | None) -> Iterator[str]:
    """Yield the parts of a document; a problem that is already reported is left out."""
    learned = document.learned or (True,) * len(document.parts)
    for part, is_learned in zip(document.parts, learned, strict=True):
        if isinstance(part, Mark):
            yield '<hr class="end">\n'
        elif isinstance(part, str):
            opening = "<p>" if is_learned else '<p class="asked">'
            yield f"{opening}{escape(part)}</p>\n"
        else:
            yield _picture(document.sample_id, part, reported)


def _picture(sample_id: str, file: bytes, reported: str | None) -> str:
    try:
        shown = base64.b64encode(thumbnail(sample_id, file)).decode("ascii")
    except BadDocumentError as error:
        problem = "that picture" if str(error) == reported else str(error)
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


PAGE_FILE: Final = "index.html"
LINES_FILE: Final = "documents.jsonl"
PICTURES_FOLDER: Final = "pictures"
_PICTURE: Final = re.compile(r"\d{5,}-\d+\.png")


def write_report(
    out: Path, title: str, findings: Iterable[Finding], *, limit: int = 200, remark: str = ""
) -> dict[str, str]:
    """Write the folder.

    Documents are shown by loss, the highest first, and without losses in the order of the stream.

    Args:
        out: Folder; created if absent, its old report replaced.
        title: Heading of the page.
        findings: What was found; read one by one, so that a long window needs little memory.
        limit: Documents whose content and pictures are written; the lines hold all.
        remark: What a reader of the page must know besides.

    Returns:
        What is said about the window as a whole, by name.

    Raises:
        ConfigurationError: The folder cannot be written.
    """
    try:
        return _write(out, title, findings, limit, remark)
    except OSError as error:
        raise ConfigurationError(f"--out: {out} cannot be written: {error}") from error


def _write(
    out: Path, title: str, findings: Iterable[Finding], limit: int, remark: str
) -> dict[str, str]:
    (out / PICTURES_FOLDER).mkdir(parents=True, exist_ok=True)
    for old in (out / PICTURES_FOLDER).iterdir():
        if _PICTURE.fullmatch(old.name):  # others are not ours
            old.unlink()
    found: list[Finding] = []  # all, without their content
    shown: list[Finding] = []  # the worst ones
    with _open(out / LINES_FILE) as lines:
        for finding in findings:
            lines.write(json.dumps(finding.as_json(), ensure_ascii=False) + "\n")
            found.append(replace(finding, document=None))
            shown.append(finding)
            if len(shown) >= 2 * limit:
                shown = sorted(shown, key=_badness)[:limit]
    shown = sorted(shown, key=_badness)[:limit]
    for place, finding in enumerate(shown):
        _write_pictures(out / PICTURES_FOLDER, place, finding)
    facts = _facts(found)
    remarks = f"{_remark(found, len(shown))} {remark}".strip()
    page = render_page(title, facts, shown, remarks)
    with _open(out / PAGE_FILE) as file:
        file.writelines(page)
    return facts


def _open(path: Path) -> TextIO:
    """Open a file for text; names in a tar that are not Unicode are written as escapes."""
    return path.open("w", encoding="utf-8", errors="backslashreplace")


def _badness(finding: Finding) -> tuple[float, int]:
    loss = finding.loss
    if loss is None:
        return math.inf, finding.occurrence.position
    return (-math.inf if math.isnan(loss) else -loss), finding.occurrence.position


def _write_pictures(folder: Path, place: int, finding: Finding) -> None:
    if finding.document is None:
        return
    for number, file in enumerate(finding.document.pictures):
        try:
            content = thumbnail(finding.document.sample_id, file)
        except BadDocumentError:
            continue  # the page and the lines say so
        (folder / f"{place + 1:05d}-{number + 1}.png").write_bytes(content)


def _facts(findings: Sequence[Finding]) -> dict[str, str]:
    known = [finding.loss for finding in findings if finding.loss is not None]
    losses = [loss for loss in known if math.isfinite(loss)]
    sources = Counter(finding.occurrence.source for finding in findings)
    tokens: Counter[str] = Counter()
    for finding in findings:
        tokens[finding.occurrence.source] += finding.tokens
    verdicts = Counter(reason.value for finding in findings for reason in finding.verdict)
    return {
        "documents": str(len(findings)),
        "sources": _counted(sources),
        "tokens per document": _counted(
            Counter({name: round(tokens[name] / count) for name, count in sources.items()})
        ),
        "mean loss": f"{fmean(losses):.3f}" if losses else "-",
        "highest loss": f"{max(losses):.3f}" if losses else "-",
        "losses not finite": str(len(known) - len(losses)),
        "against the filters": _counted(verdicts) or "none",
        "damaged": str(sum(finding.damage is not None for finding in findings)),
    }


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def _remark(findings: Sequence[Finding], shown: int) -> str:
    origins = {finding.loss_from for finding in findings if finding.loss_from is not None}
    said = {
        "ledger": "Losses are those of their step, as recorded.",
        "checkpoint": "Losses are those of the checkpoint, each document alone in a sequence.",
    }
    texts = [said[origin] for origin in sorted(origins)]
    if not texts:
        texts = ["No losses: none were recorded for this window, and no checkpoint was given."]
    if shown < len(findings):
        texts.append(f"Shown are {shown} of {len(findings)} documents; {LINES_FILE} has all.")
    return " ".join(texts)
