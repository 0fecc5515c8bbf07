"""The bytes of a file by offset, whatever segments they lie in, with as few reads as possible.

A checkpoint's small tensors lie close together, a few header bytes apart; over a network one read of a stretch of them
costs less than one read for each.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate

from streamway.errors import TransferError
from streamway.storage.readers import VersionedReader
from streamway.storage.segments import ByteReader, Computed, Extent, FilePlan, segment_length

_MOST_GAP_BYTES = 64 * 1024
_MOST_STRETCH_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class _Piece:
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


class SegmentedSource:
    """The bytes of a plan by offset."""

    def __init__(self, plan: FilePlan) -> None:
        self._segments = plan.segments
        self._ends = list(accumulate(segment_length(segment) for segment in plan.segments))

    def fill(self, offset: int, view: memoryview) -> None:
        """Fill `view` with the file's bytes from `offset`.

        Raises:
            TransferError: a segment is not as long as it promised to be.
        """
        stretch: list[_Piece] = []
        for piece in self._pieces(offset, view):
            if stretch and _continues(stretch, piece):
                stretch[-1] = replace(stretch[-1], length=stretch[-1].length + piece.length)
            elif stretch and _is_near(stretch, piece):
                stretch.append(piece)
            else:
                _read(stretch, view)
                stretch = [piece]
        _read(stretch, view)

    def _pieces(self, offset: int, view: memoryview) -> Iterator[_Piece]:
        """Put what is in memory into `view` and yield what must be read."""
        index = bisect_right(self._ends, offset)
        at = 0
        while at < len(view):
            segment = self._segments[index]
            inside = offset + at - (self._ends[index] - segment_length(segment))
            length = min(segment_length(segment) - inside, len(view) - at)
            if not isinstance(segment, Extent):
                data = _made(segment) if isinstance(segment, Computed) else segment
                view[at : at + length] = memoryview(data)[inside : inside + length]
            elif length:
                yield _Piece(segment.reader, segment.offset_bytes + inside, at, length)
            at += length
            index += 1


def _made(segment: Computed) -> bytes:
    data = segment.make()
    if len(data) != segment.length_bytes:
        raise TransferError(f"A computed segment is {len(data)} bytes long, {segment.length_bytes} were promised.")
    return data


def _continues(stretch: list[_Piece], piece: _Piece) -> bool:
    """Tell whether a piece follows the last one in its source and in memory, so that both are one read."""
    last = stretch[-1]
    seamless = piece.reader is last.reader and (piece.start, piece.at) == (last.end, last.at + last.length)
    return seamless and (len(stretch) == 1 or piece.end - stretch[0].start <= _MOST_STRETCH_BYTES)


def _is_near(stretch: list[_Piece], piece: _Piece) -> bool:
    """Tell whether reading on over a gap is cheaper than another request."""
    last = stretch[-1]
    remote = piece.reader is last.reader and "://" in piece.reader.uri
    close = 0 <= piece.start - last.end <= _MOST_GAP_BYTES
    return remote and close and piece.end - stretch[0].start <= _MOST_STRETCH_BYTES


def _read(stretch: list[_Piece], view: memoryview) -> None:
    if len(stretch) == 1:
        piece = stretch[0]
        _read_into(piece.reader, piece.start, view[piece.at : piece.at + piece.length])
    elif stretch:
        first = stretch[0]
        memory = memoryview(bytearray(stretch[-1].end - first.start))
        _read_into(first.reader, first.start, memory)
        for piece in stretch:
            offset = piece.start - first.start
            view[piece.at : piece.at + piece.length] = memory[offset : offset + piece.length]


def _read_into(reader: ByteReader, start: int, view: memoryview) -> None:
    if isinstance(reader, VersionedReader):
        reader.read_into(start, view)
        return
    data = reader.read(start, len(view))
    if len(data) != len(view):
        raise TransferError(f"{reader.uri}: asked for {len(view)} bytes at {start}, got {len(data)}.")
    view[:] = data
