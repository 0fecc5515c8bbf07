"""Publication: from verified files, wherever they are, to an immutable release that exists all at once.

Objects come first, by server-side copy with preconditions where they already are in Cloud Storage; every one is
checked against what was recorded; the manifest comes last, only if there is none. A reader looks for the manifest, so
it sees a whole release or no release.
"""

import hashlib
import importlib.metadata
import logging
import re
import shutil
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from streamway.errors import ReleaseError, StorageAccessError, StorageError
from streamway.storage.addresses import is_gs, join, local_path, parent, parse_gs
from streamway.storage.allowed import is_publishable
from streamway.storage.cloud import PreconditionFailedError, cloud_storage
from streamway.storage.digests import Checksums, crc32c, encode_crc32c
from streamway.storage.files import StoredFile, copy_file, delete_files, exists, list_files, read_file, write_file
from streamway.storage.layout import MANIFEST_SUFFIX, ModelLayout, manifest_uri_of
from streamway.storage.manifest import MAX_BYTES, Manifest, ManifestFile, now
from streamway.storage.parallel import map_at_once
from streamway.storage.readers import open_reader
from streamway.storage.records import WEIGHTS_RECORD, PreparedWeights, RecordedFile, check_record
from streamway.storage.segments import Extent, FilePlan, Progress
from streamway.storage.transfer import MEMORY_BYTES, WORKERS, write_files

log = logging.getLogger("streamway.storage")

_CHECK_BYTES = 8 * 1024 * 1024
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")
_MANIFESTS_READ = 50
"""How many earlier releases of a model are searched for files to reuse, newest first."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """A published model.

    Args:
        uri: Its prefix, with a trailing slash.
        manifest_uri: Its manifest.
        manifest: What that says.
        files: What it holds.
        size_bytes: Of all files.
        moved_bytes: That travelled through this process to publish it.
        copied_bytes: That Cloud Storage, or the disk, copied by itself.
        already_published: Whether it was there before.
    """

    uri: str
    manifest_uri: str
    manifest: Manifest
    files: tuple[ManifestFile, ...]
    size_bytes: int
    moved_bytes: int
    copied_bytes: int
    already_published: bool

    @property
    def recorded_files(self) -> tuple[RecordedFile, ...]:
        """Its files as the records of steps name them."""
        return tuple(file.at(self.uri) for file in self.files)


def find_release(release_uri: str) -> Release | None:
    """Return a published release; None where there is no manifest.

    Raises:
        ReleaseError: there is one, and it cannot be read.
    """
    manifest_uri = manifest_uri_of(release_uri)
    if not exists(manifest_uri):
        return None
    manifest = Manifest.from_json(read_file(manifest_uri, max_bytes=MAX_BYTES), uri=manifest_uri)
    return _release(release_uri, manifest, moved=0, copied=0, already=True)


def find_published_files(layout: ModelLayout) -> dict[str, RecordedFile]:
    """Return the files of a model's other releases under the same root, by sha256."""
    found: dict[str, RecordedFile] = {}
    for release_uri, manifest in read_other_manifests(layout):
        for file in manifest.files:
            found.setdefault(file.sha256, file.at(release_uri))
    return found


def read_other_manifests(layout: ModelLayout) -> list[tuple[str, Manifest]]:
    """Return (URI, manifest) of a model's other releases under the same root, newest first."""
    others = [uri for uri in _manifest_uris(layout.model_uri)[:_MANIFESTS_READ] if uri != layout.manifest_uri]
    read = zip(others, map_at_once(_read_if_possible, others), strict=True)
    return [(uri.removesuffix(MANIFEST_SUFFIX), manifest) for uri, manifest in read if manifest]


def _read_if_possible(manifest_uri: str) -> Manifest | None:
    try:
        return Manifest.from_json(read_file(manifest_uri, max_bytes=MAX_BYTES), uri=manifest_uri)
    except StorageError as error:
        log.warning("%s is passed over when looking for files to reuse: %s", manifest_uri, error.problem)
        return None


