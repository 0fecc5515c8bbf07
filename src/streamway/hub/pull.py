"""From a model id to a verified snapshot in staging, every byte moved once and checked against the Hub."""

import hashlib
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

from streamway.errors import ChecksumError, HubError
from streamway.hub.policy import find_remote_code, judge, judge_licence
from streamway.hub.reader import HubReader
from streamway.hub.repository import HubFile, Repository, hub_token, read_repository
from streamway.hub.selection import Selection, select_files
from streamway.storage import (
    ModelLayout,
    Patience,
    find_published_files,
    find_release,
    join,
    write_file,
    write_files,
)
from streamway.storage.http import HttpClient
from streamway.storage.parallel import map_at_once
from streamway.storage.records import SNAPSHOT_RECORD, RecordedFile, Snapshot
from streamway.storage.release import Release
from streamway.storage.segments import Extent, FilePlan, Progress
from streamway.storage.transfer import MEMORY_BYTES, WORKERS

log = logging.getLogger("streamway.hub")

_MOST_SMALL_BYTES = 64 * 1024 * 1024
"""Files outside large file storage are at most 10 MB on the Hub; their git hash needs them whole."""
_SMALL_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class PulledModel:
    """A model that is in staging, or published already.

    Args:
        uri: Where its `_snapshot.json` is; the release's prefix where it is published already.
        model_id: As the Hub writes it.
        commit_sha: What the revision meant.
        licence: From the model card, or "unknown".
        size_bytes: Of all files that serving needs.
        moved_bytes: That travelled in this call.
        already_published: Whether the release was found, so that nothing is left to do.
        files: In order of path.
    """

    uri: str
    model_id: str
    commit_sha: str
    licence: str
    size_bytes: int
    moved_bytes: int
    already_published: bool
    files: tuple[RecordedFile, ...]


def pull_model(
    *,
    model_id: str,
    revision: str = "main",
    release_root: str,
    staging_uri: str = "",
    token: str | None = None,
    allowed_licences: Sequence[str] = (),
    allow_remote_code: bool = False,
    leave_pickled: bool = False,
    memory_bytes: int = MEMORY_BYTES,
    workers: int = WORKERS,
    on_progress: Progress | None = None,
    patience: Patience | None = None,
) -> PulledModel:
    """Bring one commit of a model to staging, unless its release is there already.

    Pickled weights are of no use until they are converted. Left at the Hub, they are converted while they are read
    from there, and move once instead of twice; everything that can be found out before is found out here all the same.

    Args:
        model_id: Hub id, `org/name`.
        revision: Branch, tag or commit.
        release_root: Where releases are published: gs://BUCKET/PREFIX or a local folder.
        staging_uri: Where the snapshot goes; "" for its place under the root.
        token: The Hub's token; None for HF_TOKEN.
        allowed_licences: Ids as model cards write them; empty allows all.
        allow_remote_code: Whether a model may ask for code of its own; the code is never taken along.
        leave_pickled: Whether pickled weights stay where they are and are only recorded, for a conversion that reads
            them from the Hub (`open_left_files`).
        memory_bytes: Most memory for bytes in flight.
        workers: Most parts on their way at once.
        on_progress: Called with (bytes done, bytes in all).
        patience: How long to wait for the Hub and for Cloud Storage.

    Raises:
        HubError: the model cannot be had; see its subclasses.
        PolicyError: a policy forbids it.
        NoWeightsError: there is nothing to serve.
        ChecksumError: the Hub's bytes are not what it promises.
        TransferError: bytes could not be moved.
    """
    token = hub_token(token)
    repository = read_repository(model_id, revision, token=token, patience=patience)
    log.info("%s at %r is commit %s.", model_id, revision, repository.commit_sha)
    layout = ModelLayout(release_root, repository.model_id, repository.commit_sha)
    if release := find_release(layout.release_uri):
        judge_licence(repository, allowed_licences)
        log.info("%s is published already; no byte moved.", release.uri)
        return _published(release)
    pull = Pull(repository, token, patience)
    selection = pull.select(allowed_licences=allowed_licences, allow_remote_code=allow_remote_code)
    log.info("Taking %d files, %.2f GB.", len(selection.files), selection.size_bytes / 1e9)
    staging_uri = staging_uri or layout.snapshot_uri
    left = pull.leave(selection) if leave_pickled else {}
    files, moved_bytes = pull.bring(
        [file for file in selection.files if file.path not in left],
        layout,
        staging_uri,
        memory_bytes=memory_bytes,
        workers=workers,
        on_progress=on_progress,
    )
    files = tuple(sorted((*files, *left.values()), key=lambda file: file.path))
    log.info(
        "Snapshot %s: %.2f GB, of which %.2f GB moved now.", staging_uri, selection.size_bytes / 1e9, moved_bytes / 1e9
    )
    return _record(repository, staging_uri, files, moved_bytes)


def _record(repository: Repository, staging_uri: str, files: tuple[RecordedFile, ...], moved_bytes: int) -> PulledModel:
    """Write the record that makes a snapshot complete."""
    snapshot = Snapshot(
        model_id=repository.model_id,
        revision=repository.revision,
        commit_sha=repository.commit_sha,
        licence=repository.licence,
        source=repository.endpoint,
        files=files,
    )
    write_file(join(staging_uri, SNAPSHOT_RECORD), snapshot.to_json().encode())
    return PulledModel(
        uri=staging_uri,
        model_id=repository.model_id,
        commit_sha=repository.commit_sha,
        licence=repository.licence,
        size_bytes=sum(file.size_bytes for file in files),
        moved_bytes=moved_bytes,
        already_published=False,
        files=files,
    )


