"""What a file is made of, before it exists: the one vocabulary of everything that moves bytes.

A file to be written is a row of segments: bytes we made ourselves (a safetensors header), and extents of something
that can be read by offset (a file of the Hub, a tensor inside a torch archive, an object in a bucket). Pulling,
converting, realigning and copying are the same act with different rows, so one engine serves them all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol


class ByteReader(Protocol):
    """Bytes that can be read by offset, from any thread.

    A reader is bound to one version of its source (generation, ETag, inode and mtime); if that version is gone,
    reads raise SourceChangedError instead of mixing two versions.
    """

    @property
    def uri(self) -> str:
        """Where the bytes are, for messages: a path, gs://, or https:// without its query."""

    @property
    def size_bytes(self) -> int:
        """Length of the source."""

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`.

        Raises:
            TransferError: fewer bytes came than were promised, or the source failed for good.
        """


@dataclass(frozen=True, kw_only=True)
class Extent:
    """`length_bytes` bytes of a reader, from `offset_bytes`."""

    reader: ByteReader
    offset_bytes: int
    length_bytes: int


@dataclass(frozen=True, kw_only=True)
class Computed:
    """`length_bytes` bytes that are made when they are needed, such as a strided view made contiguous.

    `make` is called at most once for each attempt at the part that holds it, and must return the same bytes each
    time.
    """

    make: Callable[[], bytes]
    length_bytes: int


Segment = bytes | Extent | Computed


def segment_length(segment: Segment) -> int:
    """Length of a segment in bytes."""
    return len(segment) if isinstance(segment, bytes) else segment.length_bytes


@dataclass(frozen=True, kw_only=True)
class SourcePromise:
    """What the whole of a source must hash to, although a file takes only parts of it.

    Args:
        reader: The source, for what does not pass.
        sha256: Lower-case hex.
        begin_bytes: Where in the file the bytes begin that are hashed as they pass. Those between here and the end
            must come from the source in ascending order, because a hash follows in order.
        end_bytes: Where they end.
    """

    reader: ByteReader
    sha256: str
    begin_bytes: int
    end_bytes: int


@dataclass(frozen=True, kw_only=True)
class FilePlan:
    """One file to be written.

    Args:
        uri: Where it goes: a local path or gs://.
        segments: Its bytes, in order.
        sha256: What the whole file must hash to, as lower-case hex; None where nobody promised anything.
        source: What its one source must hash to, where that passes here for the only time.
    """

    uri: str
    segments: Sequence[Segment]
    sha256: str | None = None
    source: SourcePromise | None = None

    @cached_property
    def size_bytes(self) -> int:
        """Length of the file; asked for with every part, and a plan can have tens of thousands of segments."""
        return sum(segment_length(segment) for segment in self.segments)


@dataclass(frozen=True, kw_only=True)
class WrittenFile:
    """One file as it now stands.

    Args:
        uri: Where it is.
        size_bytes: Its length.
        sha256: Lower-case hex of the whole file; None only where the caller asked not to compute it.
        crc32c: The unsigned 32-bit Castagnoli checksum of the whole file.
        generation: The object's generation in Cloud Storage; 0 for a local file.
        moved_bytes: How many of its bytes travelled in this call; 0 when it was already there.
        read_back: Whether the checksum is also that of what the disk gave back; Cloud Storage compares by itself.
    """

    uri: str
    size_bytes: int
    sha256: str | None
    crc32c: int
    generation: int
    moved_bytes: int
    read_back: bool = False


Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all), from any thread, at most a few times a second."""
