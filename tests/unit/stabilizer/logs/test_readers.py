"""Every format answers the same questions in the same way."""

import json
import math
import tracemalloc

import pytest

from stabilizer.errors import ConfigurationError, InvalidInputError
from stabilizer.logs.csv_table import CsvParser
from stabilizer.logs.formats import FORMATS, choose_format, detect_format, find_logs, read_rows
from stabilizer.logs.rows import MAX_LINE_BYTES, LogProblems
from stabilizer.logs.stream import LogStream, steps_of
from tests.unit.stabilizer.logs.writers import ROWS, WRITERS, event_bytes, write

each_format = pytest.mark.parametrize("name", sorted(FORMATS))


def frames(path, problems=None):
    """Return for each step its attempt and its values by series."""
    stream = LogStream()
    found = []
    for step in steps_of(read_rows(path, problems=problems), stream):
        values = {}
        for catalog, block in step.frames:
            for index, key in enumerate(catalog.series):
                if block.present is None or block.present[0][index]:
                    values[str(key)] = float(block.values[0][index])
        found.append((step.attempt, step.step, values))
    if problems is not None:
        problems.add(stream.problems)
    return found


def losses(path, problems=None):
    return [
        (step, values["loss"]) for _, step, values in frames(path, problems) if "loss" in values
    ]


def test_every_format_has_a_writer_here():
    assert set(WRITERS) == set(FORMATS)


@each_format
def test_a_file_is_recognised(tmp_path, name):
    path = write(tmp_path, name, ROWS)
    assert detect_format(path, path.read_bytes()[:65536]).name == name
    assert [source.format.name for source in find_logs([tmp_path])] == [name]


@each_format
def test_loss_and_gradient_norm_are_read(tmp_path, name):
    problems = LogProblems()
    found = frames(write(tmp_path, name, ROWS), problems)
    assert [(step, values["loss"]) for _, step, values in found] == [(s, x) for s, x, _ in ROWS]
    if name not in {"nanogpt", "deepspeed"}:
        assert [values["grad_norm"] for *_, values in found] == [norm for *_, norm in ROWS]
    assert str(problems) in {"", "bad cells: 8"}
    assert {attempt for attempt, *_ in found} == {1}


@each_format
def test_nan_and_inf_are_values(tmp_path, name):
    rows = [(1, 2.0, 1.0), (2, math.nan, math.inf), (3, math.inf, 1.0), (4, -math.inf, 1.0)]
    found = [loss for _, loss in losses(write(tmp_path, name, rows))]
    assert found[0] == 2.0
    assert math.isnan(found[1])
    assert found[2:] == [math.inf, -math.inf]


@each_format
@pytest.mark.parametrize("size", [1, 7, 100])
def test_it_does_not_matter_how_the_bytes_arrive(tmp_path, name, size):
    path = write(tmp_path, name, ROWS)
    data, parser = path.read_bytes(), FORMATS[name].parser()
    rows = [
        row
        for start in range(0, len(data), size)
        for row in parser.feed(data[start : start + size])
    ]
    rows += parser.close()
    whole = list(read_rows(path))
    assert [(row.step, row.columns, row.values.tolist()) for row in rows] == [
        (row.step, row.columns, row.values.tolist()) for row in whole
    ]


