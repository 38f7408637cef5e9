"""Sources behind a web server: read as local ones, and its failures are those of documents."""

import functools
import re
import socket
import threading
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from stabilizer.errors import ConfigurationError
from trainer.config import load_config
from trainer.data import StreamLoader, load_tokenizer, open_training_stream
from trainer.data.documents import BadDocumentError, Reason
from trainer.data.making import make_corpus
from trainer.data.sources import ConversationSource, ParquetSource, TarSource, list_files

KINDS = {
    "web_documents": (ParquetSource, ".parquet"),
    "image_text_pairs": (TarSource, ".tar"),
    "conversations": (ConversationSource, ".jsonl"),
}


class Server(ThreadingHTTPServer):
    """Serves a folder; `failure` says what happens to reads."""

    failure = ""
    gives_ranges = True
    daemon_threads = True

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        """A client that hangs up is nothing to print."""


class Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        """Say nothing."""

    def do_GET(self):
        if self.server.failure == "hangs up":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if self.server.failure:
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE)
            return
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if match is None or not self.server.gives_ranges:
            super().do_GET()
            return
        content = Path(self.translate_path(self.path)).read_bytes()
        first, last = int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
        self.send_response(HTTPStatus.PARTIAL_CONTENT)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        self.wfile.write(content[first : last + 1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder, documents=40, seed=1, pairs_format="webdataset", conversations=10)
    return folder


@pytest.fixture
def server(folder):
    server = Server(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def open_source(name, top):
    kind, suffix = KINDS[name]
    return kind(name, list_files(f"data.sources.{name}", f"{top}/{name}", suffix))


@pytest.mark.parametrize("name", KINDS)
def test_documents_behind_a_web_server_are_those_of_the_folder(folder, server, name):
    here, there = open_source(name, folder), open_source(name, server.url)
    assert len(there) == len(here) > 0
    assert [there.document(i) for i in range(len(there))] == [
        here.document(i) for i in range(len(here))
    ]


def test_workers_read_what_stands_behind_a_web_server(folder, server):
    def batches(top, workers):
        sources = {
            "web_documents": {"weight": 2, "path": f"{top}/web_documents"},
            "image_text_pairs": {
                "weight": 1,
                "kind": "webdataset",
                "path": f"{top}/image_text_pairs/shard-*.tar",
            },
        }
        config = load_config(
            "idefics-tiny", fields={"data.folder": str(folder), "data.sources": sources}
        ).data
        stream = open_training_stream(config, load_tokenizer(folder), image_size=16, seed=0)
        loader = StreamLoader(stream, batch_size=4, epoch_samples=24, workers=workers)
        return [(batch["sample_ids"], batch["pixel_values"].sum().item()) for batch in loader]

    assert batches(server.url, 2) == batches(folder, 0)


@pytest.mark.parametrize("failure", ["hangs up", "is overloaded"])
@pytest.mark.parametrize("name", KINDS)
def test_a_server_that_fails_later_gives_bad_documents(server, name, failure):
    source = open_source(name, server.url)
    server.failure = failure
    with pytest.raises(BadDocumentError, match="cannot be read") as caught:
        source.document(0)
    assert caught.value.reason is Reason.UNREADABLE
    server.failure = ""
    assert source.document(0).parts


@pytest.mark.parametrize("failure", ["hangs up", "is overloaded"])
def test_a_server_that_fails_from_the_start_is_told_with_its_source(server, failure):
    server.failure = failure
    with pytest.raises(ConfigurationError, match=r"data\.sources\.web_documents"):
        open_source("web_documents", server.url)


def test_nobody_listening_is_told_with_its_source(server):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and never listens
        with pytest.raises(ConfigurationError, match=r"data\.sources\.web_documents"):
            open_source("web_documents", f"http://127.0.0.1:{taken.getsockname()[1]}")


def test_a_server_that_gives_no_parts_of_large_files_is_told_as_such(folder, server):
    large = folder / "large" / "0.parquet"
    large.parent.mkdir()
    large.write_bytes(bytes(12 * 2**20))  # more than is fetched at once
    server.gives_ranges = False
    with pytest.raises(ConfigurationError, match="range requests"):
        ParquetSource("large", list_files("large", f"{server.url}/large", ".parquet"))
