"""Where the parts of a file go until it is complete: a file beside its final name, or a multipart upload.

A target keeps what it needs to go on after the process was killed, and shows the file under its final name only when
all of it is there and verified. The two differ in one thing: a half-written local file can be read again, so its hash
is taken anew from disk when a transfer goes on; the parts of a pending upload cannot be read, so the hash is saved as
it grows.
"""

import contextlib
import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from streamway.errors import StorageAccessError, StorageError
from streamway.storage.addresses import ObjectAddress, is_gs, local_path, parse_gs
from streamway.storage.cloud import CloudStorage, UploadedPart
from streamway.storage.digests import Checksums, crc32c
from streamway.storage.files import IN_FLIGHT
from streamway.storage.segments import Computed, FilePlan, WrittenFile

log = logging.getLogger("streamway.storage")

_ATTRIBUTE = "user.streamway"
_FOLDER_ATTEMPTS = 100
SAVE_SLOTS = 8
"""Cloud Storage takes about one write a second to one name, so a growing hash is saved under several in turn."""


@dataclass(frozen=True, kw_only=True)
class Position:
    """From where a transfer goes on.

    Args:
        part_bytes: How the file is cut.
        number: Index of the first part that must be asked for.
        checksums: Of everything before it.
    """

    part_bytes: int
    number: int
    checksums: Checksums


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

    def settle(self, number: int, checksums: Checksums) -> None:
        """Note that all parts before `number` are written, with their checksums so far."""

    def finish(self, checksums: Checksums, moved_bytes: int) -> WrittenFile:
        """Show the file under its name."""

    def discard(self) -> None:
        """Throw away what is there, because it is not what was promised."""


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


def make_target(plan: FilePlan, cloud: CloudStorage, *, sha256: bool, part_bytes: int) -> Target:
    """Choose how a file is written: to disk, in one request, or as a multipart upload."""
    if not is_gs(plan.uri):
        return LocalTarget(plan, sha256=sha256)
    if plan.size_bytes <= part_bytes:
        return SmallObjectTarget(plan, cloud, sha256=sha256)
    return UploadTarget(plan, cloud, sha256=sha256)


class LocalTarget:
    """A file on disk, written as `.transfer/NAME.partial` with a journal, then renamed."""

    def __init__(self, plan: FilePlan, *, sha256: bool) -> None:
        self._plan = plan
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
        self._part_bytes = self._read_journal(most_part_bytes) or part_bytes
        fresh = not self._kept
        truncate = os.O_TRUNC if fresh else 0
        self._descriptor = self._open(self._partial, os.O_RDWR | truncate)
        self._reserve()
        self._journal_descriptor = self._open(self._journal, os.O_WRONLY | os.O_APPEND | truncate)
        if fresh:
            os.write(self._journal_descriptor, self._heading().encode())
        return Position(part_bytes=self._part_bytes, number=0, checksums=Checksums(sha256=self._sha256))

    def _open(self, path: Path, flags: int) -> int:
        for _ in range(_FOLDER_ATTEMPTS):  # another file that is complete may just have removed the folder
            self._folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                return os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, 0o644)
        raise StorageError(f"{self._folder}: the folder is removed again and again by somebody else.")

    def _reserve(self) -> None:
        """Claim the space now, so that a full disk is found out before the transfer and not at its end."""
        size = self._plan.size_bytes
        os.ftruncate(self._descriptor, size)
        if not size or not hasattr(os, "posix_fallocate"):
            return
        try:
            os.posix_fallocate(self._descriptor, 0, size)
        except OSError as error:
            if error.errno not in (95, 22):  # a filesystem that cannot reserve is no reason to stop
                self.discard()
                raise StorageError(
                    f"{self._path}: there is no room for {size} bytes: {error.strerror}.",
                    next_step="Free disk space, or stage in a bucket (gs://), which needs no disk at all.",
                ) from error

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
        written = 0
        while written < len(view):
            written += os.pwrite(self._descriptor, view[written:], number * self._part_bytes + written)
        os.write(self._journal_descriptor, b"%d %d\n" % (number, checksum))

    def settle(self, number: int, checksums: Checksums) -> None:
        pass  # the journal has it already

    def finish(self, checksums: Checksums, moved_bytes: int) -> WrittenFile:
        noted = {"plan": self._identity, "sha256": checksums.sha256(), "crc32c": checksums.crc32c}
        noted["mtime_ns"] = os.fstat(self._descriptor).st_mtime_ns
        with contextlib.suppress(OSError, AttributeError):  # without extended attributes a rerun reads the file anew
            os.setxattr(self._descriptor, _ATTRIBUTE, json.dumps(noted).encode())
        self._partial.replace(self._path)
        self._close()
        return self._written(checksums.sha256(), checksums.crc32c, moved_bytes)

    def discard(self) -> None:
        self._partial.unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        for descriptor in (self._descriptor, self._journal_descriptor):
            if descriptor >= 0:
                os.close(descriptor)
        self._descriptor = self._journal_descriptor = -1
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


