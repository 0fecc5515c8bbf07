"""A file on disk, written beside its place with a journal of its parts, and renamed when it is whole.

A half-written file can be read again, so its hash is taken anew from disk when a transfer goes on, and each part is
compared with its checksum in the journal. Whoever writes it holds a lock on it; another run of the same model then
writes a file of its own beside it, and the first that is whole wins.

Where that is asked for, each part is also read back as soon as it is written, before the journal speaks of it. It is
then still in the processor's cache, and another thread writes meanwhile, which makes it cheaper than reading the whole
file when it is complete.
"""

import contextlib
import errno
import fcntl
import json
import os
import threading
import uuid
from dataclasses import replace
from pathlib import Path

from streamway.errors import ChecksumError
from streamway.storage.addresses import local_path
from streamway.storage.digests import Checksums, crc32c
from streamway.storage.files import IN_FLIGHT
from streamway.storage.passing import PassingHash
from streamway.storage.refusals import named_refusals
from streamway.storage.segments import FilePlan, WrittenFile
from streamway.storage.targets import Position, fingerprint, start_position

_ATTRIBUTE = "user.streamway"
_FOLDER_ATTEMPTS = 100
_BLOCK_BYTES = 2 * 1024 * 1024
"""One write or read at most: it fits into a cache, and a part between disks is one call (docs/transfer.md)."""
_CANNOT_RESERVE = (errno.EOPNOTSUPP, errno.EINVAL)
_CANNOT_LOCK = (errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS)
"""Of filesystems that know no locks, some network ones; there two runs at once must not share a folder."""


