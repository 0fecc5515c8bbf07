"""The sandbox's Cloud Storage, asked by Google's own client, by obstore and by plain requests."""

import base64
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import obstore
import pytest
import requests
from google.api_core import exceptions as refusals
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from google.cloud.storage import transfer_manager
from google.cloud.storage.exceptions import InvalidResponse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from obstore.store import GCSStore

from streamway.sandbox.bucket import parse_buckets
from streamway.sandbox.bucket_checksums import crc32c_of_row

MIB = 1024**2
BUCKET = "models"
BYTES = bytes(range(256)) * 4096 + b"the end"


class Part:
    """The part as a process, with clients."""

    def __init__(self, state_path: Path) -> None:
        self.state_path = state_path
        self.process = self._start()
        self.url: str = self.announced["url"]

    @property
    def announced(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.state_path / "bucket.json").read_text())
        return found

    @property
    def log(self) -> str:
        return (self.state_path / "log").read_text()

    def _start(self) -> subprocess.Popen[bytes]:
        (self.state_path / "bucket.json").unlink(missing_ok=True)
        buckets = f"{BUCKET}=US-CENTRAL1,europe=EU,pair=US-CENTRAL1+US-EAST1"
        command = [sys.executable, "-m", "streamway.sandbox.bucket", "--state", str(self.state_path)]
        with (self.state_path / "log").open("ab") as log:
            process = subprocess.Popen([*command, "--buckets", buckets], stderr=log)
        deadline = time.monotonic() + 30
        while not (self.state_path / "bucket.json").exists():
            assert process.poll() is None and time.monotonic() < deadline, self.log
            time.sleep(0.02)
        return process

    def kill_and_start_again(self) -> None:
        self.process.kill()
        self.process.wait(timeout=10)
        self.process = self._start()
        self.url = self.announced["url"]

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(timeout=10)

    @property
    def client(self) -> storage.Client:
        return storage.Client(
            project="sandbox", credentials=AnonymousCredentials(), client_options={"api_endpoint": self.url}
        )

    @property
    def bucket(self) -> storage.Bucket:
        return self.client.bucket(BUCKET)

    def xml(self, name: str) -> str:
        return f"{self.url}/{BUCKET}/{name}"

    def arm(self, **fault: Any) -> None:
        requests.post(f"{self.url}/sandbox/faults", json=fault, timeout=10).raise_for_status()

    def counted(self) -> list[dict[str, Any]]:
        counters = requests.get(f"{self.url}/sandbox/counters", timeout=10).json()
        found: list[dict[str, Any]] = counters["requests"]
        return found

    def forget(self) -> None:
        requests.delete(f"{self.url}/sandbox/faults", timeout=10)
        requests.delete(f"{self.url}/sandbox/counters", timeout=10)

    def start_parts(self, name: str, **headers: str) -> str:
        answer = requests.post(self.xml(f"{name}?uploads"), headers=headers, timeout=10)
        found = re.search("<UploadId>(.+)</UploadId>", answer.text)
        assert found is not None, answer.text
        return found[1]

    def put_part(self, name: str, upload_id: str, number: int, data: bytes) -> str:
        url = self.xml(f"{name}?partNumber={number}&uploadId={upload_id}")
        answer = requests.put(url, data=data, timeout=30)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-goog-hash"] == f"crc32c={crc32c(data)}"
        return answer.headers["ETag"]

    def complete(self, name: str, upload_id: str, etags: list[tuple[int, str]], **headers: str) -> requests.Response:
        parts = "".join(f"<Part><PartNumber>{n}</PartNumber><ETag>{e}</ETag></Part>" for n, e in etags)
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>"
        return requests.post(self.xml(f"{name}?uploadId={upload_id}"), data=body, headers=headers, timeout=30)


def crc32c(data: bytes) -> str:
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Part]:
    part = Part(tmp_path_factory.mktemp("bucket"))
    yield part
    assert part.stop() == 0
    assert "Traceback" not in part.log


@pytest.fixture
def part(running: Part) -> Part:
    running.forget()
    return running


@pytest.fixture
def own_part(tmp_path: Path) -> Iterator[Part]:
    part = Part(tmp_path)
    yield part
    part.stop()


def test_tells_clients_how_to_find_it(part: Part) -> None:
    assert part.announced["pid"] == part.process.pid
    assert part.announced["environment"] == {
        "STORAGE_EMULATOR_HOST": part.url,
        "CLOUD_STORAGE_EMULATOR_ENDPOINT": part.url,
        "GOOGLE_CLOUD_PROJECT": "streamway-sandbox",
        "RUNAI_STREAMER_GCS_USE_ANONYMOUS_CREDENTIALS": "true",
    }


def test_binary_dies_with_the_part(own_part: Part) -> None:
    children = Path(f"/proc/{own_part.process.pid}/task/{own_part.process.pid}/children").read_text().split()
    assert len(children) == 1
    own_part.process.send_signal(signal.SIGKILL)
    own_part.process.wait(timeout=10)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{children[0]}/exe").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{children[0]}/exe").exists()


# Buckets


def test_buckets_have_locations_of_their_own(part: Part) -> None:
    found = {bucket.name: bucket for bucket in part.client.list_buckets()}
    assert (found["europe"].location, found["europe"].location_type) == ("EU", "multi-region")
    assert (found[BUCKET].location, found[BUCKET].location_type) == ("US-CENTRAL1", "region")
    pair = part.client.get_bucket("pair")
    assert (pair.location, pair.location_type) == ("US", "dual-region")
    assert pair.data_locations == ["US-CENTRAL1", "US-EAST1"]
    assert requests.get(f"{part.url}/storage/v1/b/pair/storageLayout", timeout=10).json()["location"] == "US"


