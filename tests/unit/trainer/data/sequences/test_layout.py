import pytest

from trainer.data.documents import BadDocumentError, Document, Mark, Reason
from trainer.data.sequences import DocumentLayout
from trainer.data.tokenizer import AROUND_IMAGE, BOS, EOS, IMAGE


def document(*parts, learned=None):
    return Document("web/x.parquet:0", "web", parts, learned)


@pytest.fixture
def make_layout(tokenizer):
    def make(length=16, images=2):
        return DocumentLayout(tokenizer, sequence_length=length, max_images=images)

    return make


@pytest.fixture
def ids(tokenizer):
    return {token: tokenizer.special(token) for token in (BOS, EOS, AROUND_IMAGE, IMAGE)}


def test_a_short_document_is_one_piece_as_if_it_were_cut(make_layout):
    layout = make_layout()
    page = document("one", b"png", "two")
    assert layout.split(page) == [layout.cut(page)]


def test_the_pieces_of_a_long_document_are_the_whole_of_it(make_layout, tokenizer, ids):
    pieces = make_layout().split(document("one two three four " * 12))
    assert len(pieces) > 2
    assert all(len(piece.tokens) == 16 for piece in pieces[:-1])
    joined = [token for piece in pieces for token in piece.tokens]
    assert joined == [ids[BOS], *tokenizer.encode("one two three four " * 12), ids[EOS]]


def test_a_new_piece_begins_where_one_picture_too_many_would(make_layout, ids):
    pieces = make_layout(length=32).split(document(*(b"%d" % i for i in range(5)), "end"))
    assert [piece.pictures for piece in pieces] == [[b"0", b"1"], [b"2", b"3"], [b"4"]]
    for piece in pieces:
        assert piece.tokens.count(ids[IMAGE]) == len(piece.pictures)
    assert [ids[BOS] in piece.tokens for piece in pieces] == [True, False, False]


def test_a_picture_is_never_cut_from_its_tokens(make_layout, ids):
    for words in range(16):
        page = document("one " * words, b"1", "two", b"2", "three " * 5)
        for piece in make_layout(length=9).split(page):
            assert piece.tokens.count(ids[IMAGE]) == len(piece.pictures)
            places = [i for i, token in enumerate(piece.tokens) if token == ids[IMAGE]]
            assert all(
                piece.tokens[i - 1] == piece.tokens[i + 1] == ids[AROUND_IMAGE] for i in places
            )


def test_no_piece_teaches_nothing(make_layout):
    layout = make_layout(length=8)
    for words in range(40):
        assert all(piece.teaches() for piece in layout.split(document("one " * words, b"1")))


def test_only_what_is_learned_is_flagged(make_layout, tokenizer):
    page = document("ask", "tell", Mark.END_OF_TURN, learned=(False, True, True))
    piece = make_layout().cut(page)
    ask, tell = (len(tokenizer.encode(text)) for text in ("ask", "tell"))
    assert piece.learned == [False] * (1 + ask) + [True] * (tell + 1) + [False]


def test_a_turn_ends_as_the_tokenizer_can_say_it(make_layout, ids):
    page = document("tell", Mark.END_OF_TURN, learned=(True, True))
    assert make_layout().cut(page).tokens[-2:] == [ids[EOS], ids[EOS]]


@pytest.mark.parametrize("method", ["cut", "split"])
def test_a_document_of_which_nothing_is_learned_is_bad(make_layout, method):
    page = document("ask " * 30, "tell", learned=(False, False))
    with pytest.raises(BadDocumentError) as caught:
        getattr(make_layout(), method)(page)
    assert caught.value.reason is Reason.NOTHING_TO_LEARN


def test_what_is_learned_behind_the_cut_is_not_there(make_layout):
    page = document("ask " * 30, "tell", learned=(False, True))
    with pytest.raises(BadDocumentError):
        make_layout().cut(page)
    assert len(make_layout().split(page)) == 1