@each_format
def test_a_file_cut_anywhere_gives_what_is_whole(tmp_path, name):
    size = len(WRITERS[name][1](ROWS))
    for cut in range(size // 2, size, 11):
        path = write(tmp_path, name, ROWS, cut)
        problems = LogProblems()
        rows = [row for row in read_rows(path, FORMATS[name], problems) if row.step <= 3]
        assert {row.step for row in rows} - {0} == {1, 2, 3}
        assert problems.bad_lines == 0
        found = losses(path) if detect_format(path, path.read_bytes()) else []
        assert found[:3] == [(s, x) for s, x, _ in ROWS[:3]]


@each_format
def test_a_step_twice_counts_once_and_as_written_last(tmp_path, name):
    problems = LogProblems()
    path = write(tmp_path, name, [*ROWS[:3], (3, 1.5, 1.0), (4, 1.25, 1.0)])
    assert losses(path, problems)[2:] == [(3, 1.5), (4, 1.25)]
    assert problems.duplicates
    assert not problems.restarts


@each_format
def test_steps_that_go_back_begin_an_attempt(tmp_path, name):
    problems = LogProblems()
    path = write(tmp_path, name, [*ROWS, (4, 3.5, 1.0), (5, 3.25, 1.0)])
    found = [(a, s, v["loss"]) for a, s, v in frames(path, problems) if "loss" in v]
    assert found[-3:] == [(1, 8, 3.0), (2, 4, 3.5), (2, 5, 3.25)]
    assert problems.restarts == 1


@each_format
def test_gaps_are_steps_that_were_not_measured(tmp_path, name):
    path = write(tmp_path, name, [(1, 4.0, 1.0), (10_001, 3.0, 1.0), (20_000_000, 2.0, 1.0)])
    assert losses(path) == [(1, 4.0), (10_001, 3.0), (20_000_000, 2.0)]


@each_format
def test_an_empty_file_gives_nothing(tmp_path, name):
    path = tmp_path / WRITERS[name][0]
    path.write_bytes(b"")
    assert list(read_rows(path, FORMATS[name])) == []


@each_format
def test_bytes_that_are_no_log_do_not_raise(name):
    parser = FORMATS[name].parser()
    noise = bytes(range(256)) * 300
    try:
        rows = [*parser.feed(noise), *parser.close()]
    except InvalidInputError as error:
        rows, known = [], error.field == "header"
        assert known
    assert rows == []


@each_format
def test_memory_is_bounded(name):
    parser = FORMATS[name].parser()
    if name == "csv":
        list(parser.feed(b"step,loss\n"))
    if name == "trainer_state":
        list(parser.feed(b'{"log_history": [{"loss": "'))
    chunk = b"x" * 2**20
    tracemalloc.start()
    try:
        for _ in range(40):
            list(parser.feed(chunk))
        assert tracemalloc.get_traced_memory()[0] < 2 * MAX_LINE_BYTES
    finally:
        tracemalloc.stop()


def parse(parser, text):
    return [*parser.feed(text.encode()), *parser.close()]


def test_csv_short_and_long_rows_bad_cells_and_second_header():
    parser = CsvParser()
    text = "step,loss,lr\n1,2.0,\n2,1.9\n3,what,0.1\n4,1.8,0.1,9\nstep,loss,lr\n5,1.7,0.1\n-1,2,2\n"
    rows = parse(parser, text)
    assert [row.step for row in rows] == [1, 2, 3, 5]
    assert [row.present.tolist() if row.present is not None else None for row in rows] == [
        [True, False],
        [True, False],
        [False, True],
        None,
    ]
    assert (parser.problems.bad_lines, parser.problems.bad_cells) == (3, 1)


def test_csv_of_a_wandb_chart():
    header = '"Step","proud-owl-3 - train/loss","proud-owl-3 - train/loss__MIN",'
    header += '"proud-owl-3 - train/loss__MAX"\n'
    rows = parse(CsvParser(), header + '"10","2.5","2.4","2.6"\n"20","2.25","2.2","2.3"\n')
    assert [(row.step, row.columns, row.values.tolist()) for row in rows] == [
        (10, ("train/loss",), [2.5]),
        (20, ("train/loss",), [2.25]),
    ]
    with pytest.raises(InvalidInputError, match="2 runs"):
        parse(CsvParser(), '"Step","a - loss","b - loss"\n')


def test_csv_of_a_wandb_chart_with_several_runs_is_split(tmp_path):
    path = tmp_path / "chart.csv"
    path.write_text('"Step","a - loss","a - loss__MIN","b - loss"\n1,2.0,1.9,\n2,,,3.0\n')
    found = {s.name: [row for row in s.rows() if row.present is None] for s in find_logs([path])}
    assert {name: [(r.step, r.values.tolist()) for r in rows] for name, rows in found.items()} == {
        "a": [(1, [2.0])],
        "b": [(2, [3.0])],
    }


def test_csv_without_a_step_says_so():
    with pytest.raises(InvalidInputError, match="no step"):
        parse(CsvParser(), "epoch,loss\n1,2\n")


def test_wandb_history_takes_the_steps_of_training():
    lines = [{"_step": 3 * i, "train/global_step": i, "train/loss": 2.0} for i in range(1, 4)]
    lines.insert(1, {"_step": 4, "system/gpu": 50})
    rows = parse(FORMATS["jsonl"].parser(), "\n".join(map(json.dumps, lines)))
    assert [row.step for row in rows] == [1, 2, 3]
    assert rows[0].columns == ("train/loss",)


def test_summary_of_a_training_is_no_loss(tmp_path):
    assert losses(write(tmp_path, "trainer_state", ROWS))[-1] == (8, 3.0)


def test_evaluation_is_no_training_loss(tmp_path):
    _, _, values = frames(write(tmp_path, "nanogpt", ROWS))[0]
    assert values == {
        "loss": 3.875,
        "eval_train_loss": 9.0,
        "eval_val_loss": 8.0,
        "mfu": pytest.approx(9.4),
        "step_seconds": pytest.approx(0.08525),
    }


def test_late_evaluation_is_left_out_and_counted(tmp_path):
    path = tmp_path / "run.jsonl"
    lines = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 2.0}, {"step": 1, "eval_loss": 2.0}]
    path.write_text("\n".join(map(json.dumps, [*lines, {"step": 3, "loss": 2.0}])))
    problems = LogProblems()
    assert losses(path, problems) == [(1, 2.0), (2, 2.0), (3, 2.0)]
    assert (problems.late, problems.restarts) == (1, 0)


