"""What the dashboard's settings take, where they come from, and what they refuse."""

import getpass

import pytest

from dashboard.settings import DashboardSettings, load_dashboard_settings
from stabilizer.errors import ConfigurationError

TOKEN = "t" * 43


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in DashboardSettings.model_fields:
        monkeypatch.delenv(f"DASHBOARD_{name.upper()}", raising=False)


def refusal(**given):
    with pytest.raises(ConfigurationError) as caught:
        load_dashboard_settings(**given)
    return str(caught.value)


class TestSources:
    def test_defaults_need_nothing(self):
        settings = load_dashboard_settings()
        assert settings.collector_url == "http://127.0.0.1:8000"
        assert (settings.host, settings.port, settings.token) == ("127.0.0.1", 8050, None)
        assert not settings.must_sign_in

    def test_every_field_is_a_variable(self, monkeypatch, tmp_path):
        (tmp_path / "token").write_text(TOKEN)
        given = {
            "collector_url": "https://collector.example:8443/stabilizer/",
            "host": "::1",
            "port": "0",
            "token_file": str(tmp_path / "token"),
            "person": "ada@night.shift",
            "allowed_hosts": "dash.example, other.example,",
            "session_hours": "0.5",
            "secure_cookies": "true",
            "timeout_seconds": "2.5",
            "log_level": "debug",
        }
        for name, value in given.items():
            monkeypatch.setenv(f"DASHBOARD_{name.upper()}", value)
        settings = load_dashboard_settings()
        assert settings.collector_url == "https://collector.example:8443/stabilizer"
        assert (settings.host, settings.port, settings.person) == ("::1", 0, "ada@night.shift")
        assert settings.token.get_secret_value() == TOKEN
        assert settings.allowed_hosts == ("dash.example", "other.example")
        assert (settings.session_hours, settings.timeout_seconds) == (0.5, 2.5)
        assert (settings.secure_cookies, settings.log_level) == (True, "debug")

    def test_what_is_given_wins_over_the_environment(self, monkeypatch):
        monkeypatch.setenv("DASHBOARD_PORT", "1234")
        monkeypatch.setenv("DASHBOARD_PERSON", "night-shift")
        settings = load_dashboard_settings(port=4321)
        assert (settings.port, settings.person) == (4321, "night-shift")
        assert load_dashboard_settings(person="ada").person == "ada"

    def test_an_empty_variable_counts_as_none(self, monkeypatch):
        for name in ("TOKEN", "PORT", "PERSON", "ALLOWED_HOSTS", "TOKEN_FILE"):
            monkeypatch.setenv(f"DASHBOARD_{name}", "")
        settings = load_dashboard_settings()
        assert (settings.token, settings.port, settings.allowed_hosts) == (None, 8050, ())

    def test_variables_of_the_collector_mean_nothing_here(self, monkeypatch):
        monkeypatch.setenv("STABILIZER_HOST", "0.0.0.0")
        monkeypatch.setenv("STABILIZER_TOKENS", TOKEN)
        settings = load_dashboard_settings()
        assert (settings.host, settings.token) == ("127.0.0.1", None)

    def test_the_first_line_of_a_token_file_that_is_no_comment_counts(self, tmp_path):
        (tmp_path / "token").write_text(f"# of the dashboard\n\n  {TOKEN}\n{'o' * 43}\n")
        settings = load_dashboard_settings(token_file=tmp_path / "token")
        assert settings.token.get_secret_value() == TOKEN


class TestPerson:
    def test_without_a_name_it_is_that_of_the_login(self, monkeypatch):
        monkeypatch.setattr(getpass, "getuser", lambda: "grace")
        assert load_dashboard_settings().person == "grace"

    @pytest.mark.parametrize("login", ["", "-x", "g\u00fcnther", "x" * 101])
    def test_a_login_that_the_audit_log_would_refuse_is_not_used(self, monkeypatch, login):
        monkeypatch.setattr(getpass, "getuser", lambda: login)
        assert load_dashboard_settings().person == "dashboard"

    @pytest.mark.parametrize("error", [OSError("no user"), KeyError("uid not found")])
    def test_a_machine_that_knows_no_users_has_a_name_as_well(self, monkeypatch, error):
        def fail():
            raise error

        monkeypatch.setattr(getpass, "getuser", fail)
        assert load_dashboard_settings().person == "dashboard"

    @pytest.mark.parametrize("person", [" ", "-ada", "ada\n", "a\u00e9", "a/b", "x" * 101])
    def test_invalid_name_is_rejected(self, person):
        assert refusal(person=person).startswith("person: ")


