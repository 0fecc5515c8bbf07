"""Proof that what was written is what was read, tensor by tensor, at a cost that nobody wants to switch off.

While a file is written, every byte that leaves its source passes a witness, which keeps the crc32c of each tensor's
pieces; no extra read is needed. Afterwards the result is looked at afresh: its header is parsed from the target and
held against the source's names, dtypes and shapes, and its bytes are compared by checksum. That of an object was
computed by Cloud Storage from what it stored, that of a file from what the disk gave back while it was written; it must
be the one that the header and the source's tensors, in the header's order, add up to. So nothing is read twice through
the network, and a disk is asked while its answer is still in the cache. A file of an earlier process is read whole.
"""

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from streamway.errors import WeightsError
from streamway.storage import open_reader
from streamway.storage.digests import combine_crc32c, crc32c
from streamway.storage.readers import ObjectReader
from streamway.storage.rows import read_rows
from streamway.storage.segments import ByteReader, Computed, Extent, Segment
from streamway.weights.safetensors_file import Header, TensorEntry, read_header
from streamway.weights.shards import PIECE_BYTES, Shard
from streamway.weights.tensors import SourceTensor
from streamway.weights.windows import read_into
from streamway.weights.wording import show_name

_BUFFER_BYTES = 2 * 1024 * 1024
_READERS = 2

Spans = Sequence[tuple[int, int]]
ReadAgain = Callable[[int, int], int]
"""Returns the crc32c of what is between two offsets of a source."""


