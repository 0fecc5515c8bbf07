"""Where the parts of a file go until it is complete, whatever kind of place that is.

A target keeps what it needs to go on after the process was killed, and shows the file under its final name only when
all of it is there and verified.
"""

import hashlib
from dataclasses import dataclass
from typing import Protocol

from streamway.storage.digests import Checksums
from streamway.storage.passing import PassingHash
from streamway.storage.segments import Computed, FilePlan, WrittenFile


@dataclass(frozen=True, kw_only=True)
class Position:
    """From where a transfer goes on.

    Args:
        part_bytes: How the file is cut.
        number: Index of the first part that must be asked for.
        checksums: Of everything before it.
        source: Of what has passed of the plan's source, where that was promised.
    """

    part_bytes: int
    number: int
    checksums: Checksums
    source: PassingHash | None


class Target(Protocol):
    """A file on its way."""

    def find_complete(self) -> WrittenFile | None:
        """Return the file if it is already there, whole and the same."""

    def begin(self, part_bytes: int, most_part_bytes: int) -> Position:
        """Take up what an earlier process left, or start anew."""

    def read_back(self, number: int, view: memoryview) -> int | None:
        """Fill `view` with a part that is already there and return its crc32c; None where it is not."""

    def write_part(self, number: int, view: memoryview, checksum: int) -> None:
        """Take one part, in any order, from any thread."""

    def settle(self, number: int, checksums: Checksums, source: PassingHash | None) -> None:
        """Note that all parts before `number` are written, with the hashes so far; the next part waits for it."""

    def save(self) -> None:
        """Put down what was noted where a kill leaves it; by one thread at a time, beside the others' work."""

    def finish(self, checksums: Checksums, moved_bytes: int) -> WrittenFile:
        """Show the file under its name."""

    def discard(self) -> None:
        """Throw away what is there, because it is not what was promised."""

    def leave(self) -> None:
        """Let go of a file that is not finished, so that a later call can take it up."""


def start_position(plan: FilePlan, part_bytes: int, *, sha256: bool) -> Position:
    """Return where a file begins of which nothing is there."""
    source = PassingHash(plan.source) if plan.source else None
    return Position(part_bytes=part_bytes, number=0, checksums=Checksums(sha256=sha256), source=source)


def fingerprint(plan: FilePlan) -> str:
    """Return what tells one plan's bytes from another's, without reading them.

    The promised hash is the best there is; without one, the row of segments with the versions of their sources.
    """
    if plan.sha256:
        return f"sha256-{plan.sha256}"
    row = hashlib.sha256()
    for segment in plan.segments:
        if isinstance(segment, bytes):
            row.update(b"bytes %d " % len(segment) + hashlib.sha256(segment).digest())
        elif isinstance(segment, Computed):
            row.update(b"computed %d " % segment.length_bytes)
        else:
            reader = segment.reader
            source = f"{reader.uri} {getattr(reader, 'version', '')} {reader.size_bytes}"
            row.update(f"{source} {segment.offset_bytes} {segment.length_bytes} ".encode())
    return f"plan-{row.hexdigest()}"
