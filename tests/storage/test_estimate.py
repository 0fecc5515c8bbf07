"""A plan is held to the limits of Cloud Storage, and its numbers are the ones that really occur."""

import os
from typing import Any

import pytest

from streamway import storage
from streamway.errors import TransferError
from streamway.storage.cloud import LEAST_PART_BYTES, MOST_PARTS
from streamway.storage.estimate import estimate_transfer
from streamway.storage.segments import FilePlan

MIB = 1024 * 1024
GB = 1_000_000_000


def test_800_gb_in_200_files_fit_into_512_mib_and_all_limits() -> None:
    estimate = estimate_transfer([4 * GB] * 200, memory_bytes=256 * MIB, workers=8)
    assert LEAST_PART_BYTES <= estimate.part_bytes <= 5 * 1024**3
    assert estimate.most_parts_of_a_file <= MOST_PARTS
    assert estimate.parts == 200 * -(-4 * GB // estimate.part_bytes) == 24_000
    assert estimate.memory_bytes <= 256 * MIB
    assert estimate.hub_requests == 24_200
    # Parts, a save after each but the last, and four requests around them.
    assert estimate.class_a_requests == 24_000 + 23_800 + 4 * 200
    # The Hub lets an anonymous address ask 3 000 times in five minutes for files; finding them is 200 of those.
    assert len([4 * GB] * 200) < 3_000


@pytest.mark.parametrize("size", [5 * 10**10, 10**12, 5 * 1024**4])
def test_a_file_of_any_size_fits_into_the_number_of_parts(size: int) -> None:
    estimate = estimate_transfer([size], memory_bytes=1024 * MIB, workers=8)
    assert estimate.most_parts_of_a_file <= MOST_PARTS
    assert estimate.part_bytes * MOST_PARTS >= size
    assert estimate.memory_bytes <= 1024 * MIB


def test_what_cannot_be_an_object_is_refused() -> None:
    with pytest.raises(TransferError, match="at most"):
        estimate_transfer([5 * 1024**4 + 1], memory_bytes=1024 * MIB)
    with pytest.raises(TransferError, match="does not fit"):
        estimate_transfer([5 * 1024**4], memory_bytes=64 * MIB)


def test_the_estimate_is_what_really_happens(cloud: Any, bucket_uri: str) -> None:
    sizes = [1000, 12 * MIB, 0, 5 * MIB, 23 * MIB]
    limits = {"memory_bytes": 10 * MIB, "workers": 2}
    estimate = estimate_transfer(sizes, **limits)
    plans = [FilePlan(uri=f"{bucket_uri}/{n}", segments=(os.urandom(size),)) for n, size in enumerate(sizes)]
    promised = [FilePlan(uri=plan.uri, segments=plan.segments, sha256=_sha256(plan.segments[0])) for plan in plans]
    cloud.begin_anew()
    storage.write_files(promised, **limits)
    looks = cloud.count("GET", "/o/")
    lists = cloud.count("GET") - looks
    writes = cloud.count("POST") + cloud.count("PUT")
    saves = sum(max(0, -(-size // estimate.part_bytes) - 1) for size in sizes)
    assert cloud.count("PUT") == estimate.parts - 3  # small files travel by POST
    # Several parts that settle together are saved once.
    assert estimate.class_a_requests - saves <= lists + writes <= estimate.class_a_requests
    assert looks == estimate.class_b_requests
    assert cloud.count("DELETE") <= estimate.free_requests


def _sha256(data: Any) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()
