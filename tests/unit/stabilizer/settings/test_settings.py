"""What settings take, where they come from, and what they refuse."""

import pytest

from stabilizer.errors import ConfigurationError
from stabilizer.protocol.frames import MAX_BODY_BYTES
from stabilizer.settings import (
    DEFAULT_MAX_BODY_BYTES,
    CollectorSettings,
    is_loopback,
    load_collector_settings,
)

TOKEN = "t" * 43
OTHER = "o" * 43


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in CollectorSettings.model_fields:
        monkeypatch.delenv(f"STABILIZER_{name.upper()}", raising=False)


def tokens_of(settings):
    return [token.get_secret_value() for token in settings.tokens]


class TestIsLoopback:
    @pytest.mark.parametrize(
        "host",
        ["127.0.0.1", "127.8.9.1", "localhost", "LOCALHOST.", "a.localhost", "::1", "[::1]"],
    )
    def test_names_of_this_machine_are(self, host):
        assert is_loopback(host)

    @pytest.mark.parametrize(
        "host",
        ["", "0.0.0.0", "::", "10.0.0.1", "127.0.0.1.evil.example", "localhost.evil.example", "1"],
    )
    def test_all_others_are_not(self, host):
        assert not is_loopback(host)


class TestSources:
    def test_defaults_need_nothing(self):
        settings = CollectorSettings()
        assert settings.database_url == "sqlite:///stabilizer.db"
        assert (settings.host, settings.port, settings.tokens) == ("127.0.0.1", 8000, ())

    def test_what_is_given_wins_over_the_environment(self, monkeypatch):
        monkeypatch.setenv("STABILIZER_PORT", "1234")
        monkeypatch.setenv("STABILIZER_DATABASE_URL", "sqlite:///other.db")
        settings = load_collector_settings(port=4321)
        assert (settings.port, settings.database_url) == (4321, "sqlite:///other.db")

    def test_tokens_in_the_environment_are_separated_by_commas(self, monkeypatch):
        monkeypatch.setenv("STABILIZER_TOKENS", f"{TOKEN}, {OTHER},")
        assert tokens_of(CollectorSettings()) == [TOKEN, OTHER]

    def test_an_empty_variable_counts_as_none(self, monkeypatch):
        monkeypatch.setenv("STABILIZER_TOKENS", "")
        monkeypatch.setenv("STABILIZER_PORT", "")
        assert CollectorSettings().tokens == ()

    def test_a_token_file_adds_its_lines(self, tmp_path):
        file = tmp_path / "tokens"
        file.write_text(f"# of the job\n{TOKEN}\n\n  {OTHER}  \n")
        settings = load_collector_settings(token_file=file, tokens="x" * 20)
        assert tokens_of(settings) == ["x" * 20, TOKEN, OTHER]

    def test_a_batch_of_the_agent_fits_into_a_body(self):
        assert DEFAULT_MAX_BODY_BYTES >= MAX_BODY_BYTES


class TestRefusals:
    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "collector.example"])
    def test_beyond_loopback_without_a_token_there_are_no_settings(self, host):
        with pytest.raises(ConfigurationError, match="there is no token"):
            load_collector_settings(host=host)

    def test_beyond_loopback_with_a_token_there_are(self):
        assert not load_collector_settings(host="0.0.0.0", tokens=(TOKEN,)).is_loopback

    def test_every_mistake_is_reported_at_once(self):
        with pytest.raises(ConfigurationError) as caught:
            load_collector_settings(port=70000, sweep_seconds=0, databse_url="x")
        message = str(caught.value)
        assert {line.partition(":")[0] for line in message.splitlines()} == {
            "port",
            "sweep_seconds",
            "databse_url",
        }

    @pytest.mark.parametrize(
        "token", ["short", "with\nnewline-and-more", "nicht-gr\u00fcn-genug-lang"]
    )
    def test_tokens_that_cannot_be_sent_or_can_be_guessed_are_refused(self, token):
        with pytest.raises(ConfigurationError, match="printable ASCII") as caught:
            load_collector_settings(tokens=(token,))
        assert token not in str(caught.value)

    @pytest.mark.parametrize("content", [None, "", "# nothing\n", b"\xff\xfe"])
    def test_a_token_file_without_tokens_is_refused(self, tmp_path, content):
        file = tmp_path / "tokens"
        if content is not None:
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ConfigurationError, match="token_file"):
            load_collector_settings(token_file=file)

    @pytest.mark.parametrize("value", ["nan", "inf", "0.5"])
    def test_lost_after_is_a_finite_number_of_heartbeats(self, value):
        with pytest.raises(ConfigurationError, match="lost_after_heartbeats"):
            load_collector_settings(lost_after_heartbeats=value)

    def test_secrets_do_not_show(self):
        assert TOKEN not in repr(load_collector_settings(tokens=(TOKEN,)))
