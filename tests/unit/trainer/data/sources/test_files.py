import fsspec
import pytest

from stabilizer.errors import ConfigurationError
from trainer.data.sources import StoredFile, is_relative, list_files


@pytest.fixture
def tree(tmp_path):
    for name in ("a/1.tar", "a/2.tar", "b/1.tar", "b/x.txt", "a/.hidden.tar", "a/_partial.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


@pytest.fixture
def memory(tree):
    system = fsspec.filesystem("memory")
    for path in tree.rglob("*"):
        if path.is_file():
            system.pipe(f"/tree/{path.relative_to(tree)}", path.read_bytes())
    yield "memory://tree"
    system.rm("/tree", recursive=True)


@pytest.mark.parametrize("where", ["here", "there"])
@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("a", ["1.tar", "2.tar"]),
        ("a/", ["1.tar", "2.tar"]),
        ("a/2.tar", ["2.tar"]),
        ("a/[2-9].tar", ["2.tar"]),
        ("*/1.tar", ["a/1.tar", "b/1.tar"]),
        ("**/*.tar", ["a/1.tar", "a/2.tar", "b/1.tar"]),
    ],
)
def test_files_are_found_by_folder_name_and_glob_here_and_behind_a_url(
    tree, memory, where, path, names
):
    top = tree if where == "here" else memory
    files = list_files("data.sources.x", f"{top}/{path}", ".tar")
    assert [file.name for file in files] == names
    assert all(file.read().decode().endswith(file.name) for file in files)
    assert {file.is_local for file in files} == {where == "here"}


def test_files_are_read_in_part(tree, memory):
    for url in (f"{tree}/a/1.tar", f"{memory}/a/1.tar"):
        assert StoredFile(url, "1.tar").read(2, 5) == b"1.t"
        assert StoredFile(url, "1.tar").read(5, 99) == b"ar"


@pytest.mark.parametrize("path", ["none", "none/*.tar", "memory://none", "memory://none/*.tar"])
def test_where_nothing_is_the_command_that_writes_is_named(tree, path):
    path = path if "://" in path else f"{tree}/{path}"
    with pytest.raises(ConfigurationError, match=r"data\.sources\.x: .*none.*data make"):
        list_files("data.sources.x", path, ".tar")


@pytest.mark.parametrize("name", ["b/x.txt", "b/*"])
def test_another_kind_of_file_is_refused_by_name(tree, name):
    with pytest.raises(ConfigurationError, match=r"x\.txt cannot be read; allowed: plain \.tar"):
        list_files("data.sources.x", f"{tree}/{name}", ".tar")


@pytest.mark.parametrize("url", ["nowhere://bucket/a", "s3://bucket/a"])
def test_a_file_system_that_is_not_there_is_reported(url):
    with pytest.raises(ConfigurationError, match="cannot be listed"):
        list_files("data.sources.x", url, ".tar")


@pytest.mark.parametrize(
    ("path", "expected"), [("a/b", True), ("../b", True), ("/a", False), ("s3://a", False)]
)
def test_paths_that_begin_at_the_folder_of_the_corpus(path, expected):
    assert is_relative(path) is expected


@pytest.mark.parametrize("where", ["here", "there"])
def test_a_neighbour_is_found(tree, memory, where):
    top = tree if where == "here" else memory
    (file,) = list_files("data.sources.x", f"{top}/a/1.tar", ".tar")
    assert file.sibling("./2.tar").read() == b"a/2.tar"


@pytest.mark.parametrize(
    "path", ["", "../b/1.tar", "/etc/passwd", "a/../../x", "file:///x", "a\\b"]
)
def test_a_neighbour_outside_of_the_folder_is_refused(tree, path):
    with pytest.raises(ValueError, match="does not lie below"):
        StoredFile(f"{tree}/a/1.tar", "1.tar").sibling(path)
