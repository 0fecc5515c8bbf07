"""The bytes of a file by offset, whatever segments they lie in, with as few reads as possible.

A checkpoint's tensors lie close together, a few header bytes apart; one read of a stretch of them costs less than one
read for each, over a network above all.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import cast

from streamway.errors import TransferError
from streamway.storage.digests import crc32c, join_crc32c
from streamway.storage.readers import SummingReader, VersionedReader
from streamway.storage.scatter import Scatter
from streamway.storage.segments import ByteReader, Computed, Extent, FilePlan, segment_length

_MOST_GAP_BYTES = 64 * 1024
_MOST_LOCAL_GAP_BYTES = 4 * 1024
"""On a disk a read costs a call and no request: only the headers between small tensors are worth reading along."""
_MOST_GAPS_BYTES = 1024 * 1024
"""All gaps of one call together: a checkpoint could have any number of them, and they are kept in memory."""
_NOWHERE = -1


@dataclass(frozen=True)
class Piece:
    """Bytes of one reader, and where they go.

    Args:
        reader: Their source.
        start: Offset in it.
        at: Offset in the memory to be filled.
        length: How many.
    """

    reader: ByteReader
    start: int
    at: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length


Gaps = dict[int, memoryview]
"""Bytes of a source that lie between those that were wanted and came along with them, by their offset."""


@dataclass
class Filled:
    """What is known of memory that was filled.

    Args:
        gaps: What was read of the sources besides, because it lay between.
        sums: (offset in the memory, bytes, crc32c) of the pieces whose checksum is known.
    """

    gaps: Gaps = field(default_factory=dict)
    sums: list[tuple[int, int, int]] = field(default_factory=list)

    def checksum(self, view: memoryview) -> int:
        """Return the crc32c of all of it, looking at the bytes only where not every piece's is known."""
        if sum(length for _, length, _ in self.sums) < len(view):
            return crc32c(view)
        return join_crc32c((checksum, length) for _, length, checksum in sorted(self.sums))


class SegmentedSource:
    """The bytes of a plan by offset."""

    def __init__(self, plan: FilePlan) -> None:
        self._segments = plan.segments
        self._ends = list(accumulate(segment_length(segment) for segment in plan.segments))

    def fill(self, offset: int, view: memoryview) -> Filled:
        """Fill `view` with the file's bytes from `offset`.

        Raises:
            TransferError: a segment is not as long as it promised to be.
        """
        filled = Filled()
        stretch: list[Piece] = []
        budget = _MOST_GAPS_BYTES
        for piece in self._put_made(offset, view, filled):
            gap = _gap_before(stretch, piece)
            if gap is None or gap > budget:
                _read(stretch, view, filled)
                stretch, gap = [], 0
            budget -= gap
            stretch.append(piece)
        _read(stretch, view, filled)
        return filled

    def pieces(self, offset: int, length: int) -> Iterator[Piece]:
        """Yield what `length` bytes of the file from `offset` take from readers, without reading it."""
        for index, inside, at, count in self._within(offset, length):
            segment = self._segments[index]
            if isinstance(segment, Extent) and count:
                yield Piece(segment.reader, segment.offset_bytes + inside, at, count)

    def _put_made(self, offset: int, view: memoryview, filled: Filled) -> Iterator[Piece]:
        """Put what is in memory into `view` and yield what must be read."""
        for index, inside, at, count in self._within(offset, len(view)):
            segment = self._segments[index]
            if not isinstance(segment, Extent):
                data = _made(segment) if isinstance(segment, Computed) else segment
                view[at : at + count] = memoryview(data)[inside : inside + count]
                filled.sums.append((at, count, crc32c(view[at : at + count])))
            elif count:
                yield Piece(segment.reader, segment.offset_bytes + inside, at, count)

    def _within(self, offset: int, length: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (segment, offset in it, offset in the range, bytes) for each segment that a range touches."""
        index, at = bisect_right(self._ends, offset), 0
        while at < length:
            size = segment_length(self._segments[index])
            inside = offset + at - (self._ends[index] - size)
            count = min(size - inside, length - at)
            yield index, inside, at, count
            at, index = at + count, index + 1


def _made(segment: Computed) -> bytes:
    data = segment.make()
    if len(data) != segment.length_bytes:
        raise TransferError(f"A computed segment is {len(data)} bytes long, {segment.length_bytes} were promised.")
    return data


def _gap_before(stretch: list[Piece], piece: Piece) -> int | None:
    """Return how many bytes lie between a piece and those before it; None where they need a read of their own."""
    if not stretch:
        return 0
    last = stretch[-1]
    gap = piece.start - last.end
    if piece.reader is not last.reader or gap < 0:
        return None
    most = _MOST_GAP_BYTES if "://" in piece.reader.uri else _MOST_LOCAL_GAP_BYTES
    return gap if gap <= most else None


def _read(stretch: list[Piece], view: memoryview, filled: Filled) -> None:
    """Read pieces that follow each other in their source, and what lies between them."""
    rows: list[memoryview] = []
    places: list[int] = []
    position, begun = 0, 0
    for index, piece in enumerate(stretch):
        if index and piece.start > position:
            filled.gaps[position] = memoryview(bytearray(piece.start - position))
            rows.append(filled.gaps[position])
            places.append(_NOWHERE)
            begun = piece.at
        elif index and piece.at == stretch[index - 1].at + stretch[index - 1].length:
            rows.pop()  # seamless in memory too, so that it is one row with the one before
            places.pop()
        else:
            begun = piece.at
        rows.append(view[begun : piece.at + piece.length])
        places.append(begun)
        position = piece.end
    if rows:
        sums = read_rows(stretch[0].reader, stretch[0].start, rows)
        for at, row, checksum in zip(places, rows, sums, strict=False):
            if at != _NOWHERE:
                filled.sums.append((at, len(row), checksum))


def read_rows(reader: ByteReader, start: int, rows: Sequence[memoryview]) -> list[int]:
    """Fill pieces of memory from one stretch of any reader.

    Returns:
        The crc32c of each piece where the reader knows it, else nothing.

    Raises:
        TransferError: the reader gave less than was asked for.
    """
    # isinstance() of a protocol looks for all its members, which is slow for what is asked with every part.
    if hasattr(reader, "sum_rows"):
        return cast(SummingReader, reader).sum_rows(start, rows)
    if hasattr(reader, "read_rows"):
        cast(VersionedReader, reader).read_rows(start, rows)
        return []
    memory = Scatter(rows)
    data = reader.read(start, memory.size_bytes)
    if len(data) != memory.size_bytes:
        raise TransferError(f"{reader.uri}: asked for {memory.size_bytes} bytes at {start}, got {len(data)}.")
    memory.put(data)
    return []