class _ObjectTarget:
    """What both ways into Cloud Storage share."""

    def __init__(self, plan: FilePlan, cloud: CloudStorage, *, sha256: bool) -> None:
        self._plan = plan
        self._cloud = cloud
        self._sha256 = sha256 or plan.sha256 is not None
        self._address = parse_gs(plan.uri)
        self._identity = fingerprint(plan)
        folder, _, name = self._address.key.rpartition("/")
        self._aside = f"{folder}/{IN_FLIGHT}/{name}" if folder else f"{IN_FLIGHT}/{name}"

    def find_complete(self) -> WrittenFile | None:
        stored = self._cloud.stat(self._address)
        if stored is None or stored.size_bytes != self._plan.size_bytes or stored.crc32c is None:
            return None
        sha256 = stored.metadata.get("sha256")
        same = sha256 == self._plan.sha256 if self._plan.sha256 else stored.metadata.get("plan") == self._identity
        if not same:
            return None
        if self._sha256 and not sha256:
            sha256 = self._noted_sha256(stored.crc32c)
        if self._sha256 and not sha256:
            return None
        return self._written(sha256, stored.crc32c, stored.generation, 0)

    def _noted_sha256(self, checksum: int) -> str | None:
        return None

    def _metadata(self, sha256: str | None) -> dict[str, str]:
        return {"plan": self._identity} | ({"sha256": sha256} if sha256 else {})

    def read_back(self, number: int, view: memoryview) -> int | None:
        return None

    def _written(self, sha256: str | None, checksum: int, generation: int, moved_bytes: int) -> WrittenFile:
        return WrittenFile(
            uri=self._plan.uri,
            size_bytes=self._plan.size_bytes,
            sha256=sha256,
            crc32c=checksum,
            generation=generation,
            moved_bytes=moved_bytes,
        )


class SmallObjectTarget(_ObjectTarget):
    """An object of one part, written in one request once its hash is known to be right."""

    _content: memoryview | bytes = b""

    def begin(self, part_bytes: int, most_part_bytes: int) -> Position:
        return Position(part_bytes=part_bytes, number=0, checksums=Checksums(sha256=self._sha256))

    def write_part(self, number: int, view: memoryview, checksum: int) -> None:
        self._content = view

    def settle(self, number: int, checksums: Checksums) -> None:
        pass  # there is only one part

    def finish(self, checksums: Checksums, moved_bytes: int) -> WrittenFile:
        sha256 = checksums.sha256()
        stored = self._cloud.put(
            self._address, [self._content], checksum=checksums.crc32c, metadata=self._metadata(sha256)
        )
        self._content = b""
        return self._written(sha256, checksums.crc32c, stored.generation, moved_bytes)

    def discard(self) -> None:
        self._content = b""


