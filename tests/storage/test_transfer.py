"""The engine writes what the plan says, in parallel, in bounded memory, verified, and goes on where it was."""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamway import storage
from streamway.errors import ChecksumError, StorageError, TransferError
from streamway.storage.digests import crc32c
from streamway.storage.segments import Computed, Extent, FilePlan, Segment

MIB = 1024 * 1024
PART = 5 * MIB
SMALL_PARTS = {"memory_bytes": 2 * PART, "workers": 2}


class MemoryReader:
    """A source in memory that counts what is read and can fail or wait at a given point."""

    def __init__(
        self, data: bytes, *, name: str = "https://memory", before_read: Callable[[int], None] | None = None
    ) -> None:
        self.uri = name
        self.size_bytes = len(data)
        self.read_bytes = 0
        self._data = data
        self._before_read = before_read
        self._lock = threading.Lock()

    def read(self, offset: int, length: int) -> bytes:
        if self._before_read:
            self._before_read(offset)
        with self._lock:
            self.read_bytes += length
        return self._data[offset : offset + length]


class DamagingReader(MemoryReader):
    """A source that tells the checksums of its bytes, one bit of which then flips in memory on the way to the target.

    Args:
        data: What it holds.
        damaged: Offset of the bit's byte.
    """

    version = "1"

    def __init__(self, data: bytes, *, damaged: int | None) -> None:
        super().__init__(data)
        self._damaged = damaged

    def read_into(self, offset: int, view: memoryview) -> None:
        self.sum_rows(offset, [view])

    def read_rows(self, offset: int, rows: Sequence[memoryview]) -> None:
        self.sum_rows(offset, rows)

    def sum_rows(self, offset: int, rows: Sequence[memoryview]) -> list[int]:
        sums = []
        for row in rows:
            row[:] = self.read(offset, len(row))
            sums.append(crc32c(row))
            if self._damaged is not None and offset <= self._damaged < offset + len(row):
                row[self._damaged - offset] ^= 1
            offset += len(row)
        return sums


def whole(reader: Any) -> tuple[Segment, ...]:
    return (Extent(reader=reader, offset_bytes=0, length_bytes=reader.size_bytes),)


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def contents(uri: str) -> bytes:
    reader = storage.open_reader(uri)
    return reader.read(0, reader.size_bytes)


def failing_after(offset: int) -> Callable[[int], None]:
    def fail(at: int) -> None:
        if at >= offset:
            raise TransferError("the source failed on purpose")

    return fail


def test_a_file_of_many_parts_arrives_as_it_was(root_uri: str, payload: bytes) -> None:
    uri = storage.join(root_uri, "deep/file")
    (written,) = storage.write_files([FilePlan(uri=uri, segments=whole(MemoryReader(payload)))], **SMALL_PARTS)
    assert (written.uri, written.size_bytes, written.moved_bytes) == (uri, len(payload), len(payload))
    assert (written.sha256, written.crc32c) == (sha256_of(payload), crc32c(payload))
    assert contents(uri) == payload
    assert [file.path for file in storage.list_files(root_uri)] == ["deep/file"]


def test_files_come_back_in_the_order_of_their_plans(root_uri: str) -> None:
    datas = [os.urandom(size) for size in (0, 1, 3 * MIB, PART, PART + 1, 10)]
    plans = [
        FilePlan(uri=storage.join(root_uri, f"file-{number}"), segments=(data,), sha256=sha256_of(data))
        for number, data in enumerate(datas)
    ]
    written = storage.write_files(plans, **SMALL_PARTS)
    assert [file.uri for file in written] == [plan.uri for plan in plans]
    assert [contents(file.uri) for file in written] == datas


def test_nothing_to_write_is_written() -> None:
    assert storage.write_files([]) == ()


@given(
    lengths=st.lists(st.tuples(st.sampled_from("bec"), st.integers(0, 400)), max_size=25),
    part=st.integers(1, 300),
)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_row_of_segments_is_written_in_order(lengths: list[tuple[str, int]], part: int) -> None:
    from streamway.storage.rows import SegmentedSource

    source = MemoryReader(os.urandom(1000))
    segments: list[Segment] = []
    expected = b""
    for kind, length in lengths:
        data = source.read(length, length)
        expected += data
        if kind == "b":
            segments.append(data)
        elif kind == "e":
            segments.append(Extent(reader=source, offset_bytes=length, length_bytes=length))
        else:
            segments.append(Computed(make=lambda data=data: data, length_bytes=length))
    row = SegmentedSource(FilePlan(uri="unused", segments=segments))
    found = bytearray(len(expected))
    for offset in range(0, len(expected), part):
        row.fill(offset, memoryview(found)[offset : offset + part])
    assert found == expected


