"""Whole files at a URI: list, read, write, copy and delete, the same for a folder and for a bucket."""

import contextlib
import filecmp
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from streamway.errors import ChecksumError, StorageError
from streamway.storage.addresses import ObjectAddress, is_gs, local_path, parse_gs
from streamway.storage.cloud import PreconditionFailedError, StoredObject, cloud_storage
from streamway.storage.digests import crc32c, encode_crc32c
from streamway.storage.parallel import map_at_once
from streamway.storage.readers import open_reader
from streamway.storage.refusals import named_refusals

IN_FLIGHT = ".transfer"
"""Folder, beside the files that it serves, of what is not complete; no listing shows it."""


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """One file under a URI.

    Args:
        path: Relative to what was listed, with forward slashes.
        uri: Its own address.
        size_bytes: Its length.
        crc32c: Castagnoli checksum as an unsigned integer, None for a local file.
        generation: The object's generation in Cloud Storage; 0 for a local file.
        sha256: What the writer recorded with the object; "" where nothing is recorded.
    """

    path: str
    uri: str
    size_bytes: int
    crc32c: int | None
    generation: int
    sha256: str = ""


def list_files(uri: str) -> tuple[StoredFile, ...]:
    """List every file below a folder or prefix, in order of path, without those still in flight.

    Raises:
        BucketNotFoundError: there is no such bucket. A folder or prefix without files is an empty tuple.
    """
    if is_gs(uri):
        return _in_order(_list_objects(parse_gs(uri)))
    root = local_path(uri)
    with named_refusals(root, "listed"):
        return _in_order(_list_folder(root))


def _in_order(files: Iterable[StoredFile]) -> tuple[StoredFile, ...]:
    return tuple(sorted(files, key=lambda file: file.path))


def _list_objects(address: ObjectAddress) -> Iterator[StoredFile]:
    prefix = address.key.rstrip("/") + "/" if address.key else ""
    for stored in cloud_storage().list_objects(ObjectAddress(address.bucket, prefix)):
        path = stored.address.key.removeprefix(prefix)
        if path and not path.endswith("/") and IN_FLIGHT not in path.split("/")[:-1]:
            yield _stored_file(path, stored)


def _list_folder(root: Path) -> Iterator[StoredFile]:
    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    for folder, subfolders, names in os.walk(root, onerror=refuse):
        subfolders[:] = [name for name in subfolders if name != IN_FLIGHT]
        for name in names:
            path = Path(folder) / name
            # What is not there, another run took away just now.
            with named_refusals(path, "looked at"), contextlib.suppress(FileNotFoundError):
                size = path.stat().st_size
                relative = path.relative_to(root).as_posix()
                yield StoredFile(path=relative, uri=str(path), size_bytes=size, crc32c=None, generation=0)


def _stored_file(path: str, stored: StoredObject) -> StoredFile:
    return StoredFile(
        path=path,
        uri=str(stored.address),
        size_bytes=stored.size_bytes,
        crc32c=stored.crc32c,
        generation=stored.generation,
        sha256=stored.metadata.get("sha256", ""),
    )


def exists(uri: str) -> bool:
    """Tell whether there is a file at exactly this URI."""
    if is_gs(uri):
        return cloud_storage().stat(parse_gs(uri)) is not None
    path = local_path(uri)
    with named_refusals(path, "looked at"):
        return path.is_file()


def read_file(uri: str, *, max_bytes: int = 64 * 1024 * 1024) -> bytes:
    """Read a small file whole.

    Raises:
        StorageError: there is none, or it is longer than `max_bytes`.
    """
    reader = open_reader(uri)
    if reader.size_bytes > max_bytes:
        raise StorageError(f"{uri} is {reader.size_bytes} bytes long, expected at most {max_bytes}.")
    return reader.read(0, reader.size_bytes)


def write_file(uri: str, data: bytes, *, if_generation: int | None = None) -> StoredFile:
    """Write a small file whole; nobody ever sees a part of it.

    Args:
        uri: Where.
        data: What.
        if_generation: Only if the object is at this generation; 0 means only if there is none, also on disk.

    Raises:
        PreconditionFailedError: it is at another generation, and holds other bytes.
    """
    name = uri.rpartition("/")[2]
    if is_gs(uri):
        address = parse_gs(uri)
        stored = cloud_storage().put(address, [data], checksum=crc32c(data), if_generation=if_generation)
        return _stored_file(name, stored)
    path = local_path(uri)
    with named_refusals(path, "written"):
        _replace(path, data, only_if_absent=if_generation == 0)
    return StoredFile(path=name, uri=str(path), size_bytes=len(data), crc32c=crc32c(data), generation=0)