class LocalTarget:
    """A file on disk, written as `.transfer/NAME.partial` with a journal, then renamed.

    Args:
        plan: What to write.
        sha256: Whether to compute SHA-256 where the plan promises none.
        read_back: Whether each part is read again once it is written, and compared.
    """

    def __init__(self, plan: FilePlan, *, sha256: bool, read_back: bool = False) -> None:
        self._plan = plan
        self._reads_back = read_back
        self._sha256 = sha256 or plan.sha256 is not None
        self._path = local_path(plan.uri)
        self._folder = self._path.parent / IN_FLIGHT
        self._partial = self._folder / f"{self._path.name}.partial"
        self._journal = self._folder / f"{self._path.name}.journal"
        self._identity = fingerprint(plan)
        self._part_bytes = 0
        self._kept: dict[int, int] = {}
        self._descriptor = -1
        self._journal_descriptor = -1
        # The kernel lets one thread at a time write to a file, and threads that wait for it there burn the processor.
        self._writing = threading.Lock()

    def find_complete(self) -> WrittenFile | None:
        try:
            status = self._path.stat()
            noted = json.loads(os.getxattr(self._path, _ATTRIBUTE)) if hasattr(os, "getxattr") else {}
        except (OSError, ValueError):
            return None
        same = noted.get("plan") == self._identity and noted.get("mtime_ns") == status.st_mtime_ns
        if not same or status.st_size != self._plan.size_bytes or (self._sha256 and not noted.get("sha256")):
            return None
        return self._written(noted["sha256"], noted["crc32c"], 0)

    def begin(self, part_bytes: int, most_part_bytes: int) -> Position:
        with named_refusals(self._path, "written"):
            return self._begin(part_bytes, most_part_bytes)

    def _begin(self, part_bytes: int, most_part_bytes: int) -> Position:
        self._descriptor = self._open_alone()
        self._part_bytes = self._read_journal(most_part_bytes) or part_bytes
        fresh = not self._kept
        truncate = os.O_TRUNC if fresh else 0
        if fresh:
            os.ftruncate(self._descriptor, 0)
        self._reserve()
        self._journal_descriptor = self._open(self._journal, os.O_WRONLY | os.O_APPEND | truncate)
        if fresh:
            os.write(self._journal_descriptor, self._heading().encode())
        return start_position(self._plan, self._part_bytes, sha256=self._sha256)

    def _open_alone(self) -> int:
        """Open the partial file for nobody but us: the one that an earlier run left, or one of our own beside it."""
        for _ in range(_FOLDER_ATTEMPTS):
            descriptor = self._open(self._partial, os.O_RDWR)
            if not _lock(descriptor):
                os.close(descriptor)
                own = f"{self._path.name}.{uuid.uuid4().hex[:8]}"
                self._partial, self._journal = self._folder / f"{own}.partial", self._folder / f"{own}.journal"
            elif _is_at(descriptor, self._partial):
                return descriptor
            else:
                os.close(descriptor)  # its writer finished it between our opening and our lock
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self._partial))

    def _open(self, path: Path, flags: int) -> int:
        for _ in range(_FOLDER_ATTEMPTS):  # another file that is complete may just be removing the folder
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                self._folder.mkdir(parents=True, exist_ok=True)
                return os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, 0o644)
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self._folder))

    def _reserve(self) -> None:
        """Claim the space now, so that a full disk is found out before the transfer and not at its end."""
        size = self._plan.size_bytes
        try:
            os.ftruncate(self._descriptor, size)
            if size and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._descriptor, 0, size)
        except OSError as error:
            if error.errno not in _CANNOT_RESERVE:  # a filesystem that cannot reserve is no reason to stop
                self.discard()
                raise

    def _heading(self) -> str:
        return json.dumps({"plan": self._identity, "part_bytes": self._part_bytes}) + "\n"

    def _read_journal(self, most_part_bytes: int) -> int:
        """Learn which parts an earlier process wrote; return how it cut the file, 0 where there is nothing."""
        try:
            heading, *lines = self._journal.read_text().split("\n")
            noted = json.loads(heading)
            usable = noted["plan"] == self._identity and noted["part_bytes"] <= most_part_bytes
            if not usable or self._partial.stat().st_size != self._plan.size_bytes:
                return 0
            # A line without its end was cut off by the kill; split() leaves it, or "", last.
            self._kept = {int(number): int(value) for number, value in (line.split() for line in lines[:-1])}
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        return int(noted["part_bytes"])

    def read_back(self, number: int, view: memoryview) -> int | None:
        expected = self._kept.get(number)
        if expected is None:
            return None
        count = os.preadv(self._descriptor, [view], number * self._part_bytes)
        checksum = crc32c(view)
        return checksum if count == len(view) and checksum == expected else None

    def write_part(self, number: int, view: memoryview, checksum: int) -> None:
        offset = number * self._part_bytes
        with named_refusals(self._path, "written"):
            with self._writing:
                written = 0
                while written < len(view):
                    piece = view[written : written + _BLOCK_BYTES]
                    written += os.pwrite(self._descriptor, piece, offset + written)
            if self._reads_back:
                self._compare(offset, len(view), checksum)
            os.write(self._journal_descriptor, b"%d %d\n" % (number, checksum))

    def _compare(self, offset: int, length: int, expected: int) -> None:
        """Hold what the disk gives back against what was written."""
        found = _checksum_on_disk(self._descriptor, offset, length)
        if found != expected:
            raise ChecksumError(
                f"{self._path}: {length} bytes from {offset} were written with crc32c {expected:08x}, "
                f"the disk gives back {found:08x}.",
                next_step="Run again; if it happens again, check the disk and the memory of this machine.",
            )

    def settle(self, number: int, checksums: Checksums, source: PassingHash | None) -> None:
        pass  # the journal has it already

    def save(self) -> None:
        pass

    def finish(self, checksums: Checksums, moved_bytes: int) -> WrittenFile:
        noted = {"plan": self._identity, "sha256": checksums.sha256(), "crc32c": checksums.crc32c}
        noted["mtime_ns"] = os.fstat(self._descriptor).st_mtime_ns
        with contextlib.suppress(OSError, AttributeError):  # without extended attributes a rerun reads the file anew
            os.setxattr(self._descriptor, _ATTRIBUTE, json.dumps(noted).encode())
        with named_refusals(self._path, "written"):
            self._partial.replace(self._path)
        self._close()
        written = self._written(checksums.sha256(), checksums.crc32c, moved_bytes)
        return replace(written, read_back=self._reads_back)

    def discard(self) -> None:
        self._partial.unlink(missing_ok=True)
        self._close()

    def leave(self) -> None:
        for descriptor in (self._descriptor, self._journal_descriptor):
            if descriptor >= 0:
                os.close(descriptor)
        self._descriptor = self._journal_descriptor = -1

    def _close(self) -> None:
        self.leave()
        self._journal.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # other files are still on their way
            self._folder.rmdir()

    def _written(self, sha256: str | None, checksum: int, moved_bytes: int) -> WrittenFile:
        return WrittenFile(
            uri=self._plan.uri,
            size_bytes=self._plan.size_bytes,
            sha256=sha256,
            crc32c=checksum,
            generation=0,
            moved_bytes=moved_bytes,
        )


_blocks = threading.local()


def _checksum_on_disk(descriptor: int, offset: int, length: int) -> int:
    """Return the crc32c of a range of an open file, read through one block of this thread's own."""
    if not hasattr(_blocks, "block"):
        _blocks.block = bytearray(_BLOCK_BYTES)
    total, end = 0, offset + length
    while offset < end:
        row = memoryview(_blocks.block)[: min(_BLOCK_BYTES, end - offset)]
        count = os.preadv(descriptor, [row], offset)
        if not count:
            break  # somebody cut the file short, and its checksum will differ
        total = crc32c(row[:count], total)
        offset += count
    return total


def _lock(descriptor: int) -> bool:
    """Lock an open file for this target; tell whether nobody else holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _CANNOT_LOCK:
            raise
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
