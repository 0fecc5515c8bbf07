"""Warm-start kits: engines' caches kept beside the release that made them, and the index that says which there are.

    ROOT/<org>/<name>/<sha>.kits/<key>-<digest>.tar    what an engine that passed had in its cache
    ROOT/<org>/<name>/<sha>.kits.json                  their digests, sizes and what they save

Both stand beside the release's prefix and not below it, so no engine lists or pulls them as part of the model. The
index is not part of the manifest because the manifest never changes: the stages that a release has passed are recorded
against the manifest's own digest, and rewriting it for a kit would make every such record void. Instead the index names
the manifest's digest, so that it speaks of exactly that release.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from streamway.errors import ReleaseError, StorageError
from streamway.storage.addresses import is_gs, local_path, parse_gs
from streamway.storage.cloud import PreconditionFailedError, cloud_storage
from streamway.storage.files import read_file, write_file
from streamway.storage.layout import manifest_uri_of
from streamway.storage.manifest import MAX_BYTES
from streamway.storage.readers import open_reader
from streamway.storage.segments import Extent, FilePlan
from streamway.storage.transfer import write_files

log = logging.getLogger("streamway.storage")

FORMAT_VERSION = 1
_INDEX_BYTES = 1 << 20
_ATTEMPTS = 5
_STARTS_KEPT = 20
"""How many later starts are remembered for each kit, newest last."""
_KEY = re.compile(r"[0-9a-f]{8,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class StartFigures:
    """How long one start of an engine took.

    Args:
        pod: Whose start.
        ready_seconds: From the engine's start to its first healthy answer.
        weights_seconds: Of that, the weights; None where the log does not say.
        engine_seconds: Of that, compilation, profiling and warm-up; None where the log does not say.
    """

    pod: str
    ready_seconds: float
    weights_seconds: float | None = None
    engine_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class StoredKit:
    """One kit of a release.

    Args:
        uri: Where it is.
        sha256: Of its bytes, as lower-case hex.
        size_bytes: Its length.
        generation: The object's, when it was stored.
        captured: When, RFC 3339 in UTC.
        made_for: What its key stands for, to be read by people.
        first_start: The start that made it.
        later_starts: Starts that restored it, newest last.
    """

    uri: str
    sha256: str
    size_bytes: int
    generation: int
    captured: str
    made_for: Mapping[str, Any]
    first_start: StartFigures
    later_starts: tuple[StartFigures, ...] = ()

    @property
    def saved_seconds(self) -> float | None:
        """What the latest start that restored it was faster by, in engine initialisation if both logs tell."""
        if not self.later_starts:
            return None
        first, later = self.first_start, self.later_starts[-1]
        if first.engine_seconds is not None and later.engine_seconds is not None:
            return round(first.engine_seconds - later.engine_seconds, 3)
        return round(first.ready_seconds - later.ready_seconds, 3)

    def with_start(self, start: StartFigures) -> "StoredKit":
        """Remember one more start that restored it; a pod counts once."""
        if any(known.pod == start.pod for known in self.later_starts):
            return self
        return replace(self, later_starts=(*self.later_starts, start)[-_STARTS_KEPT:])


@dataclass(frozen=True, kw_only=True)
class DroppedKits:
    """Kits of one key that did harm, one after another.

    Args:
        count: How many, since the last one that an engine started with.
        last: When the last of them was dropped, RFC 3339 in UTC.
        made_for: What the key stands for, to be read by people.
    """

    count: int
    last: str
    made_for: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class KitIndex:
    """The kits of one release.

    Args:
        manifest_sha256: Digest of the manifest of the release that they belong to.
        kits: By their keys.
        dropped: What was dropped, by its key.
        format_version: Of this record.
    """

    manifest_sha256: str
    kits: Mapping[str, StoredKit] = field(default_factory=dict)
    dropped: Mapping[str, DroppedKits] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION


def index_uri_of(release_uri: str) -> str:
    """Return where the index of a release's kits is."""
    return f"{release_uri.rstrip('/')}.kits.json"


def kit_uri_of(release_uri: str, key: str, sha256: str) -> str:
    """Return where a kit is; its name says what it holds, so it is never replaced by another one.

    Raises:
        StorageError: that is no key or no digest.
    """
    if not _KEY.fullmatch(key) or not _SHA256.fullmatch(sha256):
        raise StorageError(f"{key!r} with {sha256!r} is not a kit's key and digest.")
    return f"{release_uri.rstrip('/')}.kits/{key}-{sha256[:16]}.tar"


def release_of_kit(uri: str) -> str:
    """Return the release that a kit lies beside."""
    return f"{uri.rpartition('.kits/')[0]}/"


def read_kits(release_uri: str) -> Mapping[str, StoredKit]:
    """Read which kits a release has; none where its manifest is another one than theirs.

    Raises:
        ReleaseError: the index cannot be read.
    """
    return read_kit_index(release_uri).kits