def _manifest_uris(model_uri: str) -> list[str]:
    """List the manifests of a model, newest first."""
    if is_gs(model_uri):
        address = parse_gs(model_uri)
        objects = cloud_storage().list_objects(address, delimiter="/")
        newest = sorted(objects, key=lambda stored: stored.generation, reverse=True)
        return [str(stored.address) for stored in newest if stored.address.key.endswith(MANIFEST_SUFFIX)]
    paths = local_path(model_uri).glob(f"*{MANIFEST_SUFFIX}")
    return [str(path) for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)]


def upload_model(
    *,
    weights_uri: str,
    release_root: str,
    memory_bytes: int = MEMORY_BYTES,
    workers: int = WORKERS,
    on_progress: Progress | None = None,
) -> Release:
    """Publish prepared weights as an immutable release.

    Args:
        weights_uri: Folder or prefix with a `_weights.json`; or a release that is published already.
        release_root: gs://BUCKET/PREFIX or a local folder.
        memory_bytes: Most memory for bytes in flight.
        workers: Most parts on their way at once.
        on_progress: Called with (bytes done, bytes in all).

    Raises:
        ReleaseError: another release is there under the same commit, or a file must not be published.
        ChecksumError: bytes are not what was recorded.
        StorageError: the root refuses.
    """
    if published := find_release(weights_uri):
        log.info("%s is published already; no byte moved.", published.uri)
        layout = ModelLayout(release_root, published.manifest.model_id, published.manifest.commit_sha)
        if layout.release_uri == published.uri:
            remove_staging(layout)  # which a run that was killed right after publication could not do
        return published
    prepared = _read_prepared(weights_uri)
    layout = ModelLayout(release_root, *_identity(prepared, weights_uri))
    _refuse_strangers(prepared.files)
    if there := find_release(layout.release_uri):
        return _accept_existing(there, prepared, layout)
    publication = _Publication(layout, prepared, memory_bytes, workers, on_progress)
    try:
        release = publication.publish()
    except ReleaseError:
        raise
    except StorageError:
        # Whoever publishes the same at the same time clears staging away under us when it is done.
        if there := find_release(layout.release_uri):
            return _accept_existing(there, prepared, layout)
        raise
    remove_staging(layout)
    return release


def _read_prepared(weights_uri: str) -> PreparedWeights:
    uri = join(weights_uri, WEIGHTS_RECORD)
    if not exists(uri):
        raise ReleaseError(
            f"{weights_uri} is neither a published release nor prepared weights: there is no {WEIGHTS_RECORD}.",
            next_step="Run the conversion first; it also prepares models that are safetensors already.",
        )
    # What the record says goes into the manifest, which must not become longer than any reader takes.
    prepared = PreparedWeights.from_json(read_file(uri, max_bytes=MAX_BYTES), uri=uri)
    check_record(prepared.files, uri=uri)
    return prepared


def _identity(prepared: PreparedWeights, weights_uri: str) -> tuple[str, str]:
    """Return model id and commit; a model that never was on a Hub is named by its folder and its content."""
    if prepared.model_id and prepared.commit_sha:
        return prepared.model_id, prepared.commit_sha
    content = hashlib.sha256("\n".join(f"{file.path} {file.sha256}" for file in prepared.files).encode())
    return prepared.model_id or f"local/{_as_name(parent(weights_uri)[1])}", content.hexdigest()[:40]


def _as_name(folder: str) -> str:
    """Make a model's name of a folder's, which may have spaces and anything else in it."""
    return _NOT_IN_NAMES.sub("-", folder).lstrip("-._").rstrip("-") or "model"


