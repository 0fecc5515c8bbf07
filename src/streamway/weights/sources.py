"""Which files a model folder has, and where their bytes are: a recorded snapshot, or any folder or prefix."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from streamway.errors import StorageError
from streamway.storage import exists, join, list_files, open_reader, read_file
from streamway.storage.records import SNAPSHOT_RECORD, WEIGHTS_RECORD, Snapshot

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


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model's files and what is known of it."""

    uri: str
    files: tuple[SourceFile, ...]
    model_id: str = ""
    revision: str = ""
    commit_sha: str = ""
    licence: str = "unknown"
    source: str = ""

    def find(self, path: str) -> SourceFile | None:
        return next((file for file in self.files if file.path == path), None)

    def read_json(self, path: str) -> dict[str, Any]:
        """Read one of the files as a JSON object; {} where it is not there.

        Raises:
            StorageError: it is not a JSON object.
        """
        file = self.find(path)
        return read_json_object(file.uri) if file else {}


def read_source(uri: str) -> ModelSource:
    """Find a model's files: those that its snapshot records, else those that the folder or prefix has.

    Raises:
        StorageError: there are none, or the record cannot be read.
    """
    record_uri = join(uri, SNAPSHOT_RECORD)
    if exists(record_uri):
        return _from_snapshot(uri, Snapshot.from_json(read_file(record_uri, max_bytes=_RECORD_BYTES), uri=record_uri))
    own = (SNAPSHOT_RECORD, WEIGHTS_RECORD)
    files = tuple(
        SourceFile(path=file.path, uri=file.uri, size_bytes=file.size_bytes, sha256=file.sha256, crc32c=file.crc32c)
        for file in list_files(uri)
        if file.path not in own
    )
    if not files:
        raise StorageError(f"{uri} has no files.", next_step="Give the folder or gs:// prefix that holds the model.")
    return ModelSource(uri=uri, files=files)


def _from_snapshot(uri: str, snapshot: Snapshot) -> ModelSource:
    return ModelSource(
        uri=uri,
        files=tuple(
            SourceFile(path=file.path, uri=file.uri, size_bytes=file.size_bytes, sha256=file.sha256, crc32c=file.crc32c)
            for file in snapshot.files
        ),
        model_id=snapshot.model_id,
        revision=snapshot.revision,
        commit_sha=snapshot.commit_sha,
        licence=snapshot.licence,
        source=snapshot.source,
    )


def version_of(file: SourceFile) -> str:
    """Return what changes when a file's bytes change."""
    return file.sha256 or str(open_reader(file.uri).version)


def read_json_object(uri: str) -> dict[str, Any]:
    """Read a small JSON file whose top is an object.

    Raises:
        StorageError: it is not one.
    """
    try:
        found = json.loads(read_file(uri, max_bytes=_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{uri} is not JSON: {error}.", next_step="Download the file again.") from error
    if not isinstance(found, Mapping):
        raise StorageError(f"{uri} is a JSON {type(found).__name__}, expected an object.")
    return dict(found)
