"""The manifest: what a release consists of, written last, so that a release without one does not exist."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

from streamway.errors import ReleaseError, StorageError
from streamway.storage.addresses import check_relative, join
from streamway.storage.records import RecordedFile

FORMAT_VERSION = 1
MAX_BYTES = 32 * 1024 * 1024
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class ManifestFile:
    """One published file.

    Args:
        path: Relative to the release.
        size_bytes: Its length.
        sha256: Lower-case hex.
        crc32c: Castagnoli checksum as an unsigned integer.
        generation: The object's generation; 0 in a local folder.
    """

    path: str
    size_bytes: int
    sha256: str
    crc32c: int
    generation: int

    @property
    def content(self) -> tuple[str, int, str, int]:
        """Everything but where it was written: what two equal releases share."""
        return self.path, self.size_bytes, self.sha256, self.crc32c

    def at(self, release_uri: str) -> RecordedFile:
        """Return the file as a record names it, where this release has it."""
        return RecordedFile(
            path=self.path,
            uri=join(release_uri, self.path),
            size_bytes=self.size_bytes,
            sha256=self.sha256,
            crc32c=self.crc32c,
        )


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A release, described.

    Args:
        model_id: Hub id.
        revision: What was asked for when it was made.
        commit_sha: What that meant.
        licence: From the model card, or "unknown".
        source: Address of the Hub.
        files: In order of path.
        conversion: The report of the conversion, as plain JSON.
        created: When, RFC 3339 in UTC.
        tool: Name and version of what wrote it.
        format_version: Of this record.
    """

    model_id: str
    revision: str
    commit_sha: str
    licence: str
    source: str
    files: tuple[ManifestFile, ...]
    conversion: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""
    tool: str = ""
    format_version: int = FORMAT_VERSION

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def same_content(self, other: "Manifest") -> bool:
        """Tell whether two releases hold the same files, whoever wrote them when."""
        mine, theirs = ([file.content for file in manifest.files] for manifest in (self, other))
        return (self.model_id, self.commit_sha, mine) == (other.model_id, other.commit_sha, theirs)

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, text: str | bytes, *, uri: str) -> Self:
        """Read a manifest, refusing anything that this version would not have written.

        Raises:
            ReleaseError: it is damaged, or of another version.
        """
        try:
            fields = json.loads(text)
            if fields.get("format_version") != FORMAT_VERSION:
                raise ValueError(f"format_version is {fields.get('format_version')!r}, expected {FORMAT_VERSION}")
            files = tuple(_read_file(entry) for entry in fields.pop("files"))
            if len({file.path for file in files}) != len(files):
                raise ValueError("a path appears twice")
            return cls(files=files, **fields)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, StorageError) as error:
            raise ReleaseError(
                f"{uri} is not a manifest that this version can read: {error}.",
                next_step="Publish the release again under a new root, or use the version that wrote it.",
            ) from error


def _read_file(entry: Mapping[str, Any]) -> ManifestFile:
    file = ManifestFile(**entry)
    check_relative(file.path)
    numbers = (file.size_bytes, file.crc32c, file.generation)
    if not all(type(number) is int and number >= 0 for number in numbers) or file.crc32c >= 1 << 32:
        raise ValueError(f"{file.path}: {numbers} are not sizes and checksums")
    if not _SHA256.fullmatch(file.sha256):
        raise ValueError(f"{file.path}: {file.sha256!r} is not a sha256")
    return file


def now() -> str:
    """Return the time as manifests write it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