def _replace(path: Path, data: bytes, *, only_if_absent: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        fresh.write_bytes(data)
        if only_if_absent:
            os.link(fresh, path)
        else:
            fresh.replace(path)
    except FileExistsError as error:
        if path.read_bytes() != data:
            raise PreconditionFailedError(f"{path} exists already, with other bytes.") from error
    finally:
        fresh.unlink(missing_ok=True)


def delete_files(uris: Iterable[str]) -> int:
    """Delete files; those that are not there are no error. Return how many there were."""
    return sum(map_at_once(_delete, uris))


def _delete(uri: str) -> bool:
    if is_gs(uri):
        return cloud_storage().delete(parse_gs(uri))
    path = local_path(uri)
    with named_refusals(path, "deleted"):
        there = path.exists()
        path.unlink(missing_ok=True)
    return there


def copy_file(
    source_uri: str,
    target_uri: str,
    *,
    if_generation: int | None = None,
    crc32c: int | None = None,
    sha256: str = "",
    link: bool = False,
) -> StoredFile:
    """Copy a file where it is: inside Cloud Storage, or on one disk, without a byte through this process.

    Args:
        source_uri: What to copy.
        target_uri: Where to; of the same kind as the source.
        if_generation: Only if the target is at this generation; 0 means only if there is none.
        crc32c: What the source must have where Cloud Storage knows it.
        sha256: To be recorded with the copy.
        link: On one disk, share the bytes by a hard link; sound only where nobody writes to either file again.

    Raises:
        StorageError: the source is missing, or of another kind than the target.
        ChecksumError: the source or the copy has other bytes than expected.
        PreconditionFailedError: the target is there already, and different.
    """
    if is_gs(source_uri) != is_gs(target_uri):
        raise StorageError(f"{source_uri} and {target_uri} are of different kinds; write_files copies between them.")
    if not is_gs(source_uri):
        source_path, target_path = local_path(source_uri), local_path(target_uri)
        with named_refusals(target_path, "written"):
            return _copy_on_disk(source_path, target_path, only_if_absent=if_generation == 0, link=link)
    cloud = cloud_storage()
    source = cloud.stat(parse_gs(source_uri))
    if source is None:
        raise StorageError(f"{source_uri}: there is no such object to copy.", next_step="Run the step before again.")
    if crc32c is not None and source.crc32c != crc32c:
        raise ChecksumError(
            f"{source_uri} has crc32c {encode_crc32c(source.crc32c or 0)}, expected {encode_crc32c(crc32c)}.",
            next_step="Delete the object and run again.",
        )
    known = source.metadata.get("sha256")
    if sha256 and known and known != sha256:
        raise ChecksumError(
            f"{source_uri} has sha256 {known}, expected {sha256}.", next_step="Delete the object and run again."
        )
    metadata = dict(source.metadata) | ({"sha256": sha256} if sha256 else {})
    stored = cloud.rewrite(source, parse_gs(target_uri), metadata=metadata, if_generation=if_generation)
    return _stored_file(target_uri.rpartition("/")[2], stored)


def _copy_on_disk(source: Path, target: Path, *, only_if_absent: bool, link: bool) -> StoredFile:
    target.parent.mkdir(parents=True, exist_ok=True)
    # A link appears at once and whole. What appears beside the target first, another run may take for a leftover.
    if not (link and only_if_absent and _linked(source, target)):
        _copy_beside(source, target, only_if_absent=only_if_absent, link=link)
    size = target.stat().st_size
    return StoredFile(path=target.name, uri=str(target), size_bytes=size, crc32c=None, generation=0)


def _linked(source: Path, target: Path) -> bool:
    """Give a file its second name, unless something else has it; False where the disks differ or know no links."""
    try:
        with _named_absence(source):
            _place_if_absent(source, target)
    except OSError:
        return False
    return True


def _copy_beside(source: Path, target: Path, *, only_if_absent: bool, link: bool) -> None:
    fresh = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        with _named_absence(source):
            _clone(source, fresh, link=link)
        if only_if_absent:
            _place_if_absent(fresh, target)
        else:
            fresh.replace(target)
    finally:
        fresh.unlink(missing_ok=True)


def _clone(source: Path, fresh: Path, *, link: bool) -> None:
    if link:
        with contextlib.suppress(OSError):  # another disk, or one without hard links
            os.link(source, fresh)
            return
    shutil.copyfile(source, fresh)


@contextlib.contextmanager
def _named_absence(source: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(
            f"{source}: there is no such file to copy.", next_step="Run the step before again."
        ) from error


def _place_if_absent(fresh: Path, target: Path) -> None:
    try:
        os.link(fresh, target)
    except FileExistsError as error:
        if not filecmp.cmp(fresh, target, shallow=False):
            raise PreconditionFailedError(f"{target} exists already, with other bytes.") from error