def _refuse_strangers(files: Sequence[RecordedFile]) -> None:
    strangers = [file.path for file in files if not is_publishable(file.path)]
    if strangers:
        raise ReleaseError(
            f"{', '.join(strangers)} must not be published: an engine would read them as part of the model, or "
            "download them for nothing.",
            next_step="Leave them out of the prepared weights.",
        )
    if not any(file.path.endswith(".safetensors") for file in files):
        raise ReleaseError("The prepared weights hold no safetensors file.", next_step="Run the conversion again.")


def _accept_existing(there: Release, prepared: PreparedWeights, layout: ModelLayout) -> Release:
    mine = sorted((file.path, file.size_bytes, file.sha256) for file in prepared.files)
    theirs = sorted((file.path, file.size_bytes, file.sha256) for file in there.files)
    if mine != theirs:
        differing = sorted({path for path, *_ in set(mine) ^ set(theirs)})
        raise ReleaseError(
            f"{there.uri} is published already with other content; these files differ: {', '.join(differing[:10])}.",
            next_step="Releases never change: publish under another root, or retire the release first.",
        )
    log.info("%s is published already; no byte moved.", there.uri)
    remove_staging(layout)
    return there


class _Publication:
    """One release on its way."""

    def __init__(
        self,
        layout: ModelLayout,
        prepared: PreparedWeights,
        memory_bytes: int,
        workers: int,
        on_progress: Progress | None,
    ) -> None:
        self._layout = layout
        self._prepared = prepared
        self._memory_bytes = memory_bytes
        self._workers = workers
        self._on_progress = on_progress
        self._total_bytes = sum(file.size_bytes for file in prepared.files)
        self._done_bytes = 0
        self._brought: set[str] = set()
        self._lock = threading.Lock()

    def publish(self) -> Release:
        there = {file.path: file for file in list_files(self._layout.release_uri)}
        missing = [file for file in self._prepared.files if not _is_there(file, there.get(file.path))]
        self._done_bytes = self._total_bytes - sum(file.size_bytes for file in missing)
        sources = self._sources(missing)
        moved_bytes = self._bring(sources)
        map_at_once(lambda pair: self._copy(*pair, there.get(pair[0].path)), list(zip(missing, sources, strict=True)))
        manifest = self._manifest(self._verified())
        already = self._write_manifest(manifest)
        copied_bytes = sum(file.size_bytes for file in missing) - moved_bytes
        log.info(
            "Published %s: %d files, %.2f GB; %.2f GB moved, %.2f GB copied in place.",
            self._layout.release_uri,
            len(manifest.files),
            manifest.size_bytes / 1e9,
            moved_bytes / 1e9,
            copied_bytes / 1e9,
        )
        return _release(self._layout.release_uri, manifest, moved=moved_bytes, copied=copied_bytes, already=already)

    def _sources(self, files: Sequence[RecordedFile]) -> list[RecordedFile]:
        """Find for each file the best place to copy it from: where it is, or another release that has it."""
        published = find_published_files(self._layout) if files else {}
        return [file if self._is_near(file.uri) else self._reusable(file, published) for file in files]

    def _reusable(self, file: RecordedFile, published: Mapping[str, RecordedFile]) -> RecordedFile:
        other = published.get(file.sha256)
        return replace(other, path=file.path) if other else file

    def _is_near(self, uri: str) -> bool:
        """Tell whether a file can be copied into the release without passing through this process."""
        root = self._layout.release_root
        if is_gs(root):
            return is_gs(uri)
        # A file outside the root may be written to by others, so it must not be shared by a hard link.
        return not is_gs(uri) and local_path(uri).is_relative_to(local_path(root))

    def _bring(self, sources: list[RecordedFile]) -> int:
        """Move what is on another kind of storage to staging, where it is near; return the bytes moved.

        Multipart uploads know no preconditions, so nothing is ever uploaded under the release's own prefix.
        """
        far = [index for index, file in enumerate(sources) if not self._is_near(file.uri)]
        self._brought = {sources[index].path for index in far}
        before = self._done_bytes
        written = write_files(
            [
                FilePlan(
                    uri=join(self._layout.staging_uri, "upload", sources[index].path),
                    segments=(_whole(sources[index]),),
                    sha256=sources[index].sha256,
                )
                for index in far
            ],
            memory_bytes=self._memory_bytes,
            workers=self._workers,
            on_progress=lambda done, _: self._tell(before + done),
        )
        self._done_bytes = before + sum(file.size_bytes for file in written)
        for index, file in zip(far, written, strict=True):
            sources[index] = replace(sources[index], uri=file.uri, crc32c=file.crc32c)
        return sum(file.moved_bytes for file in written)

    def _copy(self, file: RecordedFile, source: RecordedFile, seen: StoredFile | None) -> None:
        # What is there without a manifest is the rest of an interrupted publication, and is replaced.
        generation = 0 if seen is None else seen.generation or None
        copy_file(
            source.uri,
            join(self._layout.release_uri, file.path),
            if_generation=generation,
            crc32c=source.crc32c,
            sha256=file.sha256,
            link=True,
        )
        if file.path not in self._brought:  # those were counted while they moved
            with self._lock:
                self._done_bytes += file.size_bytes
                self._tell(self._done_bytes)

    def _verified(self) -> tuple[ManifestFile, ...]:
        """Compare everything under the prefix with what was recorded; remove what does not belong."""
        there = {file.path: file for file in list_files(self._layout.release_uri)}
        expected = {file.path: file for file in self._prepared.files}
        strays = [file.uri for path, file in there.items() if path not in expected]
        if strays:
            log.info("Removing %d files of an interrupted publication: %s", len(strays), ", ".join(strays[:5]))
            delete_files(strays)
        return tuple(_verify(file, there.get(path)) for path, file in sorted(expected.items()))

    def _manifest(self, files: tuple[ManifestFile, ...]) -> Manifest:
        return Manifest(
            model_id=self._layout.model_id,
            revision=self._prepared.revision,
            commit_sha=self._layout.commit_sha,
            licence=self._prepared.licence,
            source=self._prepared.source,
            files=files,
            conversion=self._prepared.report,
            created=now(),
            tool=f"streamway {importlib.metadata.version('streamway')}",
        )

    def _write_manifest(self, manifest: Manifest) -> bool:
        """Write the manifest if there is none; tell whether another run was faster with the same content."""
        uri = self._layout.manifest_uri
        try:
            write_file(uri, manifest.to_json(), if_generation=0)
        except PreconditionFailedError as error:
            theirs = Manifest.from_json(read_file(uri, max_bytes=MAX_BYTES), uri=uri)
            if not theirs.same_content(manifest):
                raise ReleaseError(
                    f"{uri}: another run published this commit with other content meanwhile.",
                    next_step="Compare the two manifests; retire the release that is wrong.",
                ) from error
            return True
        return False

    def _tell(self, done: int) -> None:
        if self._on_progress:
            self._on_progress(min(done, self._total_bytes), self._total_bytes)


