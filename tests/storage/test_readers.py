"""Readers give exact bytes of one version, or say that it is gone."""

import os
import threading
from pathlib import Path

import pytest

from streamway import storage
from streamway.errors import SourceChangedError, StorageError, TransferError


@pytest.fixture
def uri(root_uri: str) -> str:
    uri = storage.join(root_uri, "source")
    storage.write_file(uri, bytes(range(256)) * 1000)
    return uri


def test_any_range_can_be_read(uri: str) -> None:
    reader = storage.open_reader(uri)
    assert (reader.uri, reader.size_bytes) == (uri, 256_000)
    assert reader.read(0, 3) == b"\0\1\2"
    assert reader.read(255_999, 1) == b"\xff"
    assert reader.read(256_000, 0) == b""
    assert reader.read(0, 256_000) == bytes(range(256)) * 1000


def test_reading_into_memory_fills_exactly_what_is_given(uri: str) -> None:
    memory = bytearray(10)
    storage.open_reader(uri).read_into(254, memoryview(memory)[2:6])
    assert memory == b"\0\0\xfe\xff\0\1\0\0\0\0"


def test_reading_beyond_the_end_is_an_error(uri: str) -> None:
    with pytest.raises(TransferError, match="ends at 256000"):
        storage.open_reader(uri).read(255_999, 2)


def test_more_pieces_of_memory_than_one_call_takes_are_filled_in_order(uri: str) -> None:
    memory = [bytearray(1 + number % 90) for number in range(3000)]
    storage.open_reader(uri).read_rows(7, list(map(memoryview, memory)))
    length = sum(map(len, memory))
    assert b"".join(memory) == (bytes(range(256)) * 1000)[7 : 7 + length]


def test_pieces_of_memory_beyond_the_end_are_an_error(uri: str) -> None:
    memory = [memoryview(bytearray(300)) for _ in range(3)]
    with pytest.raises(TransferError, match="ends at 256000"):
        storage.open_reader(uri).read_rows(255_400, memory)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(StorageError, match=f"{path} is no file"):
            storage.open_reader(str(path))


def test_a_disk_that_fails_is_named() -> None:
    reader = storage.open_reader("/proc/self/mem")  # whose first page nobody has
    with pytest.raises(TransferError, match="/proc/self/mem: the disk does not give what is at 0"):
        reader.read(0, 8)


def test_many_threads_read_at_once(uri: str) -> None:
    reader, wrong = storage.open_reader(uri), []

    def check(offset: int) -> None:
        if reader.read(offset, 5000)[0] != offset % 256:
            wrong.append(offset)

    threads = [threading.Thread(target=check, args=(offset,)) for offset in range(0, 250_000, 10_007)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_replaced_object_is_not_mixed_with_its_successor(bucket_uri: str) -> None:
    storage.write_file(f"{bucket_uri}/file", b"a" * 100)
    reader = storage.open_reader(f"{bucket_uri}/file")
    assert reader.read(0, 10) == b"a" * 10
    storage.write_file(f"{bucket_uri}/file", b"b" * 100)
    with pytest.raises(SourceChangedError, match="generation"):
        reader.read(10, 10)
    assert storage.open_reader(f"{bucket_uri}/file").version != reader.version


def test_a_file_that_is_written_to_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a" * 100)
    reader = storage.open_reader(str(path))
    assert reader.read(0, 10) == b"a" * 10
    path.write_bytes(b"b" * 99)
    os.utime(path, ns=(1, 1))
    with pytest.raises(SourceChangedError, match="changed while it was read"):
        reader.read(0, 10)


def test_a_file_that_is_replaced_is_still_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a" * 100)
    reader = storage.open_reader(str(path))
    (tmp_path / "new").write_bytes(b"b" * 100)
    (tmp_path / "new").replace(path)
    assert reader.read(0, 100) == b"a" * 100


def test_opening_what_is_not_there_says_so(root_uri: str) -> None:
    with pytest.raises(StorageError, match="none"):
        storage.open_reader(storage.join(root_uri, "none"))


def test_a_closed_reader_leaves_no_open_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(50):
        storage.open_reader(str(tmp_path / "file")).read(0, 1)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