class TestLoopback:
    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.1.2.3"])
    def test_loopback_needs_no_sign_in_and_may_have_a_token(self, host):
        settings = load_dashboard_settings(host=host, token=TOKEN)
        assert settings.is_loopback
        assert not settings.must_sign_in

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "dash.example", "10.0.0.1"])
    def test_sign_in_is_required_beyond_loopback(self, host):
        assert load_dashboard_settings(host=host).must_sign_in

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "dash.example"])
    def test_token_is_refused_beyond_loopback(self, host, tmp_path):
        (tmp_path / "token").write_text(TOKEN)
        for given in ({"token": TOKEN}, {"token_file": tmp_path / "token"}):
            message = refusal(host=host, **given)
            assert host in message
            assert "token" in message
            assert TOKEN not in message


class TestRefusals:
    @pytest.mark.parametrize(
        "url",
        [
            "",
            "127.0.0.1:8000",
            "ftp://collector",
            "http://",
            "http://:8000",
            "http://[::1",
            "http://collector:99999",
            "http://collector:0",
            "http://collector:port",
            "http://collector/?a=1",
            "http://collector/#a",
            "http://two names/",
            "http://collector\n",
            "unix:///run/collector",
        ],
    )
    def test_what_is_no_address_of_a_collector_is_refused(self, url):
        message = refusal(collector_url=url)
        assert message.startswith("collector_url: ")
        assert "http://HOST:PORT" in message

    def test_a_password_in_the_address_is_refused_and_not_repeated(self):
        message = refusal(collector_url="http://ada:hunter2@collector:8000")
        assert "collector_url" in message
        assert "hunter2" not in message

    @pytest.mark.parametrize(
        "url",
        [
            "http://127.0.0.1:8000",
            "https://collector.example",
            "http://[::1]:8000",
            "HTTP://COLLECTOR",
            "https://proxy.example/stabilizer",
        ],
    )
    def test_every_address_of_a_collector_is_taken(self, url):
        assert load_dashboard_settings(collector_url=url + "/").collector_url == url

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("host", ""),
            ("port", 70000),
            ("port", -1),
            ("port", "http"),
            ("session_hours", 0),
            ("session_hours", "nan"),
            ("session_hours", "inf"),
            ("timeout_seconds", 0),
            ("timeout_seconds", "nan"),
            ("timeout_seconds", 301),
            ("secure_cookies", "perhaps"),
            ("log_level", "loud"),
            ("token", "gr\u00fcn" * 5),
            ("token", "with\nnewline"),
            ("token", ""),
            ("allowed_hosts", "https://dash.example"),
            ("allowed_hosts", "dash.example:8050"),
            ("allowed_hosts", "*"),
            ("colour", "red"),
        ],
    )
    def test_each_names_its_field(self, field, value):
        assert refusal(**{field: value}).startswith(f"{field}")

    def test_every_mistake_is_reported(self):
        lines = refusal(port=-1, session_hours=0, collector_url="x", person="/").splitlines()
        assert {line.partition(":")[0] for line in lines} == {
            "port",
            "session_hours",
            "collector_url",
            "person",
        }

    @pytest.mark.parametrize("content", [None, "", "# nothing\n", b"\xff\xfe"])
    def test_a_token_file_without_a_token_is_refused(self, tmp_path, content):
        if content is not None:
            data = content if isinstance(content, bytes) else content.encode()
            (tmp_path / "token").write_bytes(data)
        assert "token_file" in refusal(token_file=tmp_path / "token")

    def test_two_tokens_are_refused(self, tmp_path):
        (tmp_path / "token").write_text(TOKEN)
        message = refusal(token="o" * 43, token_file=tmp_path / "token")
        assert "token and token_file" in message
        assert TOKEN not in message

    def test_secrets_do_not_show(self):
        assert TOKEN not in repr(load_dashboard_settings(token=TOKEN))
        assert "hidden" not in refusal(token="hidden\u00e9")