def test_neighbours_in_one_source_are_one_read() -> None:
    from streamway.storage.rows import SegmentedSource

    reads: list[int] = []
    source = MemoryReader(bytes(1000), before_read=reads.append)
    row = [Extent(reader=source, offset_bytes=10 * n, length_bytes=10) for n in range(20)]
    SegmentedSource(FilePlan(uri="unused", segments=[b"head", *row])).fill(0, memoryview(bytearray(204)))
    assert reads == [0]


def test_what_lies_close_together_is_one_read_over_a_network() -> None:
    from streamway.storage.rows import SegmentedSource

    reads: list[int] = []
    data = os.urandom(9_000_000)
    source = MemoryReader(data, before_read=reads.append)
    spans = [(0, 100), (200, 50), (1000, 3000), (100_000, 10), (100_010, 5_000_000), (8_000_000, 10), (7_000_000, 10)]
    row = [Extent(reader=source, offset_bytes=start, length_bytes=length) for start, length in spans]
    found = bytearray(sum(length for _, length in spans))
    SegmentedSource(FilePlan(uri="unused", segments=row)).fill(0, memoryview(found))
    assert found == b"".join(data[start : start + length] for start, length in spans)
    assert reads == [0, 100_000, 8_000_000, 7_000_000]


def test_only_what_lies_side_by_side_is_one_read_on_a_disk() -> None:
    from streamway.storage.rows import SegmentedSource

    reads: list[int] = []
    source = MemoryReader(os.urandom(100_000), name="/disk/file", before_read=reads.append)
    spans = [(0, 100), (200, 50), (1000, 3000), (9000, 10), (50_000, 10)]
    row = [Extent(reader=source, offset_bytes=start, length_bytes=length) for start, length in spans]
    SegmentedSource(FilePlan(uri="unused", segments=row)).fill(0, memoryview(bytearray(3170)))
    assert reads == [0, 9000, 50_000]


def test_a_plan_of_many_segments_is_not_gone_through_for_every_part(tmp_path: Path, payload: bytes) -> None:
    passes: list[int] = []

    class Counted(tuple[Segment, ...]):
        def __iter__(self) -> Iterator[Segment]:
            passes.append(1)
            return super().__iter__()

    reader = MemoryReader(payload)
    step = 64 * 1024
    row = Counted(
        Extent(reader=reader, offset_bytes=at, length_bytes=min(step, len(payload) - at))
        for at in range(0, len(payload), step)
    )
    storage.write_files([FilePlan(uri=str(tmp_path / "few"), segments=row)], memory_bytes=64 * MIB, workers=2)
    in_few_parts = len(passes)
    storage.write_files([FilePlan(uri=str(tmp_path / "many"), segments=row)], **SMALL_PARTS)
    assert contents(str(tmp_path / "many")) == payload
    assert len(passes) == 2 * in_few_parts


def test_of_many_files_only_those_under_way_are_looked_at(tmp_path: Path) -> None:
    looks: list[int] = []

    class Counted(FilePlan):
        @property
        def size_bytes(self) -> int:  # type: ignore[override]
            looks.append(1)
            return 1

    def looks_for(count: int) -> int:
        looks.clear()
        storage.write_files([Counted(uri=str(tmp_path / f"{count}-{n}"), segments=(b"x",)) for n in range(count)])
        return len(looks)

    assert looks_for(400) < 6 * looks_for(100)


def test_a_computed_segment_of_the_wrong_length_is_refused(tmp_path: Path) -> None:
    plan = FilePlan(uri=str(tmp_path / "file"), segments=(Computed(make=lambda: b"123", length_bytes=4),))
    with pytest.raises(TransferError, match="3 bytes long, 4 were promised"):
        storage.write_files([plan])
    assert not (tmp_path / "file").exists()


def test_a_source_that_gives_too_little_is_refused(tmp_path: Path) -> None:
    reader = MemoryReader(b"1234")
    reader.size_bytes = 10
    with pytest.raises(TransferError, match="asked for 10 bytes at 0, got 4"):
        storage.write_files([FilePlan(uri=str(tmp_path / "file"), segments=whole(reader))])