def test_buckets_are_created_once_and_deleted_when_empty(part: Part) -> None:
    created = part.client.create_bucket("of-our-own", location="nam4")
    assert (created.location, created.location_type) == ("NAM4", "dual-region")
    with pytest.raises(refusals.Conflict):
        part.client.create_bucket("of-our-own")
    created.blob("a/b").upload_from_string(b"x")
    with pytest.raises(refusals.Conflict):
        created.delete()
    created.blob("a/b").delete()
    created.delete()
    with pytest.raises(refusals.NotFound):
        part.client.get_bucket("of-our-own")


@pytest.mark.parametrize(
    "act",
    [
        lambda bucket: bucket.reload(),
        lambda bucket: bucket.blob("x").upload_from_string(b"x"),
        lambda bucket: list(bucket.list_blobs()),
        lambda bucket: bucket.blob("x").download_as_bytes(),
        lambda bucket: bucket.blob("x").reload(),
        lambda bucket: bucket.blob("x").delete(),
    ],
)
def test_missing_bucket_is_not_found(part: Part, act: Callable[[storage.Bucket], Any]) -> None:
    with pytest.raises(refusals.NotFound, match="bucket does not exist"):
        act(part.client.bucket("no-such-bucket"))


def test_permissions_are_granted_until_a_fault_takes_them_away(part: Part) -> None:
    asked = ["storage.objects.get", "storage.objects.create"]
    assert part.bucket.test_iam_permissions(asked) == asked
    part.arm(kind="status", status=200, path="*/testPermissions", body='{"permissions": []}')
    assert part.bucket.test_iam_permissions(asked) == []


def test_list_of_buckets_needs_locations() -> None:
    assert parse_buckets("a-b=eu")["a-b"].location == "EU"
    with pytest.raises(ValueError, match="names no location"):
        parse_buckets("a-b")


# Uploads


