"""A folder about the documents of a window: a page for people, lines for programs, pictures."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Final, TextIO

from stabilizer.errors import ConfigurationError
from trainer.data import BadDocumentError
from trainer.inspection.findings import Finding
from trainer.inspection.page import render_page
from trainer.inspection.pictures import thumbnail

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
    """Open a file for text; names in a tar may be bytes that are no Unicode, told as escapes."""
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
