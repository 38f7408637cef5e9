"""`stabilizer token new`: secrets that the settings take."""

from stabilizer.settings import load_collector_settings


def test_a_new_token_is_taken_by_the_settings(run):
    token = run("token", "new").stdout.strip()
    settings = load_collector_settings(tokens=(token,), host="0.0.0.0")
    assert settings.tokens[0].get_secret_value() == token


def test_no_two_are_alike(run):
    assert len({run("token", "new").stdout for _ in range(20)}) == 20


def test_it_can_be_redirected_into_a_token_file(run, tmp_path):
    file = tmp_path / "tokens"
    file.write_text(run("token", "new").stdout + run("token", "new").stdout)
    assert len(load_collector_settings(token_file=file).tokens) == 2