def _whole(file: RecordedFile) -> Extent:
    return Extent(reader=open_reader(file.uri), offset_bytes=0, length_bytes=file.size_bytes)


def _is_there(file: RecordedFile, stored: StoredFile | None) -> bool:
    """Tell whether an interrupted publication already brought this file."""
    return (
        stored is not None
        and stored.generation > 0
        and (stored.size_bytes, stored.sha256) == (file.size_bytes, file.sha256)
        and (file.crc32c is None or file.crc32c == stored.crc32c)
    )


def _verify(file: RecordedFile, stored: StoredFile | None) -> ManifestFile:
    if stored is None:
        raise ReleaseError(f"{file.path} vanished from the release while it was published.", next_step="Run again.")
    checksum = stored.crc32c if stored.crc32c is not None else file.crc32c
    if checksum is None:
        checksum = _crc32c_of(stored.uri)
    if stored.size_bytes != file.size_bytes or (file.crc32c is not None and checksum != file.crc32c):
        raise ReleaseError(
            f"{stored.uri} has {stored.size_bytes} bytes and crc32c {encode_crc32c(checksum)}, expected "
            f"{file.size_bytes} and {encode_crc32c(file.crc32c or 0)}.",
            next_step="Run again; what is wrong under an unpublished prefix is replaced.",
        )
    return ManifestFile(
        path=file.path,
        size_bytes=file.size_bytes,
        sha256=file.sha256,
        crc32c=checksum,
        generation=stored.generation,
    )


