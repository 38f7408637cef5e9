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
    def test_a_good_file_is_reported_with_its_hash(self, run, tmp_path):
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

    def test_a_file_that_is_not_there_is_reported_without_a_traceback(self, run, tmp_path):
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


RULES = """\
  rules:
    - name: high
      select: {metric: loss}
      detect: {threshold: {above: 10}}
      for: 2
      severity: divergence
  policy:
    ladder: [{reduce_lr: {factor: 0.5, steps: 20}}, pause]
    act_on: {any: ["severity:divergence"]}
"""


class TestTest:
    def write(self, folder, text):
        file = folder / "tests.yaml"
        file.write_text(f"rules:\n{RULES}{text}")
        return file

    def test_what_happens_as_expected_passes(self, run, tmp_path):
        file = self.write(
            tmp_path,
            "tests:\n"
            "  - name: rises\n"
            "    series: {loss: 2.0x50 +1x20}\n"
            "    expect: [59 alert high, 60 alert high firing, 60 command reduce_lr 0.5]\n"
            "  - {series: {loss: 2.0x50 nan}}\n",
        )
        result = run("rules", "test", file)
        assert result.exit_code == 1
        file.write_text(file.read_text().replace("59 alert high, ", ""))
        result = run("rules", "test", file)
        assert result.exit_code == 0, result.output
        assert "2 of 2 tests passed" in result.stdout

    def test_a_failure_shows_what_happened_instead(self, run, tmp_path):
        file = self.write(tmp_path, "series: {loss: 2.0x50 20x5}\nexpect: [40 alert high]\n")
        result = run("rules", "test", file)
        assert result.exit_code == 1
        lines = [line.strip() for line in result.stdout.splitlines()]
        assert "-40 alert high firing" in lines
        assert "+52 alert high firing" in lines
        assert "+52 command reduce_lr 0.5" in lines

    def test_kinds_that_are_not_named_are_not_compared_but_commands_are(self, run, tmp_path):
        file = self.write(
            tmp_path, "series: {loss: 2.0x50 20x5}\nexpect: [52 command reduce_lr 0.5]\n"
        )
        assert run("rules", "test", file).exit_code == 0
        file.write_text(file.read_text().replace("52 command reduce_lr 0.5", "52 alert high"))
        assert run("rules", "test", file).exit_code == 1

    def test_incidents_attempts_and_stride(self, run, tmp_path):
        file = self.write(
            tmp_path,
            "every: 10\nmode: observe\nseries: {loss: 2.0x5 20x5}\n"
            "expect: [1.70 incident opened, 1.100 alert high resolved]\n",
        )
        result = run("rules", "test", file)
        assert " 1.70 incident opened" in result.stdout
        assert "-1.100 alert high resolved" in result.stdout

    def test_mistakes_are_named_with_their_lines(self, run, tmp_path):
        file = self.write(
            tmp_path,
            "tests:\n"
            "  - {series: {loss: 2..0}}\n"
            "  - {series: {loss: 2.0}, expect: [soon alert]}\n"
            "  - {sets: {}}\n",
        )
        result = run("rules", "test", file)
        assert result.exit_code == 2
        places = re.findall(r"tests\.yaml:(\d+): ([\w.]+): ", result.stderr)
        assert [int(line) for line, _ in places] == [12, 13, 14]
        assert "'2..0' is no piece" in result.stderr

    def test_rules_of_a_file_beside_it(self, run, tmp_path):
        (tmp_path / "own.yaml").write_text(default_rules().text)
        file = tmp_path / "t.yaml"
        file.write_text("rules: own.yaml\nseries: {loss: 2.0x50~0.01}\n")
        assert run("rules", "test", file).exit_code == 0
        file.write_text("rules: none.yaml\nseries: {loss: 2.0x50~0.01}\n")
        assert "none.yaml" in run("rules", "test", file).stderr


class TestExplain:
    def test_every_shipped_rule_is_explained(self, run):
        for rule in default_rules().rules:
            result = run("rules", "explain", rule.name)
            assert result.exit_code == 0, result.output
            assert rule.doc.split(".")[0] in result.stdout
            assert "(default)" in result.stdout
            assert ("Ladder:" in result.stdout) != rule.signal

    def test_it_says_why_the_rule_is_acted_on(self, run, tmp_path):
        file = tmp_path / "own.yaml"
        file.write_text(RULES.replace("\n  ", "\n").removeprefix("  "))
        assert (
            "enough to act on (any: severity:divergence)"
            in run("rules", "explain", "high", "--rules", file).stdout
        )
        file.write_text(file.read_text().replace("severity: divergence", "severity: notice"))
        assert "no reason to act" in run("rules", "explain", "high", "--rules", file).stdout

    def test_an_unknown_name_lists_those_there_are(self, run):
        result = run("rules", "explain", "high")
        assert result.exit_code == 2
        assert "loss_nonfinite" in result.stderr
