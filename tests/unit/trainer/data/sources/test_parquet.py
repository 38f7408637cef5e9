import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stabilizer.errors import ConfigurationError
from trainer.data.documents import BadDocumentError, Reason
from trainer.data.sources import ParquetSource, list_files
from trainer.data.sources.parquet import SCHEMA

PICTURE = {"bytes": b"png", "path": None}


def write(folder, rows, schema=SCHEMA, name="part-00000.parquet", **options):
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / name, **options)


def row(images, texts):
    return {"images": images, "texts": texts, "metadata": None}


def open_source(folder, **options):
    return ParquetSource("web", list_files("data.sources.web", str(folder), ".parquet"), **options)


@pytest.fixture
def source_of(tmp_path):
    def make(*rows):
        write(tmp_path / "web", list(rows))
        return open_source(tmp_path / "web")

    return make


def test_documents_keep_the_order_of_the_page(source_of):
    source = source_of(row([None, PICTURE, None], ["before", None, "after"]))
    document = source.document(0)
    assert document.parts == ("before", b"png", "after")
    assert document.sample_id == "web/part-00000.parquet:0"


def test_numbers_run_over_row_groups_and_files(tmp_path):
    for number in range(2):
        rows = [row([None], [f"{number}/{i}"]) for i in range(5)]
        write(tmp_path / "web", rows, name=f"part-{number:05d}.parquet", row_group_size=2)
    source = open_source(tmp_path / "web")
    found = [source.document(i) for i in range(len(source))]
    assert [d.parts[0] for d in found] == [f"{n}/{i}" for n in range(2) for i in range(5)]
    assert found[8].sample_id == "web/part-00001.parquet:3"


@pytest.mark.parametrize("index", [-1, 1])
def test_a_number_outside_is_refused(source_of, index):
    with pytest.raises(IndexError):
        source_of(row([None], ["a"])).document(index)


@pytest.mark.parametrize(
    ("images", "texts", "message"),
    [
        ([], [], "not empty"),
        (None, None, "not empty"),
        ([None], ["a", "b"], "1 images beside 2 texts"),
        ([None, None], ["a", None], "place 1 must hold either an image or a text, not none"),
        ([PICTURE], ["a"], "not both"),
        ([{"bytes": None, "path": "x.png"}], [None], "no bytes"),
        ([{"bytes": b"", "path": None}], [None], "no bytes"),
    ],
    ids=["empty", "null", "lengths", "neither", "both", "no bytes", "zero bytes"],
)
def test_a_row_that_breaks_the_rules_is_a_bad_document(source_of, images, texts, message):
    source = source_of(row(images, texts))
    with pytest.raises(BadDocumentError, match=message):
        source.document(0)


def test_bare_bytes_and_large_types_are_read_too(tmp_path):
    schema = pa.schema(
        [
            ("images", pa.large_list(pa.large_binary())),
            ("texts", pa.large_list(pa.large_string())),
        ]
    )
    write(tmp_path / "web", [{"images": [b"png", None], "texts": [None, "a"]}], schema=schema)
    assert open_source(tmp_path / "web").document(0).parts == (b"png", "a")


@pytest.mark.parametrize(
    ("schema", "column"),
    [
        (pa.schema([("images", SCHEMA.field("images").type)]), "texts"),
        (pa.schema([("images", pa.list_(pa.int64())), SCHEMA.field("texts")]), "images"),
        (pa.schema([("images", pa.string()), SCHEMA.field("texts")]), "images"),
        (
            pa.schema(
                [("images", pa.list_(pa.struct([("url", pa.string())]))), ("texts", pa.null())]
            ),
            "images",
        ),
    ],
    ids=["absent", "numbers", "no list", "no bytes"],
)
def test_another_schema_is_refused_by_name(tmp_path, schema, column):
    write(tmp_path / "web", [], schema=schema)
    with pytest.raises(ConfigurationError, match=f"part-00000.parquet: column '{column}'"):
        open_source(tmp_path / "web")


def test_a_file_that_is_no_parquet_is_refused(tmp_path):
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "part.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(ConfigurationError, match="not a Parquet file"):
        open_source(tmp_path / "web")