def _crc32c_of(uri: str) -> int:
    return _checksums_of(uri).crc32c


def verify_release(uri: str, *, deep: bool = False) -> Release:
    """Compare a release with its manifest.

    Args:
        uri: The release's prefix.
        deep: Read every byte and compare SHA-256 too, instead of trusting Cloud Storage's own checksums.

    Raises:
        ReleaseError: there is no release, or it does not hold exactly what its manifest says.
    """
    release = find_release(uri)
    if release is None:
        raise ReleaseError(f"{uri}: there is no release here (no manifest).", next_step="Publish it first.")
    there = {file.path: file for file in list_files(release.uri)}
    complaints = [f"{path} does not belong" for path in sorted(there.keys() - {file.path for file in release.files})]
    for file in release.files:
        complaints += _complaints(file, there.get(file.path), deep=deep)
    if complaints:
        raise ReleaseError(
            f"{release.uri} is not what its manifest says: {'; '.join(complaints[:10])}.",
            next_step="Do not serve it; retire it and publish again.",
        )
    return release


def _complaints(file: ManifestFile, stored: StoredFile | None, *, deep: bool) -> Iterable[str]:
    if stored is None:
        yield f"{file.path} is missing"
    elif stored.size_bytes != file.size_bytes:
        yield f"{file.path} has {stored.size_bytes} bytes, expected {file.size_bytes}"
    elif stored.crc32c not in (None, file.crc32c):
        yield f"{file.path} has crc32c {encode_crc32c(stored.crc32c or 0)}, expected {encode_crc32c(file.crc32c)}"
    elif stored.generation != file.generation:
        yield f"{file.path} was written again (generation {stored.generation}, expected {file.generation})"
    elif deep or stored.crc32c is None:
        found = _checksums_of(stored.uri).sha256()
        if found != file.sha256:
            yield f"{file.path} has sha256 {found}, expected {file.sha256}"


def _checksums_of(uri: str) -> Checksums:
    reader = open_reader(uri)
    checksums = Checksums(sha256=True)
    buffer = bytearray(min(_CHECK_BYTES, reader.size_bytes))
    for offset in range(0, reader.size_bytes, _CHECK_BYTES):
        view = memoryview(buffer)[: min(_CHECK_BYTES, reader.size_bytes - offset)]
        reader.read_into(offset, view)
        checksums.add(view, crc32c(view))
    return checksums


def remove_staging(layout: ModelLayout) -> None:
    """Remove what the steps left in staging; who may not delete is told, and nothing else happens."""
    if not is_gs(layout.staging_uri):
        shutil.rmtree(local_path(layout.staging_uri), ignore_errors=True)
        return
    address, cloud = parse_gs(layout.staging_uri), cloud_storage()
    try:
        delete_files([str(stored.address) for stored in cloud.list_objects(address)])
        for pending, upload_id in cloud.list_uploads(address):
            cloud.abort_upload(pending, upload_id)
    except StorageAccessError as error:
        log.warning("%s stays in the bucket: %s", layout.staging_uri, error.problem)


def _release(uri: str, manifest: Manifest, *, moved: int, copied: int, already: bool) -> Release:
    return Release(
        uri=uri.rstrip("/") + "/",
        manifest_uri=manifest_uri_of(uri),
        manifest=manifest,
        files=manifest.files,
        size_bytes=manifest.size_bytes,
        moved_bytes=moved,
        copied_bytes=copied,
        already_published=already,
    )
