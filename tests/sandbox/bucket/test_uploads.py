"""Objects reach the sandbox's Cloud Storage whole, by every kind of upload, or not at all."""

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from bucket_part import BUCKET, BYTES, Part, crc32c
from google.api_core import exceptions as refusals
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


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
