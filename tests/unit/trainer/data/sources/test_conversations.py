import base64
import json

import fsspec
import pytest

from stabilizer.errors import ConfigurationError
from trainer.data.documents import BadDocumentError, Mark, Reason
from trainer.data.sources import ConversationSource, list_files

END = Mark.END_OF_TURN


def open_source(path, **options):
    files = list_files("data.sources.chat", str(path), ".jsonl")
    return ConversationSource("chat", files, **options)


@pytest.fixture
def source_of(tmp_path):
    def make(*lines):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        (tmp_path / "pictures" / "1.png").write_bytes(b"one")
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (tmp_path / "0.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")
        return open_source(tmp_path)

    return make


def turns(*pairs, **more):
    return {"turns": [{"role": role, "content": content, **more} for role, content in pairs]}


def test_only_what_the_assistant_says_is_learned(source_of):
    source = source_of(turns(("system", "be brief"), ("user", "hi"), ("assistant", "hello")))
    document = source.document(0)
    assert document.sample_id == "chat/0.jsonl:0"
    assert list(zip(document.parts, document.learned, strict=True)) == [
        ("System:", False),
        ("be brief", False),
        (END, False),
        ("User:", False),
        ("hi", False),
        (END, False),
        ("Assistant:", False),
        ("hello", True),
        (END, True),
    ]


def test_pictures_come_by_path_and_inline(source_of):
    inline = base64.b64encode(b"two").decode()
    images = ["pictures/1.png", {"path": "pictures/1.png"}, {"base64": inline}]
    source = source_of(
        {
            "messages": [
                {"role": "user", "images": images, "content": "what are these?"},
                {"role": "assistant", "content": "ones and a two"},
            ]
        }
    )
    document = source.document(0)
    assert document.parts[:5] == ("User:", b"one", b"one", b"two", "what are these?")
    assert not any(document.learned[:5])


def test_content_may_be_a_list_of_texts_and_pictures(source_of):
    content = [{"type": "text", "text": "this"}, {"type": "image", "path": "pictures/1.png"}]
    source = source_of(turns(("user", content), ("assistant", "one")))
    assert source.document(0).parts[1:3] == ("this", b"one")


def test_blank_lines_are_no_conversations(source_of):
    lines = [turns(("user", "ä"), ("assistant", str(i))) for i in range(3)]
    source = source_of(lines[0], "", lines[1], "  ", lines[2])
    assert [source.document(i).parts[-2] for i in (2, 0, 1)] == ["2", "0", "1"]
    assert len(source) == 3


def test_a_file_behind_a_url_is_read_as_a_local_one(source_of, tmp_path):
    here = source_of(turns(("user", "x"), ("assistant", "y"), images=["pictures/1.png"]))
    system = fsspec.filesystem("memory")
    for path in ("0.jsonl", "pictures/1.png"):
        system.pipe(f"/chat/{path}", (tmp_path / path).read_bytes())
    assert open_source("memory://chat").document(0) == here.document(0)


@pytest.mark.parametrize(
    ("line", "message", "reason"),
    [
        ("{", "no JSON", Reason.WRONG_SCHEMA),
        ("[]", "no list of turns", Reason.WRONG_SCHEMA),
        ({"turns": "x"}, "no list of turns", Reason.WRONG_SCHEMA),
        ({"turns": ["x"]}, "no list of turns", Reason.WRONG_SCHEMA),
        (turns(("human", "x")), "human", Reason.WRONG_SCHEMA),
        (turns((["user"], "x")), "roles are", Reason.WRONG_SCHEMA),
        (turns(({"a": 1}, "x")), "roles are", Reason.WRONG_SCHEMA),
        ({"turns": [{"content": "x"}]}, "roles are", Reason.WRONG_SCHEMA),
        ("[" * 100_000, "no JSON", Reason.WRONG_SCHEMA),
        (turns(("assistant", "half \ud83d")), "no Unicode", Reason.WRONG_SCHEMA),
        (turns(("assistant", [{"text": "\ud83d"}])), "no Unicode", Reason.WRONG_SCHEMA),
        (turns(("user", "x")), "says nothing", Reason.NOTHING_TO_LEARN),
        (turns(("assistant", 3)), "content must be", Reason.WRONG_SCHEMA),
        (turns(("assistant", "x"), images="1.png"), "images a list", Reason.WRONG_SCHEMA),
        (turns(("assistant", [{"type": "image"}])), "neither path nor", Reason.WRONG_SCHEMA),
        (turns(("assistant", "x"), images=[{"base64": "?"}]), "picture", Reason.WRONG_SCHEMA),
        (turns(("assistant", "x"), images=["../1.png"]), "does not lie", Reason.WRONG_SCHEMA),
        (turns(("assistant", "x"), images=["/etc/passwd"]), "does not lie", Reason.WRONG_SCHEMA),
        (turns(("assistant", "x"), images=["none.png"]), "cannot be read", Reason.UNREADABLE),
    ],
)
def test_a_line_that_is_something_else_is_a_bad_document(source_of, line, message, reason):
    with pytest.raises(BadDocumentError, match=message) as caught:
        source_of(line).document(0)
    assert caught.value.reason is reason
    assert caught.value.sample_id == "chat/0.jsonl:0"


def test_a_file_that_shrank_gives_bad_documents(source_of, tmp_path):
    source = source_of(turns(("user", "x"), ("assistant", "y")))
    (tmp_path / "0.jsonl").write_text("")
    with pytest.raises(BadDocumentError):
        source.document(0)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "0.jsonl").write_text("\n")
    with pytest.raises(ConfigurationError, match="holds no document"):
        open_source(tmp_path)


def test_a_conversation_is_found_by_its_id(source_of):
    source = source_of(*(turns(("user", "x"), ("assistant", str(i))) for i in range(3)))
    assert [source.number(source.document(i).sample_id) for i in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError):
        source.number("chat/0.jsonl:3")