def read_kit_index(release_uri: str) -> KitIndex:
    """Read the index of a release's kits; an empty one where its manifest is another one than theirs.

    Raises:
        ReleaseError: the index cannot be read.
    """
    index, _generation = _read(release_uri)
    if index is None:
        return KitIndex(manifest_sha256="")
    digest = _manifest_digest(release_uri)
    if index.manifest_sha256 != digest:
        log.warning("%s speaks of another release under this commit; its kits are not used", index_uri_of(release_uri))
        return KitIndex(manifest_sha256=digest)
    return index


def store_kit(
    release_uri: str, key: str, packed: Path, kit: Callable[[str, int], StoredKit], *, sha256: str
) -> StoredKit:
    """Put a kit beside its release and note it in the index.

    Args:
        release_uri: The release.
        key: The kit's key.
        packed: The archive on disk.
        kit: Makes the entry, given the URI and the generation.
        sha256: Of the archive.
    """
    uri = kit_uri_of(release_uri, key, sha256)
    reader = open_reader(str(packed))
    segment = Extent(reader=reader, offset_bytes=0, length_bytes=reader.size_bytes)
    (written,) = write_files([FilePlan(uri=uri, segments=[segment], sha256=sha256)])
    entry = kit(uri, written.generation)
    change_kits(release_uri, lambda kits: {**kits, key: entry})
    return entry


def change_kits(
    release_uri: str, change: Callable[[Mapping[str, StoredKit]], Mapping[str, StoredKit]]
) -> Mapping[str, StoredKit]:
    """Change which kits there are, whoever else does at the same time.

    Raises:
        StorageError: others were faster every time, or there is no release.
    """
    return change_kit_index(release_uri, lambda index: replace(index, kits=change(index.kits))).kits


def change_kit_index(release_uri: str, change: Callable[[KitIndex], KitIndex]) -> KitIndex:
    """Change the index, whoever else changes it at the same time.

    Raises:
        StorageError: others were faster every time, or there is no release.
    """
    uri, digest = index_uri_of(release_uri), _manifest_digest(release_uri)
    for _attempt in range(_ATTEMPTS):
        known, generation = _read(release_uri)
        speaks = known is not None and known.manifest_sha256 == digest
        before = known if known is not None and speaks else KitIndex(manifest_sha256=digest)
        after = change(before)
        if after == before and known is not None:
            return after
        text = json.dumps(asdict(after), indent=1, sort_keys=True).encode()
        try:
            write_file(uri, text, if_generation=generation)
        except PreconditionFailedError:
            continue
        return after
    raise StorageError(f"{uri} was changed by others {_ATTEMPTS} times in a row.", next_step="Run again.")


def is_as_stored(kit: StoredKit) -> bool:
    """Tell whether a kit is still the object that was stored."""
    if not is_gs(kit.uri):
        return local_path(kit.uri).is_file()
    stored = cloud_storage().stat(parse_gs(kit.uri))
    return stored is not None and (stored.generation, stored.size_bytes) == (kit.generation, kit.size_bytes)


def _read(release_uri: str) -> tuple[KitIndex | None, int | None]:
    """Return the index and its generation; (None, 0) where there is none."""
    uri = index_uri_of(release_uri)
    generation: int | None
    if is_gs(uri):
        stored = cloud_storage().stat(parse_gs(uri))
        if stored is None:
            return None, 0
        generation = stored.generation
    elif local_path(uri).is_file():
        generation = None  # a folder knows no generations
    else:
        return None, 0
    return _parse(read_file(uri, max_bytes=_INDEX_BYTES), uri), generation


def _parse(text: bytes, uri: str) -> KitIndex:
    try:
        fields = json.loads(text)
        if fields.get("format_version") != FORMAT_VERSION:
            raise ValueError(f"format_version is {fields.get('format_version')!r}, expected {FORMAT_VERSION}")
        kits = {key: _parse_kit(key, entry, uri) for key, entry in fields["kits"].items()}
        dropped = {key: DroppedKits(**entry) for key, entry in fields.get("dropped", {}).items()}
        return KitIndex(manifest_sha256=str(fields["manifest_sha256"]), kits=kits, dropped=dropped)
    except (ValueError, KeyError, TypeError, AttributeError, StorageError) as error:
        raise ReleaseError(
            f"{uri} is not an index of warm-start kits that this version can read: {error}.",
            next_step="Delete it; kits are captured again.",
        ) from error


def _parse_kit(key: str, entry: Mapping[str, Any], uri: str) -> StoredKit:
    starts = tuple(StartFigures(**start) for start in entry["later_starts"])
    kit = StoredKit(**{**entry, "first_start": StartFigures(**entry["first_start"]), "later_starts": starts})
    if kit.uri != kit_uri_of(uri.removesuffix(".kits.json"), key, kit.sha256):
        raise ValueError(f"the kit {key} is said to be at {kit.uri}, which is not its place")
    if type(kit.size_bytes) is not int or kit.size_bytes < 0:
        raise ValueError(f"the kit {key} has {kit.size_bytes!r} bytes")
    return kit


def _manifest_digest(release_uri: str) -> str:
    return hashlib.sha256(read_file(manifest_uri_of(release_uri), max_bytes=MAX_BYTES)).hexdigest()
