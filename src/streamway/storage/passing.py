"""The hash of a whole source of which most, but not all, passes by on its way to somewhere else.

A checkpoint at the Hub is converted while it is read, and what lies between its tensors goes nowhere. Its owner has
promised one SHA-256 of all of it, so what does not pass is read for the hash alone.
"""

from collections.abc import Mapping
from typing import Any, Self

from streamway.errors import ChecksumError, TransferError
from streamway.storage.digests import Buffer, resume_sha256, start_sha256
from streamway.storage.segments import SourcePromise

_READ_BYTES = 1024 * 1024


class PassingHash:
    """The SHA-256 of one source, fed in order by what passes.

    Args:
        promise: The source, and what it must hash to.
    """

    def __init__(self, promise: SourcePromise) -> None:
        self._promise = promise
        self._hash = start_sha256()
        self._position = 0

    def within(self, begin: int, end: int) -> tuple[int, int]:
        """Return what of a range of the file passes by here; an empty range where nothing does."""
        begin = max(begin, self._promise.begin_bytes)
        return begin, max(begin, min(end, self._promise.end_bytes))

    def add(self, start: int, data: Buffer, gaps: Mapping[int, Buffer]) -> None:
        """Take bytes from `start` on, and before them what was left out since the last ones.

        Args:
            start: Where they are in the source; never before the end of the last ones.
            data: The bytes.
            gaps: What is in memory of the source besides, by its offset.

        Raises:
            TransferError: they come out of order, or what was left out cannot be read.
        """
        if start < self._position:
            raise TransferError(f"{self._promise.reader.uri}: byte {start} came after byte {self._position}.")
        self._pass_over(start, gaps)
        self._hash.update(data)
        self._position = start + len(data)

    def finish(self) -> None:
        """Read what comes after the last bytes that passed, and hold the whole source to its promise.

        Raises:
            ChecksumError: it is not what its owner promised.
        """
        reader = self._promise.reader
        self._pass_over(reader.size_bytes, {})
        found = self._hash.hexdigest()
        if found != self._promise.sha256:
            raise ChecksumError(
                f"{reader.uri}: its {reader.size_bytes} bytes have sha256 {found}, expected {self._promise.sha256}. "
                "Nothing that was made of it was kept.",
                next_step="Run again; if it happens again, the source holds other bytes than it promises.",
            )

    def _pass_over(self, end: int, gaps: Mapping[int, Buffer]) -> None:
        while self._position < end:
            length = min(end - self._position, _READ_BYTES)
            gap = gaps.get(self._position)
            data = self._promise.reader.read(self._position, length) if gap is None else gap
            self._hash.update(data)
            self._position += len(data)

    def put_down(self) -> dict[str, Any] | None:
        """Return what is needed to go on later; None where this build of OpenSSL cannot tell."""
        state = self._hash.state()
        return {"position": self._position, "state": state.hex()} if state else None

    @classmethod
    def take_up(cls, promise: SourcePromise, noted: Mapping[str, Any]) -> Self | None:
        """Go on from what was put down; None where it cannot be done here."""
        passing = cls(promise)
        resumed = resume_sha256(bytes.fromhex(noted["state"]))
        if resumed is None:
            return None
        passing._hash, passing._position = resumed, int(noted["position"])
        return passing
