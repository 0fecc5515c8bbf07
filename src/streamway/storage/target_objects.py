"""An object in Cloud Storage: one request for a small file, a multipart upload for a large one.

The parts of a pending upload cannot be read, so the hash cannot be taken anew when an upload goes on: its state is
saved as it grows, in small objects beside the upload. An upload with its last saved state loses nothing but the parts
that were on their way.
"""

import contextlib
import json
import logging
import threading
import time
from dataclasses import replace
from typing import Any

from streamway.errors import SourceChangedError, StorageAccessError, StorageError
from streamway.storage.addresses import ObjectAddress, parse_gs
from streamway.storage.cloud import CloudStorage, UploadedPart, UploadGoneError
from streamway.storage.digests import Checksums, crc32c
from streamway.storage.files import IN_FLIGHT
from streamway.storage.passing import PassingHash
from streamway.storage.segments import FilePlan, WrittenFile
from streamway.storage.targets import Position, fingerprint, start_position

log = logging.getLogger("streamway.storage")

SAVE_SLOTS = 8
"""Cloud Storage takes about one write a second to one name, so a growing hash is saved under several in turn."""

_OVERTAKEN_SECONDS = 2.0
"""How long the object of a run that completed our upload may take to show."""


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

    def leave(self) -> None:
        pass  # a pending upload belongs to nobody

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
        return start_position(self._plan, part_bytes, sha256=self._sha256)

    def write_part(self, number: int, view: memoryview, checksum: int) -> None:
        self._content = view

    def settle(self, number: int, checksums: Checksums, source: PassingHash | None) -> None:
        pass  # there is only one part

    def save(self) -> None:
        pass

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
        self._unsaved: dict[str, Any] | None = None
        self._save_lock = threading.Lock()
        self._by_another: WrittenFile | None = None

    def begin(self, part_bytes: int, most_part_bytes: int) -> Position:
        saves = self._read_saves()
        for noted in saves:
            if position := self._resume(noted, most_part_bytes):
                return position
        # Uploads that nobody saved may belong to another run of the same commit; publication clears them away.
        for upload_id in {noted["upload_id"] for noted in saves}:
            self._cloud.abort_upload(self._address, upload_id)
        self._part_bytes = part_bytes
        self._upload_id = self._cloud.start_upload(self._address, self._metadata(self._plan.sha256))
        return start_position(self._plan, part_bytes, sha256=self._sha256)

    def _read_saves(self) -> list[dict[str, Any]]:
        """Return what was saved, furthest first; what cannot be read was cut off or is of another version."""
        found = []
        for stored in self._cloud.list_objects(ObjectAddress(self._address.bucket, f"{self._aside}.save-")):
            with contextlib.suppress(StorageError, SourceChangedError, ValueError):
                noted = json.loads(self._cloud.read(stored))
                if noted.keys() == _SAVED:
                    found.append(noted)
        return sorted(found, key=lambda noted: int(noted["number"]), reverse=True)

    def _resume(self, noted: dict[str, Any], most_part_bytes: int) -> Position | None:
        number, part_bytes = int(noted["number"]), int(noted["part_bytes"])
        if noted["plan"] != self._identity or part_bytes > most_part_bytes:
            return None
        parts = self._cloud.list_parts(self._address, noted["upload_id"])
        if parts is None or any(parts.get(n + 1, _NO_PART).size_bytes != part_bytes for n in range(number)):
            return None
        checksums = Checksums.resume(noted["sha256_state"], int(noted["crc32c"]), sha256=self._sha256)
        source = PassingHash.take_up(self._plan.source, noted["source"]) if self._plan.source else None
        if checksums is None or (self._plan.source and source is None):
            return None
        self._upload_id, self._part_bytes = noted["upload_id"], part_bytes
        self._parts = {n: parts[n + 1] for n in range(number)}
        return Position(part_bytes=part_bytes, number=number, checksums=checksums, source=source)

    def write_part(self, number: int, view: memoryview, checksum: int) -> None:
        if self._by_another:
            return
        try:
            self._parts[number] = self._cloud.upload_part(self._address, self._upload_id, number + 1, view, checksum)
        except UploadGoneError as error:
            self._accept_another(error)

    def _accept_another(self, gone: UploadGoneError) -> WrittenFile:
        """Take the file that another run of the same commit made of the same upload, when it is what we would make.

        Raises:
            UploadGoneError: there is none; the upload was ended.
        """
        deadline = time.monotonic() + _OVERTAKEN_SECONDS
        while not (found := self.find_complete()):
            if time.monotonic() > deadline:
                raise gone
            time.sleep(0.1)
        log.info("%s was completed by another run meanwhile", self._address)
        self._by_another = found
        return found

    def settle(self, number: int, checksums: Checksums, source: PassingHash | None) -> None:
        state = checksums.state()
        last = number * self._part_bytes >= self._plan.size_bytes
        passed = source.put_down() if source else None
        lost = (state is None and self._sha256) or (passed is None and source is not None)
        if not self._saving or self._by_another or last or lost:
            return
        self._unsaved = {
            "plan": self._identity,
            "part_bytes": self._part_bytes,
            "upload_id": self._upload_id,
            "number": number,
            "crc32c": checksums.crc32c,
            "sha256_state": state.hex() if state else "",
            "source": passed,
        }

    def save(self) -> None:
        with self._save_lock:
            noted, self._unsaved = self._unsaved, None
            if noted and self._saving:
                self._save(f"save-{self._saves % SAVE_SLOTS}", noted)
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
        try:
            found = self._by_another or self._complete(checksums)
        except UploadGoneError as error:
            found = self._accept_another(error)
        return replace(found, moved_bytes=moved_bytes)

    def _complete(self, checksums: Checksums) -> WrittenFile:
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
        return self._written(sha256, checksums.crc32c, stored.generation, 0)

    def _noted_sha256(self, checksum: int) -> str | None:
        address = ObjectAddress(self._address.bucket, f"{self._aside}.done")
        stored = self._cloud.stat(address)
        if stored is None:
            return None
        noted = json.loads(self._cloud.read(stored))
        return noted["sha256"] if (noted["plan"], noted["crc32c"]) == (self._identity, checksum) else None

    def discard(self) -> None:
        if self._upload_id:
            self._cloud.abort_upload(self._address, self._upload_id)
        self._forget_saves()

    def _forget_saves(self) -> None:
        with self._save_lock:
            self._saving = False
        with contextlib.suppress(StorageAccessError):  # who may not delete leaves a few small objects in staging
            for stored in self._cloud.list_objects(ObjectAddress(self._address.bucket, f"{self._aside}.save-")):
                self._cloud.delete(stored.address)


_SAVED = {"plan", "part_bytes", "upload_id", "number", "crc32c", "sha256_state", "source"}
_NO_PART = UploadedPart(number=0, etag="", size_bytes=-1)
