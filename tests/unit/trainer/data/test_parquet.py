import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stabilizer.errors import ConfigurationError
from trainer.data.parquet import SCHEMA, BadDocumentError, ParquetSource

PICTURE = {"bytes": b"png", "path": None}


def write(folder, rows, schema=SCHEMA, name="part-00000.parquet", **options):
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / name, **options)


def row(images, texts):
    return {"images": images, "texts": texts, "metadata": None}


@pytest.fixture
def source_of(tmp_path):
    def make(*rows):
        write(tmp_path / "web", list(rows))
        return ParquetSource(tmp_path, "web")

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
    source = ParquetSource(tmp_path, "web")
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
    assert ParquetSource(tmp_path, "web").document(0).parts == (b"png", "a")


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
        ParquetSource(tmp_path, "web")


def test_a_file_that_is_no_parquet_is_refused(tmp_path):
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "part.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(ConfigurationError, match="not a Parquet file"):
        ParquetSource(tmp_path, "web")


def test_a_folder_without_files_names_the_command_that_writes_them(tmp_path):
    with pytest.raises(ConfigurationError, match="data make"):
        ParquetSource(tmp_path, "web")


def test_files_without_a_row_are_refused(source_of):
    with pytest.raises(ConfigurationError, match="holds no document"):
        source_of()


def test_a_file_damaged_later_gives_bad_documents(source_of, tmp_path):
    source = source_of(row([None], ["a"]))
    (tmp_path / "web" / "part-00000.parquet").write_bytes(b"gone")
    with pytest.raises(BadDocumentError, match="cannot be read"):
        source.document(0)


def test_only_so_many_row_groups_are_held(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.data.parquet._CACHED_GROUPS", 2)
    write(tmp_path / "web", [row([None], [str(i)]) for i in range(6)], row_group_size=1)
    source = ParquetSource(tmp_path, "web")
    assert [source.document(i).parts[0] for i in (0, 1, 2, 0, 5, 0)] == [
        "0",
        "1",
        "2",
        "0",
        "5",
        "0",
    ]
    assert len(source._cache) == 2