def test_uploads_of_googles_client_come_back(part: Part, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(BYTES * 9)
    small, large = part.bucket.blob("up/small é.bin"), part.bucket.blob("up/large.bin")
    small.metadata = {"sha256": "0" * 64}
    small.upload_from_string(BYTES, content_type="text/x-own", checksum="md5", if_generation_match=0)
    large.upload_from_filename(str(source), checksum="crc32c")
    found = part.bucket.get_blob("up/small é.bin")
    assert (found.size, found.crc32c, found.content_type) == (len(BYTES), crc32c(BYTES), "text/x-own")
    assert found.md5_hash == base64.b64encode(hashlib.md5(BYTES).digest()).decode()
    assert found.metadata == {"sha256": "0" * 64} and found.metageneration == 1
    assert large.download_as_bytes(checksum="crc32c") == BYTES * 9


def put_media(part: Part, name: str, data: bytes, query: str, headers: dict[str, str]) -> requests.Response:
    url = f"{part.url}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={name}&{query}"
    return requests.post(url, data=data, headers=headers, timeout=10)


def put_multipart(part: Part, name: str, data: bytes, query: str, headers: dict[str, str]) -> requests.Response:
    resource = json.dumps({"name": name, "contentType": "a/b"}).encode()
    body = b"--=x=\r\ncontent-type: application/json\r\n\r\n" + resource
    body += b"\r\n--=x=\r\ncontent-type: a/b\r\n\r\n" + data + b"\r\n--=x=--\r\n"
    headers = {"Content-Type": 'multipart/related; boundary="=x="', **headers}
    url = f"{part.url}/upload/storage/v1/b/{BUCKET}/o?uploadType=multipart&{query}"
    return requests.post(url, data=body, headers=headers, timeout=10)


def put_resumable(part: Part, name: str, data: bytes, query: str, headers: dict[str, str]) -> requests.Response:
    url = f"{part.url}/upload/storage/v1/b/{BUCKET}/o?uploadType=resumable&name={name}&{query}"
    started = requests.post(url, headers=headers, timeout=10)
    if started.status_code != 200:
        return started
    return requests.put(started.headers["Location"], data=data, timeout=10)


def put_xml(part: Part, name: str, data: bytes, query: str, headers: dict[str, str]) -> requests.Response:
    if query:
        headers = {"x-goog-if-generation-match": query.partition("=")[2], **headers}
    return requests.put(part.xml(name), data=data, headers=headers, timeout=10)


PUTS = [put_media, put_multipart, put_resumable, put_xml]


@pytest.mark.parametrize("put", PUTS)
def test_every_kind_of_upload_honours_generations(part: Part, put: Callable[..., requests.Response]) -> None:
    name = f"conditions/{put.__name__}"
    assert put(part, name, b"first", "ifGenerationMatch=0", {}).status_code == 200
    assert put(part, name, b"second", "ifGenerationMatch=0", {}).status_code == 412
    assert part.bucket.blob(name).download_as_bytes() == b"first"
    generation = part.bucket.get_blob(name).generation
    assert put(part, name, b"third", f"ifGenerationMatch={generation}", {}).status_code == 200
    assert part.bucket.get_blob(name).generation > generation


@pytest.mark.parametrize("put", PUTS)
@pytest.mark.parametrize("digest", ["crc32c=AAAAAA==", "md5=1B2M2Y8AsgTpgAmY7PhCfg==", "crc32c=zz"])
def test_bytes_that_are_not_as_promised_are_refused(
    part: Part, put: Callable[..., requests.Response], digest: str
) -> None:
    name = f"promised/{put.__name__}"
    assert put(part, name, b"bytes", "", {"x-goog-hash": digest}).status_code == 400
    assert part.bucket.get_blob(name) is None
    right = {"x-goog-hash": f"crc32c={crc32c(b'bytes')}"}
    assert put(part, f"{name}/right", b"bytes", "", right).status_code == 200


@given(data=st.binary(max_size=3000), boundary=st.from_regex(r"\A[a-zA-Z0-9'()+_,./:=?-]{1,40}\Z"))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bytes_of_a_multipart_body_are_taken_as_they_are(part: Part, data: bytes, boundary: str) -> None:
    data += b"\r\n--" + boundary.encode()[:-1]
    mark = boundary.encode()
    body = b"--" + mark + b'\r\n\r\n{"name": "related"}\r\n--' + mark + b"\r\n\r\n" + data
    body += b"\r\n--" + mark + b"--"
    headers = {"Content-Type": f'multipart/related; boundary="{boundary}"'}
    url = f"{part.url}/upload/storage/v1/b/{BUCKET}/o?uploadType=multipart"
    assert requests.post(url, data=body, headers=headers, timeout=10).status_code == 200
    assert part.bucket.blob("related").download_as_bytes() == data


def test_resumable_upload_goes_on_where_it_was_cut(own_part: Part) -> None:
    data = BYTES * 2
    url = f"{own_part.url}/upload/storage/v1/b/{BUCKET}/o?uploadType=resumable&name=cut"
    location = requests.post(url, timeout=10).headers["Location"]
    own_part.arm(kind="reset", method="PUT", path="*/upload/*", after_bytes=600_000)
    with pytest.raises(requests.ConnectionError):
        requests.put(location, data=data, timeout=10)
    own_part.kill_and_start_again()
    location = own_part.url + location[location.index("/upload/") :]
    asked = requests.put(location, headers={"Content-Range": f"bytes */{len(data)}"}, timeout=10)
    assert (asked.status_code, asked.headers["Range"]) == (308, "bytes=0-524287")
    rest = {"Content-Range": f"bytes 262144-{len(data) - 1}/{len(data)}"}
    answer = requests.put(location, data=data[262144:], headers=rest, timeout=10)
    assert answer.json()["md5Hash"] == base64.b64encode(hashlib.md5(data).digest()).decode()
    assert own_part.bucket.blob("cut").download_as_bytes(checksum="md5") == data
    again = requests.put(location, headers={"Content-Range": f"bytes */{len(data)}"}, timeout=10)
    assert again.json()["generation"] == answer.json()["generation"]


def test_failed_upload_leaves_nothing_behind(own_part: Part) -> None:
    own_part.arm(kind="reset", method="PUT", path="*", after_bytes=100_000)
    with pytest.raises(requests.ConnectionError):
        requests.put(own_part.xml("cut"), data=BYTES, timeout=10)
    assert own_part.bucket.get_blob("cut") is None
    assert list((own_part.state_path / "bucket" / "drafts").iterdir()) == []


@pytest.mark.parametrize("name", ["a//b", "a/../b", "../escape", "e/", ".", "x" * 300])
def test_names_that_are_no_files_are_refused_in_words(part: Part, name: str) -> None:
    with pytest.raises(refusals.BadRequest, match="objects as files"):
        part.bucket.blob(name).upload_from_string(b"x")


def test_object_cannot_be_a_folder_of_another(part: Part) -> None:
    part.bucket.blob("clash/a").upload_from_string(b"x")
    for name in ("clash", "clash/a/b"):
        with pytest.raises(refusals.BadRequest, match="folder of another"):
            part.bucket.blob(name).upload_from_string(b"x")
    part.bucket.blob("clash/a").delete()
    part.bucket.blob("clash").upload_from_string(b"now it can")


# Multipart uploads


def test_googles_client_uploads_parts_concurrently(part: Part, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(12 * MIB))
    blob = part.bucket.blob("parts/google.bin")
    transfer_manager.upload_chunks_concurrently(
        str(source), blob, chunk_size=5 * MIB, worker_type=transfer_manager.THREAD, max_workers=2
    )
    blob.reload()
    assert (blob.size, blob.crc32c) == (12 * MIB, crc32c(source.read_bytes()))
    assert blob.md5_hash is None and blob.component_count == 3
    target = tmp_path / "target"
    transfer_manager.download_chunks_concurrently(
        blob, str(target), chunk_size=5 * MIB, worker_type=transfer_manager.THREAD, max_workers=2
    )
    assert target.read_bytes() == source.read_bytes()


def test_parts_of_any_order_and_size_make_one_object(part: Part) -> None:
    upload_id = part.start_parts("parts/odd", **{"Content-Type": "a/b", "x-goog-meta-Key": "value"})
    pieces = {3: os.urandom(6 * MIB), 1: os.urandom(5 * MIB), 7: b"tail", 2: os.urandom(5 * MIB + 1)}
    etags = [(number, part.put_part("parts/odd", upload_id, number, pieces[number])) for number in pieces]
    answer = part.complete("parts/odd", upload_id, sorted(etags))
    whole = b"".join(pieces[number] for number in sorted(pieces))
    assert answer.headers["x-goog-hash"] == f"crc32c={crc32c(whole)}"
    found = part.bucket.get_blob("parts/odd")
    assert (found.crc32c, found.content_type, found.metadata) == (crc32c(whole), "a/b", {"key": "value"})
    assert found.download_as_bytes(checksum="crc32c") == whole


def test_parts_that_are_not_named_are_left_out(part: Part) -> None:
    upload_id = part.start_parts("parts/fewer")
    pieces = [bytes([number]) * 5 * MIB for number in range(4)]
    etags = [(number + 1, part.put_part("parts/fewer", upload_id, number + 1, pieces[number])) for number in range(4)]
    assert part.complete("parts/fewer", upload_id, etags[:2]).status_code == 200
    assert part.bucket.blob("parts/fewer").download_as_bytes(checksum="crc32c") == pieces[0] + pieces[1]
    blobs = (part.state_path / "bucket" / "blobs").iterdir()
    assert not any(path.stat().st_size == 20 * MIB for path in blobs)


def test_part_that_comes_again_replaces_the_first(part: Part) -> None:
    upload_id = part.start_parts("parts/again")
    part.put_part("parts/again", upload_id, 1, b"a" * 5 * MIB)
    old = part.put_part("parts/again", upload_id, 2, b"wrong")
    new = part.put_part("parts/again", upload_id, 2, b"right")
    first = part.put_part("parts/again", upload_id, 1, b"b" * 5 * MIB)
    refused = part.complete("parts/again", upload_id, [(1, first), (2, old)])
    assert refused.status_code == 400 and "InvalidPart" in refused.text
    assert part.complete("parts/again", upload_id, [(1, first), (2, new)]).status_code == 200
    assert part.bucket.blob("parts/again").download_as_bytes() == b"b" * 5 * MIB + b"right"


def test_part_that_fails_to_come_again_leaves_the_first(part: Part) -> None:
    upload_id = part.start_parts("parts/kept")
    etag = part.put_part("parts/kept", upload_id, 1, b"good")
    url = part.xml(f"parts/kept?partNumber=1&uploadId={upload_id}")
    wrong = requests.put(url, data=b"evil", headers={"x-goog-hash": "crc32c=AAAAAA=="}, timeout=10)
    assert wrong.status_code == 400 and "CrcMismatch" in wrong.text
    assert part.complete("parts/kept", upload_id, [(1, etag)]).status_code == 200
    assert part.bucket.blob("parts/kept").download_as_bytes() == b"good"


def test_a_long_body_ends_its_connection_and_a_short_one_keeps_it(part: Part) -> None:
    upload_id = part.start_parts("bodies")
    with requests.Session() as session:
        ends = []
        for number, data in ((1, os.urandom(8 * MIB)), (2, b"short")):
            url = part.xml(f"bodies?partNumber={number}&uploadId={upload_id}")
            answer = session.put(url, data=data, timeout=30)
            assert answer.headers["x-goog-hash"] == f"crc32c={crc32c(data)}"
            ends.append(answer.headers.get("Connection", ""))
    assert ends == ["close", ""]
    assert {seen["bytes_in"] for seen in part.counted() if seen["method"] == "PUT"} == {8 * MIB + 5}


def test_a_client_that_dies_within_a_long_body_leaves_no_part(part: Part) -> None:
    upload_id = part.start_parts("dies")
    host, port = part.url.removeprefix("http://").split(":")
    path = f"/{BUCKET}/dies?partNumber=1&uploadId={upload_id}"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {8 * MIB}\r\n\r\n".encode())
        connection.sendall(b"x" * 3 * MIB)
    deadline = time.monotonic() + 10
    while not any(seen["method"] == "PUT" for seen in part.counted()) and time.monotonic() < deadline:
        time.sleep(0.02)
    (seen,) = (seen for seen in part.counted() if seen["method"] == "PUT")
    assert seen["bytes_in"] == 3 * MIB and "200" not in seen["statuses"]
    assert "<Part>" not in requests.get(part.xml(f"dies?uploadId={upload_id}"), timeout=10).text
    data = os.urandom(8 * MIB)
    etag = part.put_part("dies", upload_id, 1, data)
    assert part.complete("dies", upload_id, [(1, etag)]).status_code == 200
    assert part.bucket.blob("dies").download_as_bytes() == data


def test_parts_are_held_to_the_limits(part: Part) -> None:
    upload_id = part.start_parts("parts/limits")
    small = [(number, part.put_part("parts/limits", upload_id, number, b"small")) for number in (1, 2)]
    assert "EntityTooSmall" in part.complete("parts/limits", upload_id, small).text
    assert "InvalidPartOrder" in part.complete("parts/limits", upload_id, small[::-1]).text
    assert "MalformedXML" in part.complete("parts/limits", upload_id, []).text
    for number in ("0", "10001", "x"):
        url = part.xml(f"parts/limits?partNumber={number}&uploadId={upload_id}")
        assert "InvalidArgument" in requests.put(url, data=b"x", timeout=10).text
    assert "NoSuchUpload" in part.complete("parts/limits", "0" * 32, small).text
    assert part.bucket.get_blob("parts/limits") is None


def test_completion_honours_generations_and_keeps_the_upload(part: Part) -> None:
    part.bucket.blob("parts/there").upload_from_string(b"there")
    upload_id = part.start_parts("parts/there")
    etags = [(1, part.put_part("parts/there", upload_id, 1, b"new"))]
    refused = part.complete("parts/there", upload_id, etags, **{"x-goog-if-generation-match": "0"})
    assert refused.status_code == 412 and "PreconditionFailed" in refused.text
    assert part.bucket.blob("parts/there").download_as_bytes() == b"there"
    assert part.complete("parts/there", upload_id, etags).status_code == 200
    assert "NoSuchUpload" in part.complete("parts/there", upload_id, etags).text


def test_parts_and_uploads_are_listed_in_pages(part: Part) -> None:
    ids = sorted(part.start_parts("listed/same") for _ in range(3))
    for number in (1, 2, 5):
        part.put_part("listed/same", ids[0], number, b"x" * number)
    page = requests.get(part.xml(f"listed/same?uploadId={ids[0]}&max-parts=2"), timeout=10).text
    assert re.findall(r"<PartNumber>(\d+)</PartNumber>", page) == ["1", "2"]
    assert "<IsTruncated>true</IsTruncated>" in page and "<NextPartNumberMarker>2<" in page
    rest = requests.get(part.xml(f"listed/same?uploadId={ids[0]}&part-number-marker=2"), timeout=10).text
    assert re.findall(r"<Size>(\d+)</Size>", rest) == ["5"]
    url = f"{part.url}/{BUCKET}?uploads&prefix=listed/&max-uploads=2"
    assert re.findall("<UploadId>(.+?)</UploadId>", requests.get(url, timeout=10).text) == ids[:2]
    more = f"{url}&key-marker=listed/same&upload-id-marker={ids[1]}"
    assert re.findall("<UploadId>(.+?)</UploadId>", requests.get(more, timeout=10).text) == ids[2:]
    for upload_id in ids:
        url = part.xml(f"listed/same?uploadId={upload_id}")
        assert requests.delete(url, timeout=10).status_code == 204
        assert requests.get(url, timeout=10).status_code == 404


def test_parts_outlive_a_kill(own_part: Part) -> None:
    upload_id = own_part.start_parts("killed")
    first = os.urandom(5 * MIB)
    etag = own_part.put_part("killed", upload_id, 1, first)
    own_part.arm(kind="reset", method="PUT", path="*", after_bytes=3 * MIB)
    with pytest.raises(requests.ConnectionError):
        own_part.put_part("killed", upload_id, 2, os.urandom(5 * MIB))
    own_part.kill_and_start_again()
    listed = requests.get(own_part.xml(f"killed?uploadId={upload_id}"), timeout=10).text
    assert re.findall(r"<PartNumber>(\d+)</PartNumber>", listed) == ["1"]
    tail = own_part.put_part("killed", upload_id, 2, b"tail")
    assert own_part.complete("killed", upload_id, [(1, etag), (2, tail)]).status_code == 200
    assert own_part.bucket.blob("killed").download_as_bytes(checksum="crc32c") == first + b"tail"


def test_upload_by_parts_leaves_only_the_object(own_part: Part) -> None:
    upload_id = own_part.start_parts("only")
    pieces = [os.urandom(5 * MIB), os.urandom(5 * MIB), b"tail"]
    with ThreadPoolExecutor(3) as pool:
        etags = list(pool.map(lambda n: (n + 1, own_part.put_part("only", upload_id, n + 1, pieces[n])), range(3)))
    assert own_part.complete("only", upload_id, etags).status_code == 200
    files = [path for path in (own_part.state_path / "bucket").rglob("*") if path.is_file()]
    held = sum(path.stat().st_blocks * 512 for path in files)
    assert 10 * MIB <= held < 11 * MIB
    assert own_part.bucket.blob("only").download_as_bytes() == b"".join(pieces)


def test_memory_stays_flat_whatever_the_size(own_part: Part) -> None:
    piece = os.urandom(32 * MIB)
    upload_id = own_part.start_parts("flat")
    with ThreadPoolExecutor(2) as pool:
        etags = list(pool.map(lambda n: (n, own_part.put_part("flat", upload_id, n, piece)), range(1, 9)))
    assert own_part.complete("flat", upload_id, etags).status_code == 200
    requests.put(own_part.xml("flat2"), data=piece * 4, timeout=30).raise_for_status()
    own_part.bucket.blob("copy").rewrite(own_part.bucket.blob("flat"))
    with requests.get(own_part.xml("flat"), stream=True, timeout=30) as answer:
        assert sum(len(chunk) for chunk in answer.iter_content(MIB)) == 8 * 32 * MIB
    child = Path(f"/proc/{own_part.process.pid}/task/{own_part.process.pid}/children").read_text().strip()
    for pid in (own_part.process.pid, child):
        status = Path(f"/proc/{pid}/status").read_text()
        peak = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert peak is not None and int(peak[1]) < 120 * 1024, f"{pid}: {status}"


# Reads


@pytest.fixture(scope="module")
def stored(running: Part) -> storage.Blob:
    blob = running.bucket.blob("reads/a b.bin")
    blob.metadata = {"k": "v"}
    blob.upload_from_string(BYTES, content_type="a/b")
    return blob


def addresses(part: Part) -> list[str]:
    json_path = f"/storage/v1/b/{BUCKET}/o/reads%2Fa%20b.bin?alt=media"
    return [part.url + json_path, f"{part.url}/download{json_path}", part.xml("reads/a%20b.bin")]


def test_reads_say_what_they_are_part_of(part: Part, stored: storage.Blob) -> None:
    for url in addresses(part):
        answer = requests.get(url, headers={"Range": "bytes=10-19"}, timeout=10)
        assert answer.status_code == 206 and answer.content == BYTES[10:20]
        assert answer.headers["Content-Range"] == f"bytes 10-19/{len(BYTES)}"
        assert f"crc32c={crc32c(BYTES)}" in answer.headers["x-goog-hash"]
        assert answer.headers["x-goog-generation"] == str(stored.generation)
        assert answer.headers["x-goog-stored-content-length"] == str(len(BYTES))
        assert answer.headers["x-goog-meta-k"] == "v" and answer.headers["Content-Type"] == "a/b"
        head = requests.head(url, timeout=10)
        assert head.headers["Content-Length"] == str(len(BYTES)) and head.content == b""


@given(
    first=st.one_of(st.none(), st.integers(0, len(BYTES) + 10)),
    last=st.one_of(st.none(), st.integers(0, len(BYTES) + 10)),
)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ranges_are_slices(part: Part, stored: storage.Blob, first: int | None, last: int | None) -> None:
    header = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    answer = requests.get(addresses(part)[1], headers={"Range": header}, timeout=10)
    if first is None and last is None:
        assert answer.status_code == 200
        return
    if first is not None and last is not None and last < first:
        assert (answer.status_code, answer.content) == (200, BYTES)
        return
    wanted = BYTES[-last:] if first is None and last else BYTES[first : None if last is None else last + 1]
    if first is None and last == 0:
        wanted = b""
    assert (answer.status_code, answer.content if wanted else b"") == (206 if wanted else 416, wanted)


def test_reads_honour_conditions(part: Part, stored: storage.Blob) -> None:
    generation = stored.generation
    assert stored.download_as_bytes(if_generation_match=generation, end=3) == BYTES[:4]
    with pytest.raises(refusals.PreconditionFailed):
        stored.download_as_bytes(if_generation_match=generation + 1)
    with pytest.raises(refusals.NotFound):
        part.bucket.blob(stored.name, generation=generation + 1).download_as_bytes()
    unchanged = f"{addresses(part)[1]}&ifGenerationNotMatch={generation}"
    assert requests.get(unchanged, timeout=10).status_code == 304
    etag = requests.head(addresses(part)[2], timeout=10).headers["ETag"]
    fresh = requests.get(addresses(part)[2], headers={"If-None-Match": etag}, timeout=10)
    assert (fresh.status_code, fresh.content) == (304, b"")
    other = requests.get(addresses(part)[2], headers={"If-Match": '"other"'}, timeout=10)
    assert other.status_code == 412


def test_reader_keeps_its_version_while_it_is_replaced(part: Part) -> None:
    blob = part.bucket.blob("reads/replaced")
    blob.upload_from_string(b"a" * 32 * MIB)
    with requests.get(part.xml("reads/replaced"), stream=True, timeout=30) as answer:
        chunks = answer.iter_content(MIB)
        first = next(chunks)
        blob.upload_from_string(b"b" * MIB)
        assert set(first + b"".join(chunks)) == {ord("a")}
    assert blob.download_as_bytes() == b"b" * MIB


# Describing, copying, composing, deleting, listing


def test_copy_keeps_checksum_and_description_and_survives_its_source(part: Part) -> None:
    source = part.bucket.blob("copies/source")
    source.metadata = {"k": "v"}
    source.upload_from_string(BYTES, content_type="a/b")
    target = part.bucket.blob("copies/target")
    assert target.rewrite(source, if_generation_match=0) == (None, len(BYTES), len(BYTES))
    source.delete()
    assert (target.crc32c, target.content_type, target.metadata) == (crc32c(BYTES), "a/b", {"k": "v"})
    assert target.download_as_bytes(checksum="crc32c") == BYTES


def test_copy_describes_itself_where_it_says_so(part: Part) -> None:
    source = part.bucket.blob("copies/plain")
    source.metadata = {"k": "v"}
    source.upload_from_string(b"x", content_type="a/b")
    target = part.client.bucket("europe").blob("copies/other")
    target.metadata = {"own": "1"}
    target.rewrite(source)
    target.reload()
    assert (target.metadata, target.content_type) == ({"own": "1"}, "a/b")


def test_copy_honours_conditions_of_both_sides(part: Part) -> None:
    source, target = part.bucket.blob("copies/one"), part.bucket.blob("copies/two")
    source.upload_from_string(b"one")
    target.upload_from_string(b"two")
    for conditions in (
        {"if_generation_match": 0},
        {"if_source_generation_match": source.generation + 1},
        {"if_generation_match": target.generation + 1},
    ):
        with pytest.raises(refusals.PreconditionFailed):
            part.bucket.blob("copies/two").rewrite(part.bucket.blob("copies/one"), **conditions)
    with pytest.raises(refusals.NotFound):
        target.rewrite(part.bucket.blob("copies/absent"))
    with pytest.raises(refusals.NotFound):
        part.client.bucket("no-such-bucket").blob("x").rewrite(source)
    assert target.download_as_bytes() == b"two"


def test_patch_changes_the_metageneration_only(part: Part) -> None:
    blob = part.bucket.blob("patched")
    blob.metadata = {"a": "1", "b": "2"}
    blob.upload_from_string(BYTES)
    generation = blob.generation
    blob.metadata = {"a": None, "c": "3"}
    blob.patch(if_metageneration_match=1)
    found = part.bucket.get_blob("patched")
    assert (found.metadata, found.generation, found.metageneration) == (
        {"b": "2", "c": "3"},
        generation,
        2,
    )
    with pytest.raises(refusals.PreconditionFailed):
        found.patch(if_metageneration_match=1)
    assert found.download_as_bytes() == BYTES


def test_composition_is_its_components(part: Part) -> None:
    for name, data in (("one", BYTES), ("two", b""), ("three", b"end")):
        part.bucket.blob(f"composed/{name}").upload_from_string(data)
    target = part.bucket.blob("composed/all")
    target.content_type = "a/b"
    target.compose([part.bucket.blob(f"composed/{name}") for name in ("one", "two", "three")])
    target.reload()
    assert (target.crc32c, target.component_count) == (crc32c(BYTES + b"end"), 3)
    assert target.md5_hash is None and target.download_as_bytes() == BYTES + b"end"
    with pytest.raises(refusals.PreconditionFailed):
        target.compose([part.bucket.blob("composed/one")], if_generation_match=0)
    with pytest.raises(refusals.NotFound):
        target.compose([part.bucket.blob("composed/absent")])


def test_deletion_honours_conditions(part: Part) -> None:
    blob = part.bucket.blob("deleted/deep/down")
    blob.upload_from_string(b"x")
    with pytest.raises(refusals.PreconditionFailed):
        blob.delete(if_generation_match=blob.generation + 1)
    blob.delete(if_generation_match=blob.generation)
    with pytest.raises(refusals.NotFound):
        part.bucket.blob("deleted/deep/down").delete()


def test_batch_answers_each_call(part: Part) -> None:
    client = part.client
    blobs = [client.bucket(BUCKET).blob(f"batch/{number}") for number in range(3)]
    for blob in blobs:
        blob.upload_from_string(b"x")
    with client.batch():
        blobs[0].delete()
        blobs[1].metadata = {"k": "v"}
        blobs[1].patch()
    assert [blob.name for blob in part.client.list_blobs(BUCKET, prefix="batch/")] == ["batch/1", "batch/2"]
    assert part.bucket.get_blob("batch/1").metadata == {"k": "v"}
    with pytest.raises(refusals.NotFound), client.batch():
        blobs[0].delete()
        blobs[2].delete()
    assert part.bucket.get_blob("batch/2") is None


def test_what_the_sandbox_does_not_have_is_refused_where_it_would_write(part: Part) -> None:
    part.bucket.blob("acl").upload_from_string(b"x")
    acl = f"{part.url}/storage/v1/b/{BUCKET}/o/acl/acl"
    assert requests.post(acl, json={"entity": "allUsers", "role": "READER"}, timeout=10).status_code == 501
    assert requests.post(f"{part.url}/{BUCKET}", files={"file": b"x"}, timeout=10).status_code == 501
    assert part.bucket.blob("acl").download_as_bytes() == b"x"


def test_listing_has_prefixes_delimiters_pages_and_fields(part: Part) -> None:
    for index in range(7):
        part.bucket.blob(f"list/{index % 3}/{index}").upload_from_string(b"x" * index)
    pages = part.client.list_blobs(BUCKET, prefix="list/", page_size=3).pages
    names = [[blob.name for blob in page] for page in pages]
    every = [f"list/{index % 3}/{index}" for index in range(7)]
    assert [len(page) for page in names] == [3, 3, 1] and [*names[0], *names[1], *names[2]] == sorted(every)
    folders = part.client.list_blobs(BUCKET, prefix="list/", delimiter="/")
    assert list(folders) == [] and sorted(folders.prefixes) == ["list/0/", "list/1/", "list/2/"]
    url = f"{part.url}/storage/v1/b/{BUCKET}/o?prefix=list/2/&fields=items(name,size),nextPageToken"
    assert requests.get(url, timeout=10).json() == {
        "items": [{"name": "list/2/2", "size": "2"}, {"name": "list/2/5", "size": "5"}]
    }
    blob = next(iter(part.client.list_blobs(BUCKET, prefix="list/2/5")))
    assert (blob.crc32c, blob.metageneration) == (crc32c(b"x" * 5), 1)


def test_obstore_reads_writes_and_copies(part: Part) -> None:
    store = GCSStore(
        BUCKET,
        config={"base_url": part.url},
        client_options={"allow_http": True},
        credential_provider=lambda: {"token": "any", "expires_at": None},
    )
    data = os.urandom(12 * MIB)
    obstore.put(store, "obstore/a", data, chunk_size=5 * MIB, max_concurrency=2)
    assert bytes(obstore.get_range(store, "obstore/a", start=5, length=10)) == data[5:15]
    obstore.copy(store, "obstore/a", "obstore/b")
    with pytest.raises(obstore.exceptions.AlreadyExistsError):
        obstore.put(store, "obstore/b", b"x", mode="create")
    obstore.rename(store, "obstore/b", "obstore/c")
    listed = {meta["path"]: meta for page in obstore.list(store, "obstore") for meta in page}
    assert set(listed) == {"obstore/a", "obstore/c"}
    assert listed["obstore/c"]["e_tag"] == obstore.head(store, "obstore/c")["e_tag"]
    assert bytes(obstore.get(store, "obstore/c").bytes()) == data
    obstore.delete(store, ["obstore/a", "obstore/c"])


def test_state_is_found_again(own_part: Part) -> None:
    own_part.bucket.blob("kept").upload_from_string(b"replaced")
    own_part.bucket.blob("kept").upload_from_string(BYTES)
    assert len(list((own_part.state_path / "bucket" / "blobs").iterdir())) == 1
    generation = own_part.bucket.get_blob("kept").generation
    (own_part.state_path / "bucket" / "blobs" / "left-behind").write_bytes(b"x")
    (own_part.state_path / "bucket" / "drafts" / "half").write_bytes(b"x")
    own_part.kill_and_start_again()
    found = own_part.bucket.get_blob("kept")
    assert found.generation == generation and found.download_as_bytes() == BYTES
    assert own_part.client.get_bucket("europe").location == "EU"
    assert len(list((own_part.state_path / "bucket" / "blobs").iterdir())) == 1
    assert list((own_part.state_path / "bucket" / "drafts").iterdir()) == []


# Faults and counters


def test_refusals_are_answered_as_armed_and_then_no_more(part: Part, stored: storage.Blob) -> None:
    part.arm(kind="status", method="GET", path="/download/*", status=429, times=2, headers={"Retry-After": "7"})
    url = addresses(part)[1]
    answers = [requests.get(url, timeout=10) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [429, 429, 200]
    assert answers[0].headers["Retry-After"] == "7"
    assert requests.get(f"{part.url}/sandbox/faults", timeout=10).json() == {"armed": []}


def test_googles_client_survives_what_it_should(part: Part, stored: storage.Blob) -> None:
    part.arm(kind="status", path="/download/*", status=503)
    part.arm(kind="reset", path="/download/*", after_bytes=1000)
    assert stored.download_as_bytes() == BYTES


@pytest.mark.parametrize("kind", ["reset", "truncate"])
def test_downloads_are_cut_at_the_offset(part: Part, stored: storage.Blob, kind: str) -> None:
    part.arm(kind=kind, path="/download/*", after_bytes=100_000)
    got = b""
    with (
        pytest.raises(requests.RequestException),
        requests.get(addresses(part)[1], stream=True, timeout=10) as answer,
    ):
        for chunk in answer.iter_content(10_000):
            got += chunk
    assert got == BYTES[: len(got)] and len(got) <= 100_000
    if kind == "truncate":
        assert len(got) == 100_000


def test_bytes_are_corrupted_at_the_offset(part: Part, stored: storage.Blob) -> None:
    part.arm(kind="corrupt", path="/download/*", after_bytes=1234)
    got = requests.get(addresses(part)[1], timeout=10).content
    assert [index for index in range(len(BYTES)) if got[index] != BYTES[index]] == [1234]
    part.arm(kind="corrupt", method="PUT", path="*", after_bytes=5)
    right = {"x-goog-hash": f"crc32c={crc32c(BYTES)}"}
    assert requests.put(part.xml("corrupted"), data=BYTES, headers=right, timeout=10).status_code == 400


def test_stalled_answer_ends_with_the_client(part: Part, stored: storage.Blob) -> None:
    part.arm(kind="stall", path="/download/*", after_bytes=10)
    with pytest.raises(requests.RequestException, match="timed out"):
        requests.get(addresses(part)[1], timeout=0.3)


def test_lost_answer_means_that_the_work_was_done(part: Part) -> None:
    part.arm(kind="lose_answer", method="PUT", path="*/lost")
    with pytest.raises(requests.ConnectionError):
        requests.put(part.xml("lost"), data=b"done", timeout=10)
    assert part.bucket.blob("lost").download_as_bytes() == b"done"


def test_denied_access_is_googles_403(part: Part) -> None:
    part.arm(kind="status", status=403, path="/upload/*", body='{"error": {"message": "no permission"}}')
    with pytest.raises((refusals.Forbidden, InvalidResponse), match="no permission"):
        part.bucket.blob("denied").upload_from_string(b"x")


@pytest.mark.parametrize("fault", [{"kind": "other"}, {"kind": "reset", "times": "2"}, {"knd": "reset"}, []])
def test_faults_are_checked_when_they_are_armed(part: Part, fault: Any) -> None:
    answer = requests.post(f"{part.url}/sandbox/faults", json=fault, timeout=10)
    assert answer.status_code == 400 and answer.json()["error"]


def test_clients_that_go_away_leave_no_trace_but_a_count(part: Part) -> None:
    requests.put(part.xml("gone"), data=b"x" * 32 * MIB, timeout=10)
    part.forget()
    host, port = part.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"GET /{BUCKET}/gone HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        connection.recv(1000)
    deadline = time.monotonic() + 10
    while not part.counted() and time.monotonic() < deadline:
        time.sleep(0.02)
    (seen,) = part.counted()
    assert seen["statuses"] == {"cut": 1} and 0 < seen["bytes_out"] < 32 * MIB
    assert "Traceback" not in part.log


def test_counters_name_objects_and_bytes(part: Part) -> None:
    requests.put(part.xml("counted"), data=BYTES, timeout=10)
    requests.get(part.xml("counted"), headers={"Range": "bytes=0-99"}, timeout=10)
    part.bucket.blob("counted-copy").rewrite(part.bucket.blob("counted"))
    part.bucket.blob("counted-small").upload_from_string(b"small")
    found = {(entry["method"], entry["subject"]): entry for entry in part.counted()}
    assert found["PUT", f"{BUCKET}/counted"]["bytes_in"] == len(BYTES)
    assert found["GET", f"{BUCKET}/counted"]["bytes_out"] == 100
    assert found["POST", f"{BUCKET}/counted-small"]["count"] == 1
    copied = found["POST", f"{BUCKET}/counted-copy"]
    assert copied["bytes_in"] < 100 and copied["bytes_out"] < 2000
    assert found["PUT", f"{BUCKET}/counted"]["statuses"] == {"200": 1}


# Arithmetic


@given(st.lists(st.binary(max_size=300), max_size=8))
@settings(deadline=None, max_examples=200)
def test_checksum_of_a_row_is_the_checksum_of_the_whole(pieces: list[bytes]) -> None:
    row = [(google_crc32c.value(piece), len(piece)) for piece in pieces]
    assert crc32c_of_row(row) == google_crc32c.value(b"".join(pieces))
