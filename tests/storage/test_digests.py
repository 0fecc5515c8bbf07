"""Checksums can be joined, put down and taken up again."""

import hashlib

import google_crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from streamway.storage import digests


@given(st.lists(st.binary(max_size=300), max_size=8))
@settings(deadline=None, max_examples=60)
def test_crc32c_of_a_row_is_the_row_of_crc32c(pieces: list[bytes]) -> None:
    total, checksum = b"".join(pieces), 0
    for piece in pieces:
        checksum = digests.combine_crc32c(checksum, digests.crc32c(piece), len(piece))
    assert checksum == google_crc32c.value(total)


def test_crc32c_is_the_same_for_every_kind_of_memory() -> None:
    data = bytes(range(256)) * 5000
    kinds = [data, bytearray(data), memoryview(bytearray(data)), memoryview(data)]
    assert {digests.crc32c(kind) for kind in kinds} == {google_crc32c.value(data)}
    assert digests.crc32c(memoryview(bytearray(data))[1000:], digests.crc32c(data[:1000])) == google_crc32c.value(data)


@given(st.binary(max_size=400), st.binary(max_size=400))
@settings(deadline=None, max_examples=60)
def test_a_saved_sha256_goes_on_where_it_was(first: bytes, second: bytes) -> None:
    begun = digests.start_sha256()
    begun.update(first)
    state = begun.state()
    assert state is not None, "this machine's OpenSSL cannot save a hash"
    resumed = digests.resume_sha256(state)
    assert resumed is not None
    resumed.update(bytearray(second))
    assert resumed.hexdigest() == hashlib.sha256(first + second).hexdigest()
    assert begun.hexdigest() == hashlib.sha256(first).hexdigest()


def test_a_damaged_state_is_not_taken_up() -> None:
    assert digests.resume_sha256(b"short") is None
    assert digests.Checksums.resume("", 0, sha256=True) is None


def test_checksums_follow_parts_in_order() -> None:
    parts = [b"a" * 1000, b"b" * 77, b""]
    checksums = digests.Checksums(sha256=True)
    for part in parts:
        checksums.add(part, digests.crc32c(part))
    assert checksums.sha256() == hashlib.sha256(b"".join(parts)).hexdigest()
    assert checksums.crc32c == google_crc32c.value(b"".join(parts))


def test_checksums_are_written_as_cloud_storage_writes_them() -> None:
    # Known answer: RFC 3720, B.4, 32 bytes of zeroes.
    assert digests.encode_crc32c(digests.crc32c(bytes(32))) == "ipE2qg=="
    assert digests.decode_crc32c("ipE2qg==") == 0x8A9136AA
