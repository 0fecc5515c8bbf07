"""Reads of objects and of their ranges, by every address that clients use."""

import pytest
import requests
from bucket_part import BYTES, MIB, Part, addresses, crc32c
from google.api_core import exceptions as refusals
from google.cloud import storage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


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
