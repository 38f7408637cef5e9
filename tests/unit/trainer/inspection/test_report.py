import io
import json
import math
from html.parser import HTMLParser

import pytest
from PIL import Image

from stabilizer.errors import ConfigurationError
from trainer.config import load_config
from trainer.data import BadDocumentError, Document, Reason
from trainer.data.documents import Mark
from trainer.inspection import Finding, Occurrence, write_report
from trainer.inspection.findings import Inspector


def png(size=(8, 8)):
    stream = io.BytesIO()
    Image.new("RGB", size, "red").save(stream, format="PNG")
    return stream.getvalue()


class Corpus:
    """Documents by id; it can tell what a reader tells."""

    def __init__(self, *documents):
        self._documents = {document.sample_id: document for document in documents}

    def document(self, sample_id):
        if sample_id.endswith("gone"):
            raise BadDocumentError(sample_id, "cannot be read", Reason.UNREADABLE)
        return self._documents[sample_id]

    def judge(self, document):
        reasons = (Reason.REPEATED_WORDS,) if "spam spam" in document.text else ()
        return type("Verdict", (), {"rejected": reasons})()


@pytest.fixture
def inspect(tokenizer):
    config = load_config("idefics-tiny", ["data.sources={web: 1}"]).data

    def run(documents, occurrences, losses=None):
        return list(Inspector(Corpus(*documents), tokenizer, config, losses).inspect(occurrences))

    return run


def occurrence(sample_id="web/a:0", loss=None, position=0):
    return Occurrence(sample_id, "web", position, 3, 1, loss)


PAGE = Document("web/a:0", "web", ("one two three", png(), "spam spam spam spam spam spam spam"))


def test_a_document_is_measured(inspect):
    (found,) = inspect([PAGE], [occurrence(loss=2.5)])
    assert (found.loss, found.loss_from, found.damage) == (2.5, "ledger", None)
    assert (found.words, found.characters, found.pictures) == (10, len(PAGE.text), 1)
    assert found.tokens > 10
    assert 0 < found.word_repetition < 1
    assert found.verdict == (Reason.REPEATED_WORDS,)


def test_damage_is_reported_and_ends_nothing(inspect):
    broken = Document("web/a:1", "web", ("text", png()[:40]))
    found = inspect([broken], [occurrence("web/a:1"), occurrence("web/gone"), occurrence("web/x")])
    assert "cannot be decoded" in found[0].damage
    assert "cannot be read" in found[1].damage
    assert "no longer in the corpus" in found[2].damage
    assert [f.document is None for f in found] == [False, True, True]


def test_a_checkpoints_loss_stands_before_a_recorded_one(inspect):
    class Losses:
        def of(self, document):
            return 7.0

    (found,) = inspect([PAGE], [occurrence(loss=2.5)], Losses())
    assert (found.loss, found.loss_from) == (7.0, "checkpoint")


