"""Archives as torch writes them are found member by member; archives that lie are refused by name."""

import struct
from typing import Any

import pytest
from byte_readers import BytesReader
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_writer import Member, with_member, zip_bytes

from streamway.errors import CheckpointError, WeightsError
from streamway.weights.zip_records import ZipRecords

MEMBERS = [Member("archive/data.pkl", b"N."), Member("archive/data/0", b"zero" * 40), Member("archive/data/1", b"")]


def contents(data: bytes) -> dict[str, bytes]:
    reader = BytesReader(data)
    records = ZipRecords(reader)
    places = records.locate(records.records)
    return {name: data[place.offset : place.offset + place.size_bytes] for name, place in places.items()}


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=12),
    align=st.sampled_from([1, 4, 64, 512, 4096]),
    zip64=st.booleans(),
    descriptors=st.booleans(),
    root=st.sampled_from(["archive", "pytorch_model", "modèle"]),
)
def test_every_member_is_found(sizes: list[int], align: int, zip64: bool, descriptors: bool, root: str) -> None:
    flags = 0x0808 if descriptors else 0x0800
    members = [
        Member(f"{root}/data/{number}", bytes([number % 251]) * size, flags=flags) for number, size in enumerate(sizes)
    ]
    found = contents(zip_bytes(members, align=align, zip64=zip64))
    assert found == {f"data/{number}": member.data for number, member in enumerate(members)}


def test_members_over_four_gigabytes_are_found_without_reading_them() -> None:
    size = 5 * 2**30
    reader = HollowReader([("archive/data/0", size), ("archive/data.pkl", 2), ("archive/data/1", size)])
    records = ZipRecords(reader)
    places = records.locate(["data/0", "data/1"])
    assert [place.size_bytes for place in places.values()] == [size, size]
    assert places["data/1"].offset > size
    assert reader.given_bytes < 200_000


class HollowReader(BytesReader):
    """An archive whose members are holes, so that it can be larger than the memory."""

    def __init__(self, members: list[tuple[str, int]]) -> None:
        super().__init__(b"")
        self.pieces: dict[int, bytes] = {}
        directory, at = b"", 0
        for name, size in members:
            raw = name.encode()
            self.pieces[at] = struct.pack("<4s5H3L2H", b"PK\3\4", 45, 0x0808, 0, 0, 0, 0, 0, 0, len(raw), 0) + raw
            extra = struct.pack("<2H3Q", 1, 24, size, size, at)
            directory += struct.pack(
                "<4s6H3L5H2L", b"PK\1\2", 45, 45, 0x0808, 0, 0, 0, 0, 2**32 - 1, 2**32 - 1, len(raw), len(extra), 0, 0,
                0, 0, 2**32 - 1,
            ) + raw + extra  # fmt: skip
            at += len(self.pieces[at]) + size + 24
        end = at + len(directory)
        tail = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, len(members), len(members), len(directory), at)
        tail += struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
        tail += struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0)
        self.pieces[at] = directory + tail
        self.size_bytes = end + len(tail)

    def read(self, offset: int, length: int) -> bytes:
        assert length < 1_000_000
        assert offset + length <= self.size_bytes
        self.given_bytes += length
        found = bytearray(length)
        for start, piece in self.pieces.items():
            first, last = max(offset, start), min(offset + length, start + len(piece))
            if first < last:
                found[first - offset : last - offset] = piece[first - start : last - start]
        return bytes(found)


