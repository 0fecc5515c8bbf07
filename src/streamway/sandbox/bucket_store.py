"""Objects on disk, so that one of any size is written, copied and read without passing through memory.

fake-gcs-server keeps an object as a file under `objects/BUCKET/NAME` with its attributes as JSON in the extended
attribute `user.metadata`. It reads whole objects into memory for nearly everything it does with them, so its files
are given only their length (they are sparse and hold no data), and the bytes live in `blobs/`, one link for each
object, named by a key of ours in the same attributes. A copy inside a bucket is then a new link, as quick as in
Cloud Storage, and replacing an object is one rename.

Everything that decides (preconditions, the rename) runs in one piece on the event loop and needs no lock.
"""

import base64
import contextlib
import json
import os
import stat
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from streamway.errors import SandboxError
from streamway.sandbox.bucket_checksums import encode_crc32c
from streamway.storage.digests import crc32c

_ATTRIBUTE = "user.metadata"
# ext4 gives one block to all extended attributes of a file; Cloud Storage allows 8 KiB of custom metadata.
MOST_ATTRIBUTE_BYTES = 3900
MOST_NAME_BYTES = 1024
_NEVER = "0001-01-01T00:00:00Z"


class StoreError(Exception):
    """A request that the store refuses; carries the HTTP status and Cloud Storage's code for it."""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status = status
        self.code = code
        super().__init__(message)


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What must be true of the live object (generation 0: there is none).

    Args:
        generation: The very version that is asked for.
        if_generation_match: Refuse with 412 unless the live generation is this one.
        if_generation_not_match: Refuse with 412, or 304 for a read, if it is.
        if_metageneration_match: As the name says.
        if_metageneration_not_match: As the name says.
    """

    generation: int | None = None
    if_generation_match: int | None = None
    if_generation_not_match: int | None = None
    if_metageneration_match: int | None = None
    if_metageneration_not_match: int | None = None

    def check(self, live: "StoredObject | None", *, reading: bool = False) -> None:
        """Raise StoreError where a condition does not hold."""
        generation = live.generation if live else 0
        metageneration = live.metageneration if live else 0
        matches = (
            (self.if_generation_match, generation),
            (self.if_metageneration_match, metageneration),
        )
        differences = (
            (self.if_generation_not_match, generation),
            (self.if_metageneration_not_match, metageneration),
        )
        if any(wanted is not None and wanted != found for wanted, found in matches):
            raise _precondition_failed()
        if any(unwanted is not None and unwanted == found for unwanted, found in differences):
            raise StoreError(304, "notModified", "Not Modified") if reading else _precondition_failed()


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """One version of an object, as it was when it was looked up.

    Args:
        bucket: Name of its bucket.
        name: Its name.
        size_bytes: Its length.
        attributes: What fake-gcs-server stores about it, with the keys Blob, Metageneration and ComponentCount
            of ours.
    """

    bucket: str
    name: str
    size_bytes: int
    attributes: Mapping[str, Any]

    @property
    def generation(self) -> int:
        return int(self.attributes["Generation"])

    @property
    def metageneration(self) -> int:
        return int(self.attributes.get("Metageneration", 1))

    @property
    def crc32c(self) -> str:
        return str(self.attributes["Crc32c"])

    @property
    def etag(self) -> str:
        return str(self.attributes["Etag"]).strip('"')


@dataclass(kw_only=True)
class Draft:
    """Bytes that are to become an object, hashed as they arrive.

    Args:
        path: File that they go to.
        offset_bytes: Where in the file they begin.
        md5: Hash for md5Hash; None where nobody will ask for it.
        size_bytes: How many have arrived.
        crc32c: Their checksum so far.
    """

    path: Path
    offset_bytes: int = 0
    md5: Any = None
    size_bytes: int = 0
    crc32c: int = 0

    def write(self, chunks: Sequence[bytes | memoryview]) -> None:
        """Append bytes."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            for chunk in chunks:
                view = memoryview(chunk)
                position = self.offset_bytes + self.size_bytes
                while view:
                    written = os.pwrite(descriptor, view, position)
                    position += written
                    view = view[written:]
                self.note(chunk)
        finally:
            os.close(descriptor)

    def note(self, chunk: bytes | memoryview) -> None:
        """Count and hash bytes that are already in the file."""
        self.size_bytes += len(chunk)
        self.crc32c = crc32c(chunk, self.crc32c)
        if self.md5 is not None:
            self.md5.update(chunk)

    def encoded_md5(self) -> str:
        """Return md5Hash as the API words it; empty where it was not computed."""
        return base64.b64encode(self.md5.digest()).decode() if self.md5 is not None else ""


