"""Faults come as they are armed, and every byte is counted."""

import socket
import time
from typing import Any

import pytest
import requests
from bucket_part import BUCKET, BYTES, MIB, Part, addresses, crc32c
from google.api_core import exceptions as refusals
from google.cloud import storage
from google.cloud.storage.exceptions import InvalidResponse


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