LIES: dict[str, tuple[Any, str]] = {
    "compressed": ({"method": 8}, r"data/0 is compressed \(method 8"),
    "packed_smaller": ({"packed": 10}, "is compressed"),
    "packed_larger": ({"packed": 10_000}, "is compressed"),
    "encrypted": ({"flags": 0x0809}, "encrypted"),
    "size_too_large": ({"size": 10_000}, "overlaps"),
    "size_beyond_everything": ({"size": 2**63}, "overlaps"),
    "offset_beyond_the_end": ({"header_offset": 2**40}, "overlaps"),
    "local_method": ({"local_method": 8}, "disagrees"),
    "local_encryption": ({"local_flags": 0x0809}, "disagrees"),
    "local_descriptor": ({"local_flags": 0x0800}, "disagrees"),
    "local_name": ({"local_name": "archive/data/7"}, "another name"),
    "local_size": ({"flags": 0x0800, "local_size": 5}, "says 5 bytes"),
    "parent": ({"name": "archive/../data/0"}, "leaves the archive"),
    "absolute": ({"name": "/archive/data/0"}, "leaves the archive"),
    "backslash": ({"name": "archive\\..\\data"}, "leaves the archive"),
    "nul": ({"name": "archive/da\0ta"}, "leaves the archive"),
    "folder": ({"name": "archive/data/"}, "leaves the archive"),
    "empty_name": ({"name": ""}, "leaves the archive"),
    "another_root": ({"name": "other/data/0"}, "not in one folder"),
    "twice": ({"name": "archive/data.pkl", "local_name": "archive/data.pkl"}, "two members called archive/data.pkl"),
}


@pytest.mark.parametrize(
    ("lie", "zip64"),
    [(lie, zip64) for lie in LIES for zip64 in (True, False) if zip64 or "beyond" not in lie],
)
def test_lies_are_refused_by_name(lie: str, zip64: bool) -> None:
    changes, expected = LIES[lie]
    with pytest.raises(CheckpointError, match=expected) as caught:
        contents(zip_bytes(with_member(MEMBERS, "data/0", **changes), zip64=zip64))
    assert "memory.bin" in str(caught.value)


def test_entries_that_share_bytes_are_refused() -> None:
    members = [*MEMBERS, Member("archive/data/2", b"x" * 10)]
    at = zip_bytes(members).find(b"PK\3\4", 200)
    with pytest.raises(CheckpointError, match="overlaps"):
        contents(zip_bytes(with_member(members, "data/2", header_offset=at)))


def test_padding_cannot_push_data_over_the_next_member() -> None:
    data = bytearray(zip_bytes(MEMBERS))
    at = data.find(b"PK\3\4", 4)
    data[at + 28 : at + 30] = struct.pack("<H", 5000)
    with pytest.raises(CheckpointError, match="pushes its data over the next member"):
        contents(bytes(data))


def test_one_volume_of_several_is_refused() -> None:
    data = bytearray(zip_bytes(MEMBERS, zip64=False))
    data[-18:-16] = struct.pack("<H", 1)
    with pytest.raises(CheckpointError, match="one volume"):
        contents(bytes(data))


def test_the_same_header_for_two_entries_is_refused() -> None:
    with pytest.raises(CheckpointError, match="overlaps"):
        contents(zip_bytes(with_member(MEMBERS, "data/0", header_offset=0)))


GOOD = zip_bytes(MEMBERS)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (GOOD[:-1], "cut off"),
        (GOOD[: len(GOOD) // 2], "cut off"),
        (GOOD + b"more", "cut off"),
        (GOOD[:-2] + b"\x05\x00", "comment"),
        (zip_bytes(MEMBERS, count=2), "belong to no entry"),
        (zip_bytes(MEMBERS, count=4), "shorter than its number of entries"),
        (zip_bytes(MEMBERS, count=2**40), "announces"),
        (b"PK\3\4", "cut off"),
    ],
)
def test_damaged_directories_are_refused(data: bytes, expected: str) -> None:
    with pytest.raises(CheckpointError, match=expected):
        contents(data)


@settings(deadline=None, max_examples=300)
@given(where=st.floats(0, 0.9999), value=st.integers(0, 255), cut=st.none() | st.floats(0, 1))
def test_damaged_archives_are_members_or_an_error_of_ours(where: float, value: int, cut: float | None) -> None:
    data = bytearray(GOOD)
    data[int(where * len(data))] = value
    try:
        contents(bytes(data if cut is None else data[: int(cut * len(data))]))
    except WeightsError as error:
        assert "memory.bin" in str(error)