@dataclass(frozen=True, kw_only=True)
class Content:
    """Bytes that are on disk and may become an object.

    Args:
        path: The file; it is moved, not copied.
        size_bytes: Its length.
        crc32c: Castagnoli checksum of all of it.
        md5: As in `Draft.encoded_md5`.
        component_count: How many parts it was composed of; 0 for an object in one piece.
    """

    path: Path
    size_bytes: int
    crc32c: int
    md5: str = ""
    component_count: int = 0


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a writer says about an object, in the words of fake-gcs-server's attributes."""

    content_type: str = ""
    content_encoding: str = ""
    content_disposition: str = ""
    content_language: str = ""
    cache_control: str = ""
    storage_class: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)

    def to_attributes(self) -> dict[str, Any]:
        return {
            "ContentType": self.content_type or "application/octet-stream",
            "ContentEncoding": self.content_encoding,
            "ContentDisposition": self.content_disposition,
            "ContentLanguage": self.content_language,
            "CacheControl": self.cache_control,
            "StorageClass": self.storage_class or "STANDARD",
            "Metadata": dict(self.metadata),
        }


class Store:
    """The objects of all buckets under one folder."""

    def __init__(self, root: Path) -> None:
        self.objects_path = root / "objects"
        self.drafts_path = root / "drafts"
        self._blobs_path = root / "blobs"
        for path in (self.objects_path, self.drafts_path, self._blobs_path):
            path.mkdir(parents=True, exist_ok=True)
        self._last_generation = 0
        self._check_attributes()

    def has_bucket(self, bucket: str) -> bool:
        return bool(bucket) and "/" not in bucket and (self.objects_path / bucket).is_dir()

    def require_bucket(self, bucket: str) -> None:
        """Raise the 404 of a bucket that does not exist."""
        if not self.has_bucket(bucket):
            raise StoreError(404, "NoSuchBucket", "The specified bucket does not exist.")

    def find(self, bucket: str, name: str) -> StoredObject | None:
        """Look up the live version of an object."""
        self.require_bucket(bucket)
        path = self._path(bucket, name)
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return None
            attributes = json.loads(os.getxattr(descriptor, _ATTRIBUTE))
            size = status.st_size
        finally:
            os.close(descriptor)
        return StoredObject(bucket=bucket, name=name, size_bytes=size, attributes=attributes)

    def get(self, bucket: str, name: str, conditions: Conditions, *, reading: bool = False) -> StoredObject:
        """Return the live version, which must be the one that is asked for."""
        live = self.find(bucket, name)
        if live is None or conditions.generation not in (None, live.generation):
            raise StoreError(404, "NoSuchKey", f"No such object: {bucket}/{name}")
        conditions.check(live, reading=reading)
        return live

    def blob_path(self, stored: StoredObject) -> Path:
        """Where the bytes of an object are."""
        return self._blobs_path / str(stored.attributes["Blob"])

    def new_draft_path(self) -> Path:
        return self.drafts_path / uuid.uuid4().hex

    def commit(
        self, bucket: str, name: str, content: Content, description: Description, conditions: Conditions
    ) -> StoredObject:
        """Make an object of bytes on disk, in one step, if the conditions hold."""
        self.check_name(name)
        conditions.check(self.find(bucket, name))
        now = timestamp()
        attributes = description.to_attributes() | {
            "Crc32c": encode_crc32c(content.crc32c),
            "Md5Hash": content.md5,
            "Created": now,
            "Updated": now,
            "ComponentCount": content.component_count,
        }
        return self._install(bucket, name, content.path, content.size_bytes, attributes)

    def copy(
        self,
        source: StoredObject,
        bucket: str,
        name: str,
        description: Description | None,
        conditions: Conditions,
    ) -> StoredObject:
        """Copy an object by linking its bytes; `description` None keeps the source's."""
        self.check_name(name)
        conditions.check(self.find(bucket, name))
        link = self.new_draft_path()
        os.link(self.blob_path(source), link)
        now = timestamp()
        attributes = dict(source.attributes) | {"Created": now, "Updated": now}
        attributes |= description.to_attributes() if description else {}
        return self._install(bucket, name, link, source.size_bytes, attributes)

    def describe(self, live: StoredObject, changes: Mapping[str, Any]) -> StoredObject:
        """Change attributes of an object; its generation stays."""
        attributes = dict(live.attributes) | dict(changes)
        attributes |= {"Updated": timestamp(), "Metageneration": live.metageneration + 1}
        self._place(replace(live, attributes=_with_etag(attributes)))
        return self._found(live.bucket, live.name)

    def delete(self, live: StoredObject) -> None:
        """Delete an object, and the folders that only it needed."""
        path = self._path(live.bucket, live.name)
        path.unlink()
        self.blob_path(live).unlink(missing_ok=True)
        bucket_path = self.objects_path / live.bucket
        with contextlib.suppress(OSError):
            for parent in path.parents:
                if parent == bucket_path:
                    break
                parent.rmdir()

    def remove_leftovers(self) -> int:
        """Remove bytes that no object names, left by a process that was killed; return how many files."""
        named = {
            str(self._attributes_of(path).get("Blob"))
            for path in self.objects_path.rglob("*")
            if path.is_file() and path.parent != self.objects_path
        }
        left = [path for path in self._blobs_path.iterdir() if path.name not in named]
        left += list(self.drafts_path.iterdir())
        for path in left:
            path.unlink()
        return len(left)

    def check_name(self, name: str) -> None:
        """Refuse a name that Cloud Storage refuses, or that fake-gcs-server cannot hold as a file."""
        size = len(name.encode())
        if not 1 <= size <= MOST_NAME_BYTES or "\n" in name or "\r" in name or "\0" in name:
            raise StoreError(400, "InvalidObjectName", f"Invalid object name of {size} bytes.")
        pieces = name.split("/")
        if any(piece in ("", ".", "..") or len(piece.encode()) > 255 for piece in pieces):
            raise StoreError(
                400,
                "InvalidObjectName",
                f"{name!r}: the sandbox keeps objects as files, so names with empty, '.' or '..' components, or "
                "with one longer than 255 bytes, cannot be used here, though Cloud Storage allows some of them.",
            )

    def _install(self, bucket: str, name: str, blob: Path, size_bytes: int, attributes: dict[str, Any]) -> StoredObject:
        replaced = self.find(bucket, name)
        blob_name = uuid.uuid4().hex
        self._last_generation = max(self._last_generation + 1, time.time_ns() // 1000)
        attributes |= {
            "Blob": blob_name,
            "Generation": self._last_generation,
            "Metageneration": 1,
            "ACL": [],
            "Deleted": _NEVER,
            "CustomTime": _NEVER,
        }
        stored = StoredObject(bucket=bucket, name=name, size_bytes=size_bytes, attributes=_with_etag(attributes))
        blob.rename(self._blobs_path / blob_name)
        try:
            self._place(stored)
        except StoreError:
            (self._blobs_path / blob_name).unlink()
            raise
        if replaced is not None:
            self.blob_path(replaced).unlink(missing_ok=True)
        return stored

    def _place(self, stored: StoredObject) -> None:
        """Put the file that fake-gcs-server sees where it looks for it."""
        encoded = json.dumps(stored.attributes, ensure_ascii=False).encode()
        if len(encoded) > MOST_ATTRIBUTE_BYTES:
            raise StoreError(
                400,
                "MetadataTooLarge",
                f"The attributes take {len(encoded)} bytes; the sandbox's disk holds {MOST_ATTRIBUTE_BYTES}.",
            )
        target = self._path(stored.bucket, stored.name)
        placed = self.new_draft_path()
        with placed.open("wb") as file:
            file.truncate(stored.size_bytes)
            os.setxattr(file.fileno(), _ATTRIBUTE, encoded)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            placed.rename(target)
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            placed.unlink()
            raise StoreError(
                400,
                "InvalidObjectName",
                f"{stored.name!r}: the sandbox keeps objects as files, so one object's name cannot be the "
                "folder of another's, though Cloud Storage allows it.",
            ) from error

    def _found(self, bucket: str, name: str) -> StoredObject:
        found = self.find(bucket, name)
        if found is None:
            raise StoreError(404, "NoSuchKey", f"No such object: {bucket}/{name}")
        return found

    def _path(self, bucket: str, name: str) -> Path:
        # A name that could leave the folder is never looked up; nothing can be stored under it either.
        if any(piece in ("", ".", "..") for piece in name.split("/")) or "\0" in name:
            return self.objects_path / bucket / "no" / "such" / "object" / uuid.uuid4().hex
        return self.objects_path / bucket / name

    def _attributes_of(self, path: Path) -> dict[str, Any]:
        try:
            value = json.loads(os.getxattr(path, _ATTRIBUTE))
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def _check_attributes(self) -> None:
        probe = self.new_draft_path()
        probe.touch()
        try:
            os.setxattr(probe, _ATTRIBUTE, b"{}")
        except OSError as error:
            raise SandboxError(
                f"{self.objects_path}: this disk keeps no extended attributes ({error.strerror}), which the "
                "sandbox's Cloud Storage needs.",
                next_step="Give the sandbox a folder on another disk, such as ext4, xfs or btrfs.",
            ) from error
        finally:
            probe.unlink()


def copy_ranges(ranges: Sequence[tuple[Path, int, int]], target: Path) -> None:
    """Write (path, offset, length) ranges in a row to a new file, inside the kernel."""
    with target.open("wb") as output:
        for path, offset, length in ranges:
            with path.open("rb") as source:
                for start, count in _steps(offset, length):
                    _copy_range(source.fileno(), output.fileno(), start, count)


def _steps(offset: int, length: int) -> Iterator[tuple[int, int]]:
    step = 1 << 30
    for start in range(offset, offset + length, step):
        yield start, min(step, offset + length - start)


def _copy_range(source: int, target: int, offset: int, count: int) -> None:
    while count:
        copied = os.copy_file_range(source, target, count, offset)
        if copied == 0:
            raise SandboxError("A part of an upload is shorter than it was when it arrived.")
        offset += copied
        count -= copied


def _with_etag(attributes: dict[str, Any]) -> dict[str, Any]:
    version = f"{attributes['Generation']}/{attributes['Metageneration']}"
    # With its quotes, because the binary's XML listings show it as it is.
    return attributes | {"Etag": f'"{base64.b64encode(version.encode()).decode()}"'}


def _precondition_failed() -> StoreError:
    return StoreError(412, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.")


def timestamp() -> str:
    """Return the time now, as the APIs word it."""
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{nanoseconds // 1000:06d}Z"
