"""A file of the Hub is read in ranges through redirects that expire, and the token goes to the Hub alone."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from streamway.errors import AccessDeniedError, HubError, SourceChangedError, StalledError, TransferError
from streamway.hub.reader import HubReader
from streamway.hub.repository import HubFile, Repository, read_repository
from streamway.storage import Patience
from streamway.storage.http import HttpClient

SIZE = 3_000_000
FAULTS = [
    {"kind": "status", "status": 429, "headers": {"RateLimit": '"resolvers";r=0;t=1'}},
    {"kind": "status", "status": 500},
    {"kind": "status", "status": 503},
    {"kind": "status", "status": 403},
    {"kind": "reset", "after_bytes": 500_000},
    {"kind": "stall", "after_bytes": 500_000},
    {"kind": "truncate", "after_bytes": 500_000},
    {"kind": "lose_answer"},
]
NAMES = [f"{fault['kind']}{fault.get('status', '')}" for fault in FAULTS]


@pytest.fixture
def weights(hub: Any) -> bytes:
    content = bytes(range(251)) * (SIZE // 251 + 1)
    hub.push("org/read", {"model.safetensors": content[:SIZE], "config.json": b'{"small": 1}'})
    return content[:SIZE]


def open_file(hurried: Patience, path: str = "model.safetensors", token: str | None = None) -> HubReader:
    repository = read_repository("org/read", "main", token=token, patience=hurried)
    file = next(file for file in repository.files if file.path == path)
    return HubReader(HttpClient(hurried), repository, file, token)


def test_any_range_is_read(hub: Any, weights: bytes, hurried: Patience) -> None:
    reader = open_file(hurried)
    assert reader.size_bytes == SIZE and "?" not in reader.uri and reader.uri.startswith(hub.url)
    for offset, length in ((0, 10), (SIZE - 1, 1), (1_000_001, 777), (0, SIZE), (5, 0)):
        assert reader.read(offset, length) == weights[offset : offset + length]
    with pytest.raises(TransferError):
        reader.read(SIZE - 1, 2)


def test_small_files_are_read_where_the_hub_redirects_to(hub: Any, weights: bytes, hurried: Patience) -> None:
    reader = open_file(hurried, "config.json")
    assert reader.read(0, reader.size_bytes) == b'{"small": 1}'


def test_the_hub_is_asked_once_for_a_file_however_often_it_is_read(hub: Any, weights: bytes, hurried: Patience) -> None:
    reader = open_file(Patience())
    hub.begin_anew()
    threads = [threading.Thread(target=reader.read, args=(n * 1000, 1000)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert hub.count("HEAD") == 1 and hub.count("GET") == 20


@pytest.mark.parametrize("fault", FAULTS, ids=NAMES)
def test_a_read_goes_on_where_it_broke(hub: Any, weights: bytes, hurried: Patience, fault: Any) -> None:
    reader = open_file(hurried)
    hub.arm(**fault, method="GET", path="/cdn/*")
    assert reader.read(0, SIZE) == weights
    assert not hub.armed()


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.get("status") != 403], ids=lambda f: f["kind"])
def test_the_hub_is_asked_again_for_an_address(hub: Any, weights: bytes, hurried: Patience, fault: Any) -> None:
    reader = open_file(hurried)
    hub.arm(**fault, method="HEAD", path="*/resolve/*")
    assert reader.read(0, 1000) == weights[:1000]
    assert not hub.armed()


def test_an_expired_address_is_asked_for_anew(hub: Any, weights: bytes, hurried: Patience) -> None:
    reader = open_file(hurried)
    reader.read(0, 10)
    hub.begin_anew()
    hub.expire_links()
    assert reader.read(0, 1000) == weights[:1000]
    assert hub.count("HEAD") >= 1


def test_a_range_that_is_ignored_is_asked_for_again(hub: Any, weights: bytes, hurried: Patience) -> None:
    reader = open_file(hurried)
    hub.ignore_ranges(2)
    assert reader.read(1000, 1000) == weights[1000:2000]


@pytest.mark.parametrize("kind", ["status", "reset", "stall"])
def test_faults_without_end_are_an_error_within_patience(
    hub: Any, weights: bytes, hurried: Patience, kind: str
) -> None:
    reader = open_file(hurried)
    hub.arm(kind, path="/cdn/*", times=1000)
    with pytest.raises(TransferError, match=f"tried {hurried.attempts} times") as caught:
        reader.read(0, 1000)
    assert isinstance(caught.value, StalledError) == (kind == "stall")
    assert reader.uri in caught.value.problem


def test_addresses_that_are_always_refused_are_given_up(hub: Any, weights: bytes, hurried: Patience) -> None:
    reader = open_file(hurried)
    hub.arm("status", status=403, path="/cdn/*", times=1000)
    with pytest.raises(TransferError, match="signed address was refused"):
        reader.read(0, 1000)


def test_a_token_that_is_revoked_under_way_is_said(hub: Any, weights: bytes, hurried: Patience) -> None:
    hub.settle("org/read", gated="manual")
    hub.tokens({"hf_good": ["org/*"]})
    reader = open_file(hurried, token="hf_good")
    assert reader.read(0, 10) == weights[:10]
    hub.tokens({})
    hub.expire_links()
    with pytest.raises(AccessDeniedError, match="the token was revoked") as caught:
        reader.read(10, 10)
    assert "hf_good" not in str(caught.value)
    hub.settle("org/read")


def test_a_file_that_the_hub_describes_otherwise_now_is_not_read(hub: Any, weights: bytes, hurried: Patience) -> None:
    repository = read_repository("org/read", "main", patience=hurried)
    for file in (
        HubFile(path="model.safetensors", size_bytes=SIZE, sha256="0" * 64, blob_id=""),
        HubFile(path="model.safetensors", size_bytes=SIZE + 1, sha256=_sha(repository), blob_id=""),
    ):
        with pytest.raises(SourceChangedError, match="the Hub now says"):
            HubReader(HttpClient(hurried), repository, file, None).read(0, 10)


def _sha(repository: Repository) -> str:
    return next(file.sha256 for file in repository.files if file.path == "model.safetensors")


class Script(BaseHTTPRequestHandler):
    """A Hub that answers as the test says, and remembers what it was told."""

    seen: list[tuple[str, str, str | None]]
    location: str
    etags: list[str]

    def do_HEAD(self) -> None:
        self.seen.append(("HEAD", self.path, self.headers.get("Authorization")))
        self.send_response(302)
        self.send_header("Location", self.location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.seen.append(("GET", self.path, self.headers.get("Authorization")))
        self.send_response(206)
        self.send_header("Content-Range", "bytes 0-3/4")
        self.send_header("ETag", self.etags.pop(0) if len(self.etags) > 1 else self.etags[0])
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"1234")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def scripted() -> Iterator[type[Script]]:
    """Two origins, of which the first redirects to the second."""
    handler = type("Scripted", (Script,), {"seen": [], "location": "", "etags": ['"a"']})
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    handler.origins = [f"http://127.0.0.1:{server.server_port}" for server in servers]
    yield handler
    for server in servers:
        server.shutdown()
        server.server_close()


def scripted_reader(scripted: Any, hurried: Patience) -> HubReader:
    repository = Repository(
        endpoint=scripted.origins[0],
        model_id="org/m",
        revision="main",
        commit_sha="c" * 40,
        licence="mit",
        gated=False,
        private=False,
        scan_done=True,
        scan_issues=(),
        files=(),
    )
    file = HubFile(path="model.safetensors", size_bytes=4, sha256="a" * 64, blob_id="")
    return HubReader(HttpClient(hurried), repository, file, "hf_secret")


def test_the_token_is_not_carried_to_another_origin(scripted: Any, hurried: Patience) -> None:
    scripted.location = f"{scripted.origins[1]}/signed?Signature=abc"
    assert scripted_reader(scripted, hurried).read(0, 4) == b"1234"
    assert [(method, token) for method, _, token in scripted.seen] == [("HEAD", "Bearer hf_secret"), ("GET", None)]


def test_an_answer_with_another_entity_tag_is_another_file(scripted: Any, hurried: Patience) -> None:
    scripted.location = f"{scripted.origins[1]}/signed"
    scripted.etags[:] = ['"a"', '"b"']
    reader = scripted_reader(scripted, hurried)
    assert reader.read(0, 4) == b"1234"
    with pytest.raises(SourceChangedError, match='entity tag was "a", now it is "b"'):
        reader.read(0, 4)


def test_redirects_without_end_are_given_up(scripted: Any, hurried: Patience) -> None:
    scripted.location = "/again"
    with pytest.raises(HubError, match="more than 5 redirects"):
        scripted_reader(scripted, hurried).read(0, 4)


@pytest.mark.parametrize("location", ["", "ftp://host/x", "file:///etc/passwd"])
def test_redirects_to_what_is_no_web_address_are_refused(scripted: Any, hurried: Patience, location: str) -> None:
    scripted.location = location
    with pytest.raises(HubError, match="not a secure address"):
        scripted_reader(scripted, hurried).read(0, 4)
    assert all(method == "HEAD" for method, _, _ in scripted.seen)


def test_a_redirect_from_https_to_http_is_refused(scripted: Any, hurried: Patience) -> None:
    reader = scripted_reader(scripted, hurried)
    with pytest.raises(HubError, match="not a secure address"):
        reader._next_address("https://hub/file", "http://elsewhere/file")
    assert reader._next_address("https://hub/file", "//cdn/file") == "https://cdn/file"