class WitnessReader:
    """A reader that keeps the crc32c of what it read, cut where tensors begin and end.

    Args:
        reader: What to read from.
        spans: (offset, end) of each tensor that is copied as it is.
    """

    def __init__(self, reader: ByteReader, spans: Spans) -> None:
        self._reader = reader
        self._cuts = sorted({edge for span in spans for edge in span})
        self._seen: dict[int, tuple[int, int]] = {}
        self._starts: list[int] = []
        self._lock = threading.Lock()

    @property
    def uri(self) -> str:
        return self._reader.uri

    @property
    def size_bytes(self) -> int:
        return self._reader.size_bytes

    @property
    def version(self) -> str:
        return str(getattr(self._reader, "version", ""))

    def read(self, offset: int, length: int) -> bytes:
        data = bytearray(length)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def read_into(self, offset: int, view: memoryview) -> None:
        self.read_rows(offset, [view])

    def read_rows(self, offset: int, rows: Sequence[memoryview]) -> None:
        self.sum_rows(offset, rows)

    def sum_rows(self, offset: int, rows: Sequence[memoryview]) -> list[int]:
        # A checksum of what was just read comes out of the processor's cache; a request to a bucket stays whole.
        in_blocks = hasattr(self._reader, "fileno") and sum(map(len, rows)) > _BUFFER_BYTES
        if not in_blocks:
            read_rows(self._reader, offset, rows)
        sums = []
        for row in rows:
            sums.append(self._see(offset, row, in_blocks=in_blocks))
            offset += len(row)
        return sums

    def _see(self, offset: int, row: memoryview, *, in_blocks: bool) -> int:
        """Keep the checksums of a row, reading it first, block by block, where it is not filled yet."""
        total = 0
        for start, stop in self._cut(offset, offset + len(row)):
            checksum = 0
            for at in range(start, stop, _BUFFER_BYTES):
                block = row[at - offset : min(at + _BUFFER_BYTES, stop) - offset]
                if in_blocks:
                    read_into(self._reader, at, block)
                checksum = crc32c(block, checksum)
            with self._lock:
                self._seen[start] = (stop, checksum)
            total = combine_crc32c(total, checksum, stop - start)
        return total

    def _cut(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Cut a range where tensors begin and end."""
        while start < end:
            following = bisect_right(self._cuts, start)
            stop = min(self._cuts[following] if following < len(self._cuts) else end, end)
            yield start, stop
            start = stop

    def checksum(self, start: int, end: int, read_again: ReadAgain | None = None) -> int:
        """Return the crc32c of a range once all is written, reading again only what did not pass here.

        That is what an earlier, interrupted process had moved already. It is read from this source, or by `read_again`.
        """
        read_again = read_again or (lambda begin, stop: checksum_range(self._reader, begin, stop))
        if len(self._starts) != len(self._seen):
            self._starts = sorted(self._seen)
        total, position = 0, start
        while position < end:
            stop, checksum = self._seen.get(position, (end + 1, 0))
            if stop > end:
                following = bisect_right(self._starts, position)
                stop = min([end, *self._starts[following : following + 1]])
                checksum = read_again(position, stop)
            total = combine_crc32c(total, checksum, stop - position)
            position = stop
        return total


class Witness:
    """Keeps what the sources of one conversion said while they were read."""

    def __init__(self, tensors: Iterable[SourceTensor]) -> None:
        spans: dict[str, list[tuple[int, int]]] = {}
        readers: dict[str, ByteReader] = {}
        for tensor in tensors:
            readers[tensor.reader.uri] = tensor.reader
            if tensor.is_row and tensor.size_bytes:
                spans.setdefault(tensor.reader.uri, []).append(tensor.span)
        self._readers = {uri: WitnessReader(reader, spans.get(uri, [])) for uri, reader in readers.items()}
        self._made: dict[str, dict[int, int]] = {}

    def segments(self, shard: Shard) -> list[Segment]:
        """Return a shard's row of bytes, so that every byte is seen on its way."""
        row: list[Segment] = [shard.header]
        for tensor in shard.tensors:
            row += self._watched(tensor)
        return row

    def _watched(self, tensor: SourceTensor) -> list[Segment]:
        reader = self._readers[tensor.reader.uri]
        if tensor.is_row:
            return list(replace(tensor, reader=reader).segments(PIECE_BYTES))
        # The empty extent ties the plan's identity to the version of the source, which computed pieces do not show.
        anchor = Extent(reader=reader, offset_bytes=tensor.offset_bytes, length_bytes=0)
        pieces = [piece for piece in tensor.segments(PIECE_BYTES) if isinstance(piece, Computed)]
        return [anchor, *(self._kept(tensor.name, index, piece) for index, piece in enumerate(pieces))]

    def _kept(self, name: str, index: int, piece: Computed) -> Computed:
        made = self._made.setdefault(name, {})

        def make() -> bytes:
            data = piece.make()
            made[index] = crc32c(data)
            return data

        return Computed(make=make, length_bytes=piece.length_bytes)

    def checksum(self, tensor: SourceTensor, read_again: ReadAgain | None = None) -> int:
        """Return the crc32c of a tensor's bytes as its source has them; see `WitnessReader.checksum`."""
        if tensor.is_row:
            return self._readers[tensor.reader.uri].checksum(*tensor.span, read_again)
        made, total = self._made.get(tensor.name, {}), 0
        for index, piece in enumerate(tensor.segments(PIECE_BYTES)):
            if isinstance(piece, Computed):
                checksum = made[index] if index in made else crc32c(piece.make())
                total = combine_crc32c(total, checksum, piece.length_bytes)
        return total


@dataclass(frozen=True, kw_only=True)
class ProvedTensor:
    """One tensor that is equal in source and result."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    source: str
    file: str
    crc32c: int


def prove_shard(
    shard: Shard, uri: str, witness: Witness, *, disk_crc32c: int | None = None, promised: bool = False
) -> tuple[ProvedTensor, ...]:
    """Hold a written file against the sources of its tensors.

    Args:
        shard: What it was to be.
        uri: Where it is.
        witness: What the sources said.
        disk_crc32c: Of what the disk gave back when the file was written; None to read it now.
        promised: Whether the whole source was held to a SHA-256 while it passed, in this process and those before it.
            Then what an earlier process moved need not come from far a second time: it is read from the result.

    Raises:
        WeightsError: a tensor is missing, has another dtype or shape, or other bytes.
    """
    reader = open_reader(uri)
    header = read_header(reader)
    entries = {entry.name: entry for entry in header.entries}
    expected = {tensor.name: tensor for tensor in shard.tensors}
    if set(entries) != set(expected):
        odd = sorted(set(entries) ^ set(expected))
        raise _difference(uri, odd[0], "is not in both the source and the result")
    for name, tensor in expected.items():
        if (entries[name].dtype, entries[name].shape) != (tensor.dtype, tensor.shape):
            raise _difference(uri, name, "has another dtype or shape than its source")
    sources = {
        name: witness.checksum(tensor, _reading_result(reader, header, entries[name], tensor) if promised else None)
        for name, tensor in expected.items()
    }
    stored = disk_crc32c
    if isinstance(reader, ObjectReader):
        stored = reader.stored.crc32c
    if stored is None:
        _prove_by_reading(reader, header, sources)
    else:
        _prove_by_sum(reader, header, sources, stored)
    return tuple(_proved(shard, tensor, sources[tensor.name]) for tensor in shard.tensors)


def _reading_result(reader: ByteReader, header: Header, entry: TensorEntry, tensor: SourceTensor) -> ReadAgain:
    """Return what reads a source's range where it is in the result."""
    shift = header.data_start + entry.begin - tensor.span[0]
    return lambda begin, end: checksum_range(reader, begin + shift, end + shift)


def _prove_by_sum(reader: ByteReader, header: Header, sources: dict[str, int], stored: int) -> None:
    """Compare what the header and the sources add up to with the checksum of what is stored."""
    total = crc32c(reader.read(0, header.data_start))
    for entry in header.entries:
        total = combine_crc32c(total, sources[entry.name], entry.size_bytes)
    if stored != total:
        raise _difference(
            reader.uri, header.entries[0].name if header.entries else "", "or one after it has other bytes"
        )


def _prove_by_reading(reader: ByteReader, header: Header, sources: dict[str, int]) -> None:
    def compare(entry: TensorEntry) -> None:
        start = header.data_start + entry.begin
        if checksum_range(reader, start, start + entry.size_bytes) != sources[entry.name]:
            raise _difference(reader.uri, entry.name, "has other bytes than its source")

    with ThreadPoolExecutor(_READERS) as pool:
        for _ in pool.map(compare, header.entries):
            pass


def _proved(shard: Shard, tensor: SourceTensor, checksum: int) -> ProvedTensor:
    return ProvedTensor(
        name=tensor.name,
        dtype=tensor.dtype.code,
        shape=tensor.shape,
        size_bytes=tensor.size_bytes,
        source=tensor.reader.uri,
        file=shard.name,
        crc32c=checksum,
    )


def _difference(uri: str, name: str, what: str) -> WeightsError:
    return WeightsError(
        f"{uri}: tensor {show_name(name)} {what}; the result must not be used.",
        next_step="Delete the file and run again; if it happens again, check the disk or the network in between.",
    )


_buffers = threading.local()


def checksum_range(reader: ByteReader, start: int, end: int) -> int:
    """Return the crc32c of a range, read through one small buffer of this thread."""
    if not hasattr(_buffers, "buffer"):
        _buffers.buffer = bytearray(_BUFFER_BYTES)
    view, total = memoryview(_buffers.buffer), 0
    for offset in range(start, end, _BUFFER_BYTES):
        part = view[: min(_BUFFER_BYTES, end - offset)]
        read_into(reader, offset, part)
        total = crc32c(part, total)
    return total