def test_bytes_that_were_not_promised_never_appear(root_uri: str, payload: bytes) -> None:
    uri = storage.join(root_uri, "file")
    promised = sha256_of(b"something else")
    plan = FilePlan(uri=uri, segments=whole(MemoryReader(payload)), sha256=promised)
    with pytest.raises(ChecksumError) as caught:
        storage.write_files([plan], **SMALL_PARTS)
    assert promised in caught.value.problem and sha256_of(payload) in caught.value.problem
    assert not storage.exists(uri)
    reader = MemoryReader(payload)
    storage.write_files([FilePlan(uri=uri, segments=whole(reader), sha256=sha256_of(payload))], **SMALL_PARTS)
    assert reader.read_bytes == len(payload), "what was refused must not be taken up"


def test_a_rerun_does_not_go_on_from_wrong_bytes(root_uri: str, payload: bytes) -> None:
    uri, damaged = storage.join(root_uri, "file"), payload[:PART] + b"!" + payload[PART + 1 :]
    plan_of = lambda data: FilePlan(uri=uri, segments=whole(MemoryReader(data)), sha256=sha256_of(payload))
    with pytest.raises(ChecksumError):
        storage.write_files([plan_of(damaged)], **SMALL_PARTS)
    (written,) = storage.write_files([plan_of(payload)], **SMALL_PARTS)
    assert written.moved_bytes == len(payload)
    assert contents(uri) == payload


def test_a_rerun_moves_nothing(root_uri: str, payload: bytes, cloud: Any) -> None:
    promised = FilePlan(
        uri=storage.join(root_uri, "promised"), segments=whole(MemoryReader(payload)), sha256=sha256_of(payload)
    )
    unpromised = FilePlan(uri=storage.join(root_uri, "unpromised"), segments=whole(MemoryReader(payload)))
    small = FilePlan(uri=storage.join(root_uri, "small"), segments=(b"small",))
    first = storage.write_files([promised, unpromised, small], **SMALL_PARTS)
    cloud.begin_anew()
    again = [
        FilePlan(uri=plan.uri, segments=whole(MemoryReader(payload)), sha256=plan.sha256)
        for plan in (promised, unpromised)
    ]
    second = storage.write_files([*again, small], **SMALL_PARTS)
    assert [file.moved_bytes for file in second] == [0, 0, 0]
    assert [(f.sha256, f.crc32c, f.generation) for f in first] == [(f.sha256, f.crc32c, f.generation) for f in second]
    assert cloud.bytes_in() == 0


def test_another_plan_for_the_same_name_is_written_anew(root_uri: str, payload: bytes) -> None:
    uri = storage.join(root_uri, "file")
    storage.write_files([FilePlan(uri=uri, segments=(b"head", *whole(MemoryReader(payload))))], **SMALL_PARTS)
    (written,) = storage.write_files(
        [FilePlan(uri=uri, segments=(b"HEAD", *whole(MemoryReader(payload))))], **SMALL_PARTS
    )
    assert written.moved_bytes == len(payload) + 4
    assert contents(uri) == b"HEAD" + payload


def test_a_local_file_that_was_changed_is_written_anew(tmp_path: Path, payload: bytes) -> None:
    plan = FilePlan(uri=str(tmp_path / "file"), segments=whole(MemoryReader(payload)), sha256=sha256_of(payload))
    storage.write_files([plan])
    with (tmp_path / "file").open("r+b") as file:
        file.write(b"tampered")
    (written,) = storage.write_files([plan])
    assert written.moved_bytes == len(payload)
    assert contents(plan.uri) == payload


@pytest.mark.parametrize("promised", [True, False])
def test_an_interrupted_file_goes_on_where_it_was(root_uri: str, payload: bytes, promised: bool) -> None:
    uri, sha256 = storage.join(root_uri, "file"), sha256_of(payload) if promised else None
    broken = MemoryReader(payload, before_read=failing_after(3 * PART))
    with pytest.raises(TransferError, match="on purpose"):
        storage.write_files([FilePlan(uri=uri, segments=whole(broken), sha256=sha256)], **SMALL_PARTS)
    assert not storage.exists(uri)
    reader = MemoryReader(payload)
    (written,) = storage.write_files([FilePlan(uri=uri, segments=whole(reader), sha256=sha256)], **SMALL_PARTS)
    assert written.moved_bytes == reader.read_bytes == len(payload) - 3 * PART
    assert (written.sha256, written.crc32c) == (sha256_of(payload), crc32c(payload))
    assert contents(uri) == payload
    assert [file.path for file in storage.list_files(root_uri)] == ["file"]


