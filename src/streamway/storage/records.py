"""What one step leaves for the next: small JSON records beside the bytes they describe.

A record names every file by its path in the model and by the URI where its bytes are now, so a file that needs no
change is never copied from one step's folder to the next one's. `_snapshot.json` is written by the pull, and
`_weights.json` by the conversion; both are written last, so a folder with its record is complete.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from streamway.errors import StorageError
from streamway.storage.addresses import check_relative
from streamway.storage.segments import ByteReader

SNAPSHOT_RECORD = "_snapshot.json"
WEIGHTS_RECORD = "_weights.json"
FORMAT_VERSION = 1
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class RecordedFile:
    """One file of a model.

    Args:
        path: Its path inside the model, with forward slashes; never absolute, never with `..`.
        uri: Where its bytes are now: gs://, a path, or https:// where a pull left them at the Hub.
        size_bytes: Its length.
        sha256: Lower-case hex of its bytes.
        crc32c: Castagnoli checksum as an unsigned integer, None where nobody has computed it yet.
    """

    path: str
    uri: str
    size_bytes: int
    sha256: str
    crc32c: int | None = None


@dataclass(frozen=True, kw_only=True)
class LeftFile:
    """A file that a pull left where it was, to be read from there.

    Args:
        model_id: As in Snapshot.
        commit_sha: As in Snapshot.
        path: As in RecordedFile.
        uri: Its address at the Hub.
        size_bytes: Its length.
        sha256: What the Hub promises of its bytes.
    """

    model_id: str
    commit_sha: str
    path: str
    uri: str
    size_bytes: int
    sha256: str


OpenLeft = Callable[[LeftFile], ByteReader]
"""Opens such a file; whoever talks to the Hub knows how."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A model as it was pulled: one commit, only the files that serving needs.

    Args:
        model_id: Hub id, `org/name`, in the case that the Hub uses.
        revision: What was asked for, such as `main`.
        commit_sha: The 40 hex digits that it meant.
        licence: SPDX-like id from the model card, or "unknown".
        source: Address of the Hub.
        files: Every file, in order of path.
    """

    model_id: str
    revision: str
    commit_sha: str
    licence: str
    source: str
    files: tuple[RecordedFile, ...]

    def to_json(self) -> str:
        return _to_json(self)

    @classmethod
    def from_json(cls, text: str | bytes, *, uri: str) -> Self:
        """Read a record; `uri` names it in errors."""
        return _from_json(cls, text, uri)


@dataclass(frozen=True, kw_only=True)
class PreparedWeights:
    """A model that is ready to be published.

    Args:
        model_id: As in Snapshot; empty for a folder that never was on a Hub.
        revision: As in Snapshot.
        commit_sha: As in Snapshot; empty likewise.
        licence: As in Snapshot.
        source: As in Snapshot.
        files: Exactly what the release will hold, in order of path.
        report: What the conversion did and proved, as plain JSON.
    """

    model_id: str
    revision: str
    commit_sha: str
    licence: str
    source: str
    files: tuple[RecordedFile, ...]
    report: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        return _to_json(self)

    @classmethod
    def from_json(cls, text: str | bytes, *, uri: str) -> Self:
        """Read a record; `uri` names it in errors."""
        return _from_json(cls, text, uri)


def check_record(files: Iterable[RecordedFile], *, uri: str) -> None:
    """Hold the files of a record that a step goes on from to what a step writes; `uri` names it in errors.

    A folder that came from elsewhere may bring a record of its own. Who must know a file's hash to name it cannot have
    files of this machine published that are none of the model's.

    Raises:
        StorageError: a file has no SHA-256, or a path that leaves the model.
    """
    for file in files:
        check_relative(str(file.path))
        if not _SHA256.fullmatch(str(file.sha256)):
            raise StorageError(
                f"{uri} names {file.path!r} without the SHA-256 of its bytes, which every step records.",
                next_step="Delete the record and run again; if the folder came from elsewhere, do not trust it.",
            )


def _to_json(record: Any) -> str:
    return json.dumps({"format_version": FORMAT_VERSION, **asdict(record)}, indent=1, sort_keys=True)


def _from_json(cls: Any, text: str | bytes, uri: str) -> Any:
    try:
        fields = json.loads(text)
        version = fields.pop("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(f"format_version is {version!r}, expected {FORMAT_VERSION}")
        files = tuple(RecordedFile(**entry) for entry in fields.pop("files"))
        return cls(files=files, **fields)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StorageError(
            f"{uri} is not a record this version can read: {error}.",
            next_step="Delete it and run again; the step that writes it will make it anew.",
        ) from error