class UploadTarget(_ObjectTarget):
    """An object made of parts, with its growing hash saved beside it."""

    def __init__(self, plan: FilePlan, cloud: CloudStorage, *, sha256: bool) -> None:
        super().__init__(plan, cloud, sha256=sha256)
        self._upload_id = ""
        self._part_bytes = 0
        self._parts: dict[int, UploadedPart] = {}
        self._saves = 0
        self._saving = True

    def begin(self, part_bytes: int, most_part_bytes: int) -> Position:
        noted = self._newest_save(most_part_bytes)
        pending = self._cloud.list_uploads(self._address)
        position = self._resume(noted) if noted else None
        for upload_id in pending:
            if upload_id != self._upload_id:
                self._cloud.abort_upload(self._address, upload_id)
        if position:
            return position
        self._part_bytes = part_bytes
        self._upload_id = self._cloud.start_upload(self._address, self._metadata(self._plan.sha256))
        return Position(part_bytes=part_bytes, number=0, checksums=Checksums(sha256=self._sha256))

    def _newest_save(self, most_part_bytes: int) -> dict[str, Any] | None:
        """Return the furthest saved state that belongs to this plan."""
        found = []
        for stored in self._cloud.list_objects(ObjectAddress(self._address.bucket, f"{self._aside}.save-")):
            with contextlib.suppress(StorageError, ValueError):
                data = bytearray(stored.size_bytes)
                self._cloud.read_into(stored, 0, memoryview(data))
                noted = json.loads(data)
                if noted["plan"] == self._identity and noted["part_bytes"] <= most_part_bytes:
                    found.append(noted)
        return max(found, key=lambda noted: int(noted["number"]), default=None)

    def _resume(self, noted: dict[str, Any]) -> Position | None:
        parts = self._cloud.list_parts(self._address, noted["upload_id"])
        number, part_bytes = int(noted["number"]), int(noted["part_bytes"])
        if parts is None or any(parts.get(n + 1, _NO_PART).size_bytes != part_bytes for n in range(number)):
            return None
        checksums = Checksums.resume(noted["sha256_state"], int(noted["crc32c"]), sha256=self._sha256)
        if checksums is None:
            return None
        self._upload_id, self._part_bytes = noted["upload_id"], part_bytes
        self._parts = {n: parts[n + 1] for n in range(number)}
        return Position(part_bytes=part_bytes, number=number, checksums=checksums)

    def write_part(self, number: int, view: memoryview, checksum: int) -> None:
        self._parts[number] = self._cloud.upload_part(self._address, self._upload_id, number + 1, view, checksum)

    def settle(self, number: int, checksums: Checksums) -> None:
        state = checksums.state()
        last = number * self._part_bytes >= self._plan.size_bytes
        if not self._saving or last or (state is None and self._sha256):
            return
        self._save(
            f"save-{self._saves % SAVE_SLOTS}",
            {
                "plan": self._identity,
                "part_bytes": self._part_bytes,
                "upload_id": self._upload_id,
                "number": number,
                "crc32c": checksums.crc32c,
                "sha256_state": state.hex() if state else "",
            },
        )
        self._saves += 1

    def _save(self, suffix: str, noted: dict[str, Any]) -> None:
        content = json.dumps(noted).encode()
        address = ObjectAddress(self._address.bucket, f"{self._aside}.{suffix}")
        try:
            self._cloud.put(address, [content], checksum=crc32c(content))
        except StorageAccessError as error:
            self._saving = False
            log.warning(
                "%s: progress cannot be saved, an interrupted upload will start anew. %s", self._address, error.problem
            )

    def finish(self, checksums: Checksums, moved_bytes: int) -> WrittenFile:
        sha256 = checksums.sha256()
        if sha256 and not self._plan.sha256:
            # What the object's own metadata cannot hold, because it was fixed before the first byte.
            self._save("done", {"plan": self._identity, "sha256": sha256, "crc32c": checksums.crc32c})
        stored = self._cloud.complete_upload(
            self._address,
            self._upload_id,
            [self._parts[number] for number in sorted(self._parts)],
            size_bytes=self._plan.size_bytes,
            checksum=checksums.crc32c,
        )
        self._forget_saves()
        return self._written(sha256, checksums.crc32c, stored.generation, moved_bytes)

    def _noted_sha256(self, checksum: int) -> str | None:
        address = ObjectAddress(self._address.bucket, f"{self._aside}.done")
        stored = self._cloud.stat(address)
        if stored is None:
            return None
        data = bytearray(stored.size_bytes)
        self._cloud.read_into(stored, 0, memoryview(data))
        noted = json.loads(data)
        return noted["sha256"] if (noted["plan"], noted["crc32c"]) == (self._identity, checksum) else None

    def discard(self) -> None:
        if self._upload_id:
            self._cloud.abort_upload(self._address, self._upload_id)
        self._forget_saves()

    def _forget_saves(self) -> None:
        with contextlib.suppress(StorageAccessError):  # who may not delete leaves a few small objects in staging
            for stored in self._cloud.list_objects(ObjectAddress(self._address.bucket, f"{self._aside}.save-")):
                self._cloud.delete(stored.address)


_NO_PART = UploadedPart(number=0, etag="", size_bytes=-1)