def test_an_interrupted_file_is_not_continued_from_another_source(root_uri: str, payload: bytes) -> None:
    uri, other = storage.join(root_uri, "file"), os.urandom(len(payload))
    broken = MemoryReader(payload, name="https://first", before_read=failing_after(2 * PART))
    with pytest.raises(TransferError):
        storage.write_files([FilePlan(uri=uri, segments=whole(broken))], **SMALL_PARTS)
    (written,) = storage.write_files(
        [FilePlan(uri=uri, segments=whole(MemoryReader(other, name="https://second")))], **SMALL_PARTS
    )
    assert written.moved_bytes == len(other)
    assert contents(uri) == other


def test_parts_damaged_on_disk_are_fetched_again(tmp_path: Path, payload: bytes) -> None:
    plan_of = lambda reader: FilePlan(uri=str(tmp_path / "file"), segments=whole(reader), sha256=sha256_of(payload))
    with pytest.raises(TransferError):
        storage.write_files([plan_of(MemoryReader(payload, before_read=failing_after(3 * PART)))], **SMALL_PARTS)
    with (tmp_path / ".transfer" / "file.partial").open("r+b") as partial:
        partial.seek(PART + 17)
        partial.write(b"damaged")
    (written,) = storage.write_files([plan_of(MemoryReader(payload))], **SMALL_PARTS)
    assert written.moved_bytes == len(payload) - 2 * PART
    assert contents(plan_of(MemoryReader(payload)).uri) == payload


def test_what_the_disk_does_not_give_back_as_it_was_is_refused_and_written_again(
    tmp_path: Path, payload: bytes
) -> None:
    uri = str(tmp_path / "file")
    damaging = DamagingReader(payload, damaged=2 * PART + 7)
    with pytest.raises(ChecksumError, match=rf"{uri}: \d+ bytes from {2 * PART} were written .* the disk gives back"):
        storage.write_files([FilePlan(uri=uri, segments=whole(damaging))], read_back=True, **SMALL_PARTS)
    assert storage.list_files(str(tmp_path)) == ()
    sound = DamagingReader(payload, damaged=None)
    (written,) = storage.write_files([FilePlan(uri=uri, segments=whole(sound))], read_back=True, **SMALL_PARTS)
    assert contents(uri) == payload
    assert written.read_back
    assert 0 < sound.read_bytes <= len(payload) - 2 * PART


def test_only_what_was_read_back_is_said_to_be(tmp_path: Path) -> None:
    uri = str(tmp_path / "file")
    plan = FilePlan(uri=uri, segments=(b"some bytes",))
    assert not storage.write_files([plan])[0].read_back
    assert not storage.write_files([plan], read_back=True)[0].read_back, "it was there already and nobody looked"
    Path(uri).unlink()
    assert storage.write_files([plan], read_back=True)[0].read_back


def test_a_torn_journal_is_read_up_to_its_last_whole_line(tmp_path: Path, payload: bytes) -> None:
    plan_of = lambda reader: FilePlan(uri=str(tmp_path / "file"), segments=whole(reader), sha256=sha256_of(payload))
    with pytest.raises(TransferError):
        storage.write_files([plan_of(MemoryReader(payload, before_read=failing_after(3 * PART)))], **SMALL_PARTS)
    journal = tmp_path / ".transfer" / "file.journal"
    journal.write_bytes(journal.read_bytes()[:-3])
    (written,) = storage.write_files([plan_of(MemoryReader(payload))], **SMALL_PARTS)
    assert written.moved_bytes == len(payload) - 2 * PART
    assert contents(str(tmp_path / "file")) == payload


def test_a_pending_upload_of_nobody_is_thrown_away(bucket_uri: str, payload: bytes, cloud: Any) -> None:
    uri = f"{bucket_uri}/file"
    parts = cloud.state / "bucket" / "parts"
    before = set(parts.iterdir())
    broken = MemoryReader(payload, name="https://first", before_read=failing_after(2 * PART))
    with pytest.raises(TransferError):
        storage.write_files([FilePlan(uri=uri, segments=whole(broken))], **SMALL_PARTS)
    assert set(parts.iterdir()) > before
    cloud.begin_anew()
    storage.write_files(
        [FilePlan(uri=uri, segments=whole(MemoryReader(payload, name="https://second")))], **SMALL_PARTS
    )
    assert cloud.count("DELETE", "?") + cloud.count("DELETE", "/file") >= 1
    assert set(parts.iterdir()) == before