class Pull:
    """One repository being read, with its connections and the small files read so far."""

    def __init__(self, repository: Repository, token: str | None, patience: Patience | None = None) -> None:
        self.repository = repository
        self._token = token
        self._patience = patience
        self._client = HttpClient(patience)
        self._small: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self.moved_bytes = 0

    def open(self, file: HubFile) -> HubReader:
        """Open a file for reading by offset."""
        return HubReader(self._client, self.repository, file, self._token)

    def select(self, *, allowed_licences: Sequence[str], allow_remote_code: bool) -> Selection:
        """Choose the files and judge the model.

        Raises:
            NoWeightsError, PolicyError: as the selection and the policies say.
        """
        selection = select_files(self.repository, self.read_small)
        judge(
            self.repository,
            selection,
            allowed_licences=allowed_licences,
            allow_remote_code=allow_remote_code,
            remote_code=find_remote_code(selection, self.read_small),
        )
        return selection

    def read_small(self, file: HubFile) -> bytes:
        """Return a small file whole, checked against the Hub's hash; it travels once.

        Raises:
            ChecksumError: its bytes are not what the Hub promises.
        """
        with self._lock:
            if file.path in self._small:
                return self._small[file.path]
        if file.size_bytes > _MOST_SMALL_BYTES:
            raise HubError(f"{file.path} is {file.size_bytes} bytes long, expected at most {_MOST_SMALL_BYTES}.")
        data = self.open(file).read(0, file.size_bytes)
        _check_small(file, data)
        with self._lock:
            self._small[file.path] = data
            self.moved_bytes += len(data)
        return data

    def leave(self, selection: Selection) -> dict[str, RecordedFile]:
        """Record pickled weights where they are, at the Hub; those whose hash it does not promise must be brought."""
        weights = [file for file in selection.weights if selection.pickled and file.sha256 and not _is_index(file)]
        if weights:
            size = sum(file.size_bytes for file in weights)
            log.info("%.2f GB of pickled weights stay at the Hub, to be converted on their way.", size / 1e9)
        return {
            file.path: RecordedFile(
                path=file.path, uri=self.open(file).uri, size_bytes=file.size_bytes, sha256=file.sha256
            )
            for file in weights
        }

    def bring(
        self,
        files: Sequence[HubFile],
        layout: ModelLayout,
        staging_uri: str,
        *,
        memory_bytes: int,
        workers: int,
        on_progress: Progress | None,
    ) -> tuple[tuple[RecordedFile, ...], int]:
        """Move what is not there yet; return all files as they now stand, and how many bytes moved."""
        published = find_published_files(layout)
        reused = {file.path: published[file.sha256] for file in files if file.sha256 in published}
        if reused:
            size = sum(file.size_bytes for file in reused.values())
            log.info("%d files, %.2f GB, are in other releases of this model already.", len(reused), size / 1e9)
        rest = [file for file in files if file.path not in reused]
        plans = map_at_once(lambda file: self._plan(file, join(staging_uri, file.path)), rest, at_once=_SMALL_AT_ONCE)
        written = write_files(
            plans, memory_bytes=memory_bytes, workers=workers, on_progress=on_progress, patience=self._patience
        )
        brought = {
            file.path: RecordedFile(
                path=file.path,
                uri=result.uri,
                size_bytes=result.size_bytes,
                sha256=result.sha256 or "",
                crc32c=result.crc32c,
            )
            for file, result in zip(rest, written, strict=True)
        }
        recorded = brought | {path: replace(file, path=path) for path, file in reused.items()}
        return tuple(recorded[path] for path in sorted(recorded)), sum(result.moved_bytes for result in written)

    def _plan(self, file: HubFile, uri: str) -> FilePlan:
        if file.sha256:
            extent = Extent(reader=self.open(file), offset_bytes=0, length_bytes=file.size_bytes)
            return FilePlan(uri=uri, segments=(extent,), sha256=file.sha256)
        data = self.read_small(file)
        return FilePlan(uri=uri, segments=(data,), sha256=hashlib.sha256(data).hexdigest())


def _is_index(file: HubFile) -> bool:
    return file.path.endswith(".json")


def _check_small(file: HubFile, data: bytes) -> None:
    if file.sha256:
        expected, found = file.sha256, hashlib.sha256(data).hexdigest()
    else:
        expected = file.blob_id
        found = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    if expected != found:
        raise ChecksumError(
            f"{file.path}: its {len(data)} bytes have hash {found}, the Hub promises {expected}.",
            next_step="Run again; if it happens again, the Hub holds other bytes than it promises.",
        )


def _published(release: Release) -> PulledModel:
    manifest = release.manifest
    return PulledModel(
        uri=release.uri,
        model_id=manifest.model_id,
        commit_sha=manifest.commit_sha,
        licence=manifest.licence,
        size_bytes=release.size_bytes,
        moved_bytes=0,
        already_published=True,
        files=release.recorded_files,
    )