def test_an_unusable_file_among_others_is_left_out_and_reported(tmp_path):
    for number in range(3):
        write(tmp_path / "web", [row([None], [str(number)])], name=f"{number}.parquet")
    (tmp_path / "web" / "1.parquet").write_bytes(b"PAR1 but not really")
    source = open_source(tmp_path / "web")
    assert [source.document(i).parts for i in range(len(source))] == [("0",), ("2",)]
    (skip,) = source.skipped
    assert (skip.what, skip.source, skip.sample_id) == ("shards", "web", "web/1.parquet")
    assert skip.reason is Reason.UNREADABLE


def test_too_many_unusable_files_in_a_row_are_refused(tmp_path):
    for number in range(5):
        write(tmp_path / "web", [row([None], [str(number)])], name=f"{number}.parquet")
    for number in (1, 2, 3):
        (tmp_path / "web" / f"{number}.parquet").write_bytes(b"gone")
    assert len(open_source(tmp_path / "web", max_bad_in_a_row=3)) == 2
    with pytest.raises(ConfigurationError, match=r"3 of them in a row.*3\.parquet is not"):
        open_source(tmp_path / "web", max_bad_in_a_row=2)


def test_addresses_instead_of_pictures_are_reported_as_such(tmp_path):
    schema = pa.schema([("images", pa.list_(pa.string())), SCHEMA.field("texts")])
    write(tmp_path / "web", [], schema=schema)
    with pytest.raises(ConfigurationError, match="addresses instead of pictures"):
        open_source(tmp_path / "web")


def test_files_behind_a_url_are_read_as_local_ones(tmp_path):
    write(tmp_path / "web", [row([None, PICTURE], [str(i), None]) for i in range(5)])
    file = tmp_path / "web" / "part-00000.parquet"
    memory = fsspec.filesystem("memory")
    memory.pipe("/corpus/part-00000.parquet", file.read_bytes())
    here = open_source(tmp_path / "web")
    for url in ("memory://corpus", f"file://{tmp_path}/web/*.parquet"):
        there = open_source(url)
        assert [there.document(i) for i in range(5)] == [here.document(i) for i in range(5)]


def test_blocks_are_the_row_groups_of_all_files(tmp_path):
    for number in range(2):
        rows = [row([None], ["a"]) for _ in range(5)]
        write(tmp_path / "web", rows, name=f"{number}.parquet", row_group_size=2)
    assert list(open_source(tmp_path / "web").blocks) == [2, 2, 1, 2, 2, 1]


def test_files_without_a_row_are_refused(source_of):
    with pytest.raises(ConfigurationError, match="holds no document"):
        source_of()


def test_a_file_damaged_later_gives_bad_documents(source_of, tmp_path):
    source = source_of(row([None], ["a"]))
    (tmp_path / "web" / "part-00000.parquet").write_bytes(b"gone")
    with pytest.raises(BadDocumentError, match="cannot be read"):
        source.document(0)


@pytest.mark.parametrize(("cache_bytes", "held"), [(1, 1), (10**6, 4)])
def test_only_so_many_bytes_of_row_groups_are_held(tmp_path, cache_bytes, held):
    write(tmp_path / "web", [row([None], [str(i)]) for i in range(6)], row_group_size=1)
    source = open_source(tmp_path / "web", cache_bytes=cache_bytes)
    assert [source.document(i).parts[0] for i in (0, 1, 2, 0, 5, 0)] == [
        "0",
        "1",
        "2",
        "0",
        "5",
        "0",
    ]
    assert len(source._cache) == held


def test_a_document_is_found_by_its_id(tmp_path):
    for number in range(2):
        rows = [row([None], [f"{number}/{i}"]) for i in range(5)]
        write(tmp_path / "web", rows, name=f"part-{number:05d}.parquet", row_group_size=2)
    source = open_source(tmp_path / "web")
    assert [source.number(source.document(i).sample_id) for i in range(10)] == list(range(10))
    for unknown in ("web/part-00000.parquet:5", "web/part-9.parquet:0", "web/part-00000.parquet:x"):
        with pytest.raises(KeyError):
            source.number(unknown)