class Parsed(HTMLParser):
    """Tags and text of a page; every tag that must be closed is."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.open, self.images = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attributes))
        if tag not in {"meta", "img", "hr"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def report(tmp_path, findings, **options):
    write_report(tmp_path / "out", "steps 3 to 4", findings, **options)
    page = Parsed((tmp_path / "out" / "index.html").read_text())
    lines = (tmp_path / "out" / "documents.jsonl").read_text().splitlines()
    return page, [json.loads(line) for line in lines]


def test_the_folder_has_a_page_lines_and_pictures(inspect, tmp_path):
    page, lines = report(tmp_path, inspect([PAGE], [occurrence(loss=2.5)]))
    assert page.open == []
    assert "one two three" in page.texts
    (image,) = page.images
    assert image["src"].startswith("data:image/png;base64,")
    assert image["alt"]
    (line,) = lines
    assert line["sample_id"] == "web/a:0"
    assert (line["loss"], line["loss_from"], line["step"], line["attempt"]) == (2.5, "ledger", 3, 1)
    assert line["verdict"] == ["repeated_words"]
    assert "one two three" in line["text"]
    (picture,) = (tmp_path / "out" / "pictures").iterdir()
    with Image.open(picture) as opened:
        assert opened.size == (8, 8)


def test_what_documents_say_is_text_and_nothing_else(inspect, tmp_path):
    evil = '<script>alert(1)</script><img src=x onerror="alert(1)">'
    page_of_evil = Document("web/<b>:0", "web", (evil, "</p></article>"))
    page, _ = report(tmp_path, inspect([page_of_evil], [occurrence("web/<b>:0")]))
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert evil in page.texts
    raw = (tmp_path / "out" / "index.html").read_text()
    assert "default-src 'none'" in raw
    assert "http://" not in raw
    assert "https://" not in raw


def test_the_worst_come_first_and_only_so_many_are_shown(inspect, tmp_path):
    pages = [Document(f"web/a:{i}", "web", (f"text {i}", png())) for i in range(9)]
    losses = [1.0, 9.0, math.nan, 3.0, math.inf, 2.0, 8.0, 4.0, 5.0]
    where = [occurrence(f"web/a:{i}", loss, i) for i, loss in enumerate(losses)]
    page, lines = report(tmp_path, inspect(pages, where), limit=4)
    shown = [text for text in page.texts if text.startswith("web/a:")]
    assert shown == ["web/a:2", "web/a:4", "web/a:1", "web/a:6"]
    assert len(lines) == 9
    assert [lines[2]["loss"], lines[4]["loss"]] == ["NaN", "Infinity"]
    assert any("Shown are 4 of 9" in text for text in page.texts)
    assert page.texts.count("NaN") == page.texts.count("Infinity") == 1
    assert page.texts[page.texts.index("losses not finite") + 1] == "2"
    assert len(list((tmp_path / "out" / "pictures").iterdir())) == 4


def test_without_losses_the_page_says_so_and_keeps_the_order(inspect, tmp_path):
    pages = [Document(f"web/a:{i}", "web", (f"text {i}",)) for i in range(3)]
    where = [occurrence(f"web/a:{i}", None, i) for i in range(3)]
    page, lines = report(tmp_path, inspect(pages, where))
    assert any(text.startswith("No losses") for text in page.texts)
    assert [text for text in page.texts if text.startswith("web/a:")] == [
        "web/a:0",
        "web/a:1",
        "web/a:2",
    ]
    assert {line["loss"] for line in lines} == {None}


def test_a_damaged_document_is_shown_as_far_as_it_goes(inspect, tmp_path):
    broken = Document("web/a:1", "web", ("still here", png()[:40]))
    page, lines = report(tmp_path, inspect([broken], [occurrence("web/a:1")]))
    assert "still here" in page.texts
    assert page.images == []
    assert sum("cannot be decoded" in text for text in page.texts) == 1
    assert "that picture" in page.texts
    assert "cannot be decoded" in lines[0]["damage"]


def test_turns_of_a_conversation_are_kept_apart(inspect, tmp_path):
    talk = Document(
        "web/a:0", "web", ("ask", Mark.END_OF_TURN, "tell"), learned=(False, False, True)
    )
    page, _ = report(tmp_path, inspect([talk], [occurrence()]))
    assert page.tags.count("hr") == 1


def test_a_large_picture_is_shown_small(inspect, tmp_path):
    large = Document("web/a:0", "web", (png((2000, 1000)), "text"))
    report(tmp_path, inspect([large], [occurrence()]))
    (picture,) = (tmp_path / "out" / "pictures").iterdir()
    with Image.open(picture) as opened:
        assert opened.size == (320, 160)


def test_an_old_report_is_replaced(inspect, tmp_path):
    report(tmp_path, inspect([PAGE], [occurrence()]))
    text = Document("web/a:0", "web", ("no picture now",))
    report(tmp_path, inspect([text], [occurrence()]))
    assert list((tmp_path / "out" / "pictures").iterdir()) == []


def test_pictures_that_are_no_part_of_a_report_stay(inspect, tmp_path):
    theirs = tmp_path / "out" / "pictures" / "holiday.png"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(png())
    for document in (PAGE, Document("web/a:0", "web", ("no picture now",))):
        report(tmp_path, inspect([document], [occurrence()]))
    assert list(theirs.parent.iterdir()) == [theirs]


def test_a_name_that_is_no_unicode_is_reported_as_an_escape(inspect, tmp_path):
    name = "web/a:\udcff"
    page, lines = report(tmp_path, inspect([Document(name, "web", ("text",))], [occurrence(name)]))
    assert "web/a:\\udcff" in page.texts
    assert lines[0]["sample_id"] == name


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="--out"):
        write_report(tmp_path / "file" / "out", "title", [])


def test_a_window_without_a_document_is_a_page_too(tmp_path):
    page, lines = report(tmp_path, [])
    assert lines == []
    assert "0" in page.texts


def test_findings_are_plain_json():
    found = Finding(occurrence=occurrence(), document=None, loss=-math.inf, loss_from="ledger")
    assert json.loads(json.dumps(found.as_json(), allow_nan=False))["loss"] == "-Infinity"


def test_a_remark_about_the_run_stands_on_the_page(tmp_path):
    write_report(tmp_path / "out", "title", [], remark="It was <garbage> on demand.")
    assert "It was &lt;garbage&gt; on demand." in (tmp_path / "out" / "index.html").read_text()


def test_of_what_cannot_be_read_nothing_is_claimed(tmp_path):
    gone = Finding(occurrence=occurrence(), document=None, loss=2.5, loss_from="ledger", damage="x")
    page, _ = report(tmp_path, [gone])
    assert "2.500" in page.texts
    assert "words" not in page.texts
    assert "pass" not in page.texts