def test_a_pattern_of_ones_own(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("junk\nStep 1 | loss=2.5 | g=[1.0]\nStep 2 | loss=2.25 | g=[nan]\n")
    own = choose_format(None, r"Step (?P<step>\d+) \| loss=(?P<loss>\S+) \| g=(?P<grad_norm>\S+)")
    rows = list(read_rows(path, own))
    assert [(row.step, row.columns) for row in rows] == [
        (1, ("loss", "grad_norm")),
        (2, ("loss", "grad_norm")),
    ]
    with pytest.raises(ConfigurationError, match="groups"):
        choose_format(None, r"loss (?P<loss>\S+)")
    with pytest.raises(ConfigurationError, match="regular"):
        choose_format(None, r"(")
    with pytest.raises(ConfigurationError, match="allowed"):
        choose_format("parquet", None)


def test_folders_hold_runs(tmp_path):
    first = tmp_path / "a"
    (first / "checkpoint-5").mkdir(parents=True)
    (first / "checkpoint-10").mkdir()
    write(first / "checkpoint-5", "trainer_state", ROWS[:5])
    write(first / "checkpoint-10", "trainer_state", ROWS)
    (tmp_path / "b").mkdir()
    for index, rows in enumerate((ROWS[:4], ROWS[4:])):
        path = tmp_path / "b" / f"events.out.tfevents.{index}.host"
        path.write_bytes(event_bytes(rows))
    write(tmp_path, "csv", ROWS)
    (tmp_path / "events.csv").write_text("run,verdict\nx,act\n")
    (tmp_path / "README.md").write_text("no log\n")
    sources = find_logs([tmp_path])
    assert {source.name: len(list(source.rows())) for source in sources} == {
        "a": 8,
        "b": 8,
        "run": 8,
    }
    with pytest.raises(InvalidInputError, match="no format"):
        find_logs([tmp_path / "README.md"])
    with pytest.raises(InvalidInputError, match="cannot be read"):
        find_logs([tmp_path / "nothing.csv"])


def test_runs_of_one_name_have_distinct_names(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, "csv", ROWS)
    assert [source.name for source in find_logs([tmp_path])] == ["x/run", "y/run"]


def test_a_million_columns_are_bounded():
    stream = LogStream()
    text = "step," + ",".join(f"c{i}" for i in range(120_000)) + "\n1" + ",1" * 120_000 + "\n"
    steps = list(steps_of(parse(CsvParser(), text), stream))
    assert len(steps[0].frames[0][0]) == 100_000
    assert stream.problems.left_out_series == 20_000
