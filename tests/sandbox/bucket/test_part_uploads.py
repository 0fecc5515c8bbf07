"""Uploads in parts: any order, any size, over a kill, within flat memory."""

import os
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import google_crc32c
import pytest
import requests
from bucket_part import BUCKET, MIB, Part, crc32c
from google.cloud.storage import transfer_manager
from hypothesis import given, settings
from hypothesis import strategies as st

from streamway.storage.digests import join_crc32c


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


@given(st.lists(st.binary(max_size=300), max_size=8))
@settings(deadline=None, max_examples=200)
def test_checksum_of_a_row_is_the_checksum_of_the_whole(pieces: list[bytes]) -> None:
    row = [(google_crc32c.value(piece), len(piece)) for piece in pieces]
    assert join_crc32c(row) == google_crc32c.value(b"".join(pieces))
