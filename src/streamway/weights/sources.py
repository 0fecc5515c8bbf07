"""Which files a model folder has, and where their bytes are: a recorded snapshot, or any folder or prefix."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from streamway.errors import StorageError
from streamway.storage import StoredFile, exists, join, list_files, open_reader, read_file
from streamway.storage.records import (
    SNAPSHOT_RECORD,
    WEIGHTS_RECORD,
    LeftFile,
    OpenLeft,
    PreparedWeights,
    Snapshot,
    check_record,
)
from streamway.storage.segments import ByteReader

COPY_RECORD = "_conversion.json"
"""What a complete copy gets in the place of `_weights.json` when its files have no sha256, which a release needs."""

_RECORD_BYTES = 64 * 1024 * 1024
_JSON_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One file of a model.

    Args:
        path: Its path in the model.
        uri: Where its bytes are.
        size_bytes: Its length.
        sha256: Lower-case hex, "" where nobody has computed it.
        crc32c: As an unsigned integer, None where nobody has computed it.
    """

    path: str
    uri: str
    size_bytes: int
    sha256: str = ""
    crc32c: int | None = None

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def is_at_root(self) -> bool:
        return "/" not in self.path

    @property
    def is_left(self) -> bool:
        """Whether a pull left it at the Hub, so that it has not moved yet."""
        return self.uri.startswith(("https://", "http://"))


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model's files and what is known of it; `jsons` keeps what was read of them, `open_left` opens what is left."""

    uri: str
    files: tuple[SourceFile, ...]
    model_id: str = ""
    revision: str = ""
    commit_sha: str = ""
    licence: str = "unknown"
    source: str = ""
    open_left: OpenLeft | None = field(default=None, repr=False, compare=False)
    jsons: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False, compare=False)

    def find(self, path: str) -> SourceFile | None:
        return next((file for file in self.files if file.path == path), None)

    def open(self, file: SourceFile) -> ByteReader:
        """Open one of the files, wherever its bytes are.

        Raises:
            StorageError: it cannot be read, or was left at the Hub and nobody here can read there.
        """
        if not file.is_left:
            return open_reader(file.uri)
        if self.open_left is None:
            raise StorageError(
                f"{file.uri} was left at the Hub by the pull, and cannot be read from here.",
                next_step="Convert it with what opens it there (hub.open_left_files), or pull the model whole.",
            )
        left = LeftFile(
            model_id=self.model_id,
            commit_sha=self.commit_sha,
            path=file.path,
            uri=file.uri,
            size_bytes=file.size_bytes,
            sha256=file.sha256,
        )
        return self.open_left(left)

    def read_json(self, path: str) -> dict[str, Any]:
        """Read one of the files as a JSON object; {} where it is not there.

        Raises:
            StorageError: it is not a JSON object.
        """
        if path not in self.jsons:
            file = self.find(path)
            self.jsons[path] = _json_object(self._read_small(file), file.uri) if file else {}
        return self.jsons[path]

    def _read_small(self, file: SourceFile) -> bytes:
        if not file.is_left:
            return read_file(file.uri, max_bytes=_JSON_BYTES)
        if file.size_bytes > _JSON_BYTES:
            raise StorageError(
                f"{file.uri} has {file.size_bytes:,} bytes, expected at most {_JSON_BYTES:,} of a description.",
                next_step="Ask the model's owner for a repository whose descriptions are no larger.",
            )
        return bytes(self.open(file).read(0, file.size_bytes))


def read_source(uri: str, *, open_left: OpenLeft | None = None) -> ModelSource:
    """Find a model's files: those that its record names, else those that the folder or prefix has.

    Args:
        uri: Folder or prefix.
        open_left: Opens files that a pull left at the Hub.

    Raises:
        StorageError: there are none, or the record cannot be read.
    """
    if record := _read_record(uri):
        check_record(record.files, uri=uri)
        return replace(_from_record(uri, record), open_left=open_left)
    files = tuple(_stored(file) for file in list_files(uri) if file.path != COPY_RECORD)
    if not files:
        raise StorageError(f"{uri} has no files.", next_step="Give the folder or gs:// prefix that holds the model.")
    return ModelSource(uri=uri, files=files)


def source_at_hub(snapshot: Snapshot, open_left: OpenLeft) -> ModelSource:
    """A model whose files all lie at the Hub still."""
    return replace(_from_record(f"{snapshot.source}/{snapshot.model_id}", snapshot), open_left=open_left)


def _read_record(uri: str) -> Snapshot | PreparedWeights | None:
    record_uri = join(uri, SNAPSHOT_RECORD)
    if exists(record_uri):
        return Snapshot.from_json(read_file(record_uri, max_bytes=_RECORD_BYTES), uri=record_uri)
    record_uri = join(uri, WEIGHTS_RECORD)
    if exists(record_uri):
        return PreparedWeights.from_json(read_file(record_uri, max_bytes=_RECORD_BYTES), uri=record_uri)
    return None


def _stored(file: StoredFile) -> SourceFile:
    return SourceFile(path=file.path, uri=file.uri, size_bytes=file.size_bytes, sha256=file.sha256, crc32c=file.crc32c)


def _from_record(uri: str, record: Snapshot | PreparedWeights) -> ModelSource:
    """Take the files that a record names.

    Prepared weights are found beside their record where they lie there, also when the folder was moved since.
    """
    moved = isinstance(record, PreparedWeights)
    beside = {file.path: file.uri for file in list_files(uri)} if moved else {}
    return ModelSource(
        uri=uri,
        files=tuple(
            SourceFile(
                path=file.path,
                uri=beside.get(file.path, file.uri),
                size_bytes=file.size_bytes,
                sha256=file.sha256,
                crc32c=file.crc32c,
            )
            for file in record.files
        ),
        model_id=record.model_id,
        revision=record.revision,
        commit_sha=record.commit_sha,
        licence=record.licence,
        source=record.source,
    )


def version_of(file: SourceFile) -> str:
    """Return what changes when a file's bytes change, without a request where a listing told it already."""
    if file.sha256 or file.crc32c is not None:
        return file.sha256 or str(file.crc32c)
    return open_reader(file.uri).version


def _json_object(data: bytes, uri: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{uri} is not JSON: {error}.", next_step="Download the file again.") from error
    if not isinstance(found, Mapping):
        raise StorageError(f"{uri} is a JSON {type(found).__name__}, expected an object.")
    return dict(found)
