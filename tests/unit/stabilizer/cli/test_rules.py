"""`stabilizer rules`: every mistake at once, each with its place."""

import re

from stabilizer.rules.loader import default_rules

BAD = """\
rules:
  - name: loss_rising
    select: {metric: Loss!}
    detect: {drift: {window: -3, above: 0.01}}
    for: soon
    severity: terrible
policy:
  mode: sometimes
"""


class TestCheck:
    def test_a_good_file_is_told_with_its_hash(self, run, tmp_path):
        file = tmp_path / "good.yaml"
        file.write_text(default_rules().text)
        result = run("rules", "check", file)
        assert result.exit_code == 0
        assert default_rules().hash in result.stdout

    def test_a_bad_file_lists_every_mistake_with_file_line_and_field(self, run, tmp_path):
        file = tmp_path / "bad.yaml"
        file.write_text(BAD)
        result = run("rules", "check", file)
        places = [
            re.match(rf"{re.escape(str(file))}:(\d+): ([\w.]+): ", line)
            for line in result.stdout.splitlines()
        ]
        assert result.exit_code == 2
        assert all(places)
        assert {int(place[1]) for place in places} >= {3, 4, 5, 6, 8}
        assert any(place[2].endswith("severity") for place in places)

    def test_a_good_file_beside_a_bad_one_does_not_make_it_good(self, run, tmp_path):
        good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
        good.write_text(default_rules().text)
        bad.write_text(BAD)
        result = run("rules", "check", bad, good)
        assert result.exit_code == 2
        assert f"{good}: ok" in result.stdout

    def test_what_is_not_yaml_has_a_line_too(self, run, tmp_path):
        file = tmp_path / "bad.yaml"
        file.write_text("rules:\n  - [unclosed\n")
        result = run("rules", "check", file)
        assert result.exit_code == 2
        assert re.search(r"bad\.yaml:\d+: ", result.stdout)

    def test_a_file_that_is_not_there_is_told_without_a_traceback(self, run, tmp_path):
        result = run("rules", "check", tmp_path / "none.yaml")
        assert result.exit_code == 2
        assert "cannot be read" in result.stderr
        assert "Traceback" not in result.output

    def test_without_a_file_the_usage_is_shown(self, run):
        assert run("rules", "check").exit_code == 2


class TestShow:
    def test_it_prints_the_packaged_file_as_it_is(self, run):
        result = run("rules", "show")
        assert (result.exit_code, result.stdout) == (0, default_rules().text)

    def test_what_it_prints_can_be_checked(self, run, tmp_path):
        file = tmp_path / "shown.yaml"
        file.write_text(run("rules", "show").stdout)
        assert run("rules", "check", file).exit_code == 0