def test_one_large_file_is_read_by_several_workers_at_once(tmp_path: Path, payload: bytes) -> None:
    meeting = threading.Barrier(2, timeout=20)
    first_two = lambda offset: meeting.wait() if offset < 2 * PART else None
    reader = MemoryReader(payload, before_read=first_two)
    storage.write_files([FilePlan(uri=str(tmp_path / "file"), segments=whole(reader))], **SMALL_PARTS)
    assert not meeting.broken, "the second part was not asked for while the first was read"
    assert contents(str(tmp_path / "file")) == payload


def test_small_files_are_read_at_once(tmp_path: Path) -> None:
    meeting = threading.Barrier(4, timeout=20)
    readers = [MemoryReader(b"x" * 10, before_read=lambda _: meeting.wait()) for _ in range(4)]
    storage.write_files(
        [FilePlan(uri=str(tmp_path / str(n)), segments=whole(reader)) for n, reader in enumerate(readers)], workers=4
    )
    assert not meeting.broken, "four files were not read at once"
    assert [contents(str(tmp_path / str(n))) for n in range(4)] == [b"x" * 10] * 4


def test_bytes_in_flight_stay_within_the_memory_that_is_given(root_uri: str, payload: bytes) -> None:
    held, most, lock = 0, 0, threading.Lock()

    class Counting(MemoryReader):
        def read(self, offset: int, length: int) -> bytes:
            nonlocal held, most
            with lock:
                held += length
                most = max(most, held)
            try:
                return super().read(offset, length)
            finally:
                with lock:
                    held -= length

    plans = [FilePlan(uri=storage.join(root_uri, str(n)), segments=whole(Counting(payload))) for n in range(3)]
    storage.write_files(plans, memory_bytes=3 * PART, workers=16)
    assert 0 < most <= 3 * PART


def test_parts_that_come_too_early_for_the_hash_keep_their_memory(bucket_uri: str, payload: bytes) -> None:
    offsets: list[int] = []
    others = threading.Semaphore(0)

    def before_read(offset: int) -> None:
        offsets.append(offset)
        if offset:
            others.release()
            return
        for _ in range(2):
            assert others.acquire(timeout=20)
        assert not others.acquire(timeout=0.5), "a part was taken without memory for it"

    reader = MemoryReader(payload, before_read=before_read)
    plan = FilePlan(uri=f"{bucket_uri}/file", segments=whole(reader))
    storage.write_files([plan], memory_bytes=3 * PART, workers=3)
    assert len(offsets) == 5


def test_memory_that_holds_no_part_is_refused(bucket_uri: str) -> None:
    with pytest.raises(TransferError, match="does not fit into memory_bytes=1048576"):
        storage.write_files([FilePlan(uri=f"{bucket_uri}/file", segments=(b"x",))], memory_bytes=MIB)


def test_progress_grows_to_the_end(root_uri: str, payload: bytes) -> None:
    told: list[tuple[int, int]] = []
    plans = [FilePlan(uri=storage.join(root_uri, str(n)), segments=whole(MemoryReader(payload))) for n in range(2)]
    storage.write_files(plans, on_progress=lambda done, total: told.append((done, total)), **SMALL_PARTS)
    total = 2 * len(payload)
    assert {all_bytes for _, all_bytes in told} == {total}
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (total, total)


def test_hashes_are_left_out_on_request(root_uri: str, payload: bytes) -> None:
    uri = storage.join(root_uri, "file")
    (written,) = storage.write_files(
        [FilePlan(uri=uri, segments=whole(MemoryReader(payload)))], sha256=False, **SMALL_PARTS
    )
    assert written.sha256 is None and written.crc32c == crc32c(payload)


def test_the_first_failure_is_the_one_that_is_told(tmp_path: Path) -> None:
    broken = MemoryReader(b"x" * 100, before_read=failing_after(0))
    plans = [FilePlan(uri=str(tmp_path / str(n)), segments=whole(broken)) for n in range(5)]
    with pytest.raises(TransferError, match="on purpose"):
        storage.write_files(plans)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="file"):
        storage.write_files([FilePlan(uri=str(tmp_path / "file" / "below"), segments=(b"x",))])


def test_a_full_disk_is_found_out_before_the_first_byte(tmp_path: Path) -> None:
    huge = 1 << 60
    reader = MemoryReader(b"")
    reader.size_bytes = huge
    with pytest.raises(StorageError, match="cannot be written"):
        storage.write_files([FilePlan(uri=str(tmp_path / "file"), segments=whole(reader))])
    assert reader.read_bytes == 0
    assert not list(tmp_path.iterdir())
