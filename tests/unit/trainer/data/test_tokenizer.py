import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from stabilizer.errors import ConfigurationError
from trainer.data import load_tokenizer
from trainer.data.tokenizer import CorpusTokenizer, train_tokenizer


@given(text=st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_can_be_written(tokenizer, text):
    decoded = tokenizer.decode(tokenizer.encode(text))
    assert decoded in {text, " " + text}  # words are learned with the blank before them


def test_a_special_token_in_a_text_is_text(tokenizer):
    ids = tokenizer.encode("see <image> and </s>")
    assert set(ids) <= set(tokenizer.text_ids)


def test_a_vocabulary_without_room_for_bytes_is_refused():
    with pytest.raises(ConfigurationError, match="at least 261"):
        train_tokenizer(["a"], 260)


def test_an_absent_file_names_the_command_that_writes_it(tmp_path):
    with pytest.raises(ConfigurationError, match="data make"):
        load_tokenizer(tmp_path)


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="not a tokenizer file"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_our_special_tokens_is_refused(tmp_path):
    Tokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigurationError, match="lacks the tokens <pad>"):
        load_tokenizer(tmp_path)


def test_wrapping_a_foreign_tokenizer_is_refused():
    with pytest.raises(ConfigurationError, match="lacks the tokens"):
        CorpusTokenizer(Tokenizer(models.BPE()))
