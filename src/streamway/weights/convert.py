"""Step 2 of serving a model: one verified set of safetensors, whatever the repository held.

Pickled checkpoints become safetensors in one streamed pass, from where they are to where they go: nothing is executed,
nothing is kept in memory but a few parts, and no local disk is needed on the way to a bucket. Where they are may still
be the Hub: then they move once, and are held to the Hub's hash while they pass. What already is
safetensors passes by reference; only a shard whose tensors lie unaligned is written again. Either way every tensor of
the result is held against its source before `_weights.json` says that the set is complete.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from streamway.errors import StorageError, WeightsError
from streamway.storage import (
    ModelLayout,
    Release,
    copy_file,
    delete_files,
    exists,
    find_release,
    is_gs,
    join,
    list_files,
    open_reader,
    read_file,
    write_file,
    write_files,
)
from streamway.storage.addresses import local_path
from streamway.storage.digests import crc32c
from streamway.storage.parallel import map_at_once
from streamway.storage.records import WEIGHTS_RECORD, OpenLeft, PreparedWeights, RecordedFile
from streamway.storage.segments import Extent, FilePlan, Progress, SourcePromise, WrittenFile
from streamway.weights.folders import ModelFolder, sort_folder
from streamway.weights.plans import ConversionPlan, plan_conversion
from streamway.weights.proofs import ProvedTensor, Witness, prove_shard
from streamway.weights.recipes import find_made, recipe
from streamway.weights.shards import (
    DEFAULT_SHARD_BYTES,
    INDEX_NAME,
    Shard,
)
from streamway.weights.sources import COPY_RECORD, ModelSource, SourceFile, read_source, version_of

log = logging.getLogger("streamway.weights")

MEMORY_BYTES = 256 * 1024 * 1024
_LOCAL_MEMORY_BYTES = 12 * 1024 * 1024
_LOCAL_WORKERS = 2
_REMOTE_WORKERS = 8
_PROOFS_AT_ONCE = 8
"""Between disks two workers with small parts are as fast as many with large ones, which only fill memory; towards a
bucket, parts under way hide each other's latency (benchmarks/results/convert.md)."""

_RULES_VERSION = 3
"""Raised when the same source would become other files, so that earlier results are not taken for this version's."""

_HASHED_BYTES = 4 * 1024 * 1024
_RECORD_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class ConvertedWeights:
    """One weight set that can be published.

    Args:
        uri: Folder or prefix of its record, or the release that was there already.
        files: Exactly what a release holds, in order of path, each where its bytes are now.
        tensors: Number of tensors stored.
        tensor_bytes: Their bytes.
        aliases: Dropped name to the name that holds its bytes.
        converted: Whether pickled weights were converted.
        realigned: Safetensors shards that were written again, aligned.
        moved_bytes: Bytes written in this call.
        report: What was done and proved, as plain JSON.
    """

    uri: str
    files: tuple[RecordedFile, ...] = field(repr=False)
    tensors: int
    tensor_bytes: int
    aliases: dict[str, str]
    converted: bool
    realigned: tuple[str, ...]
    moved_bytes: int
    report: dict[str, Any] = field(repr=False)


def convert_weights(
    *,
    snapshot_uri: str,
    weights_uri: str,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    copy_unchanged: bool = False,
    sha256: bool | None = None,
    open_left: OpenLeft | None = None,
    release_root: str = "",
    memory_bytes: int = MEMORY_BYTES,
    on_progress: Progress | None = None,
) -> ConvertedWeights:
    """Turn a model's weights into one verified set of safetensors.

    Args:
        snapshot_uri: The pulled model (its `_snapshot.json` says where each file is), or any folder or prefix that
            holds one.
        weights_uri: Where new files and the record go; folder or prefix.
        shard_bytes: Most bytes of tensors in one new shard.
        copy_unchanged: Copy what needs no change as well, so that `weights_uri` is a complete model.
        sha256: Whether new files get one. It takes longer than copying between local disks, so by default a complete
            local copy (`copy_unchanged`) is proved by crc32c alone, and recorded as `_conversion.json`; whatever goes
            towards a release gets both.
        open_left: Opens what the pull left at the Hub.
        release_root: Where other releases of the model may have what would be made here; "" to look nowhere.
        memory_bytes: Most memory for bytes in flight.
        on_progress: Called with (bytes done, bytes in all).

    Raises:
        UnsafePickleError: a pickle asks for more than tensors; nothing was executed.
        CheckpointError: a checkpoint is malformed or holds what safetensors cannot.
        SafetensorsError: a safetensors set is malformed.
        NoWeightsError: there is nothing that can be served.
        WeightsError: the result is not equal to its source.
        ChecksumError: what was left at the Hub is not what the Hub promises.
        TransferError: bytes could not be moved.
    """
    if (release := find_release(snapshot_uri)) and not copy_unchanged:
        log.info("%s is published already; its weights need nothing.", release.uri)
        return _from_release(release)
    source = read_source(snapshot_uri, open_left=open_left)
    if copy_unchanged:
        _refuse_own_folder(snapshot_uri, weights_uri)
    hashed = is_gs(weights_uri) or not copy_unchanged if sha256 is None else sha256
    layout = ModelLayout(release_root, source.model_id, source.commit_sha) if release_root else None
    work = _Work(
        source=source,
        uri=_absolute(weights_uri),
        shard_bytes=shard_bytes,
        copy_unchanged=copy_unchanged,
        sha256=hashed,
        layout=layout,
        memory_bytes=memory_bytes,
        on_progress=on_progress,
    )
    earlier = work.find_earlier()
    if earlier:
        log.info("%s is complete already; nothing was moved.", weights_uri)
        return earlier
    return work.run()


def _absolute(uri: str) -> str:
    """Make a local path hold from any folder, because it is recorded."""
    return uri if is_gs(uri) else str(local_path(uri).absolute())


def _resolved(uri: str) -> str:
    """Return what is equal for two ways to the same place, such as a link to a folder."""
    return uri.rstrip("/") if is_gs(uri) else str(local_path(uri).resolve())


def _refuse_own_folder(snapshot_uri: str, weights_uri: str) -> None:
    if _resolved(snapshot_uri) == _resolved(weights_uri):
        raise StorageError(
            f"{weights_uri} is both the source and the target.", next_step="Give another folder for the result."
        )


@dataclass(kw_only=True)
class _Work:
    """One conversion: what it was asked, as `convert_weights` says, and the steps it takes."""

    source: ModelSource
    uri: str
    shard_bytes: int
    copy_unchanged: bool
    sha256: bool
    layout: ModelLayout | None
    memory_bytes: int
    on_progress: Progress | None

    def __post_init__(self) -> None:
        local = not is_gs(self.uri)
        self.memory_bytes = min(self.memory_bytes, _LOCAL_MEMORY_BYTES) if local else self.memory_bytes
        self.workers = _LOCAL_WORKERS if local else _REMOTE_WORKERS
        self.fingerprint = self._fingerprint()
        self.record_uri = join(self.uri, WEIGHTS_RECORD if self.sha256 else COPY_RECORD)

    def _fingerprint(self) -> str:
        row = hashlib.sha256(f"{_RULES_VERSION} {self.shard_bytes} {self.copy_unchanged} {self.sha256}".encode())
        for file in self.source.files:
            row.update(f"\n{file.path}\0{file.size_bytes}\0{version_of(file)}".encode("utf-8", "surrogatepass"))
        return row.hexdigest()

    def find_earlier(self) -> ConvertedWeights | None:
        """Return what an earlier call with the same source and settings left, if all of it is still there."""
        if not exists(self.record_uri):
            return None
        try:
            data = read_file(self.record_uri, max_bytes=_RECORD_BYTES)
            record = PreparedWeights.from_json(data, uri=self.record_uri)
        except StorageError:
            return None
        if record.report.get("fingerprint") != self.fingerprint:
            return None
        present = {file.uri: file.size_bytes for file in list_files(self.uri)}
        ours = (file for file in record.files if file.uri.startswith(self.uri.rstrip("/") + "/"))
        reused = record.report.get("reused", ())
        if any(present.get(file.uri) != file.size_bytes for file in ours) or not all(map(exists, reused)):
            return None
        return _from_record(self.uri, record)

    def run(self) -> ConvertedWeights:
        folder = sort_folder(self.source)
        plan = plan_conversion(self.source, folder, shard_bytes=self.shard_bytes)
        made = find_made(self.layout, plan.shards, self.source.files) if self.layout else {}
        brought = 0
        if plan.promises is None and len(made) < len(plan.shards):
            brought = self._bring_left()
            folder = sort_folder(self.source)
            plan = plan_conversion(self.source, folder, shard_bytes=self.shard_bytes)
        self._refuse_strays(plan)
        fresh = [shard for shard in plan.shards if shard.name not in made]
        written, proved = self._write(fresh, plan.promises or {})
        proved += [tensor for shard in made.values() for tensor in shard.proved]
        placed = [self._place_kept(plan, folder)]
        if plan.index is not None:
            placed.append(self._write_index(plan.index))
        moved = brought + sum(file.moved_bytes for file in written) + sum(group.moved_bytes for group in placed)
        recorded = [*map(_recorded, (shard.name for shard in fresh), written), *(shard.file for shard in made.values())]
        recorded += [file for group in placed for file in group.recorded]
        report = self._report(folder, plan, proved, moved)
        report["reused"] = sorted(shard.file.uri for shard in made.values())
        record = PreparedWeights(
            model_id=self.source.model_id,
            revision=self.source.revision,
            commit_sha=self.source.commit_sha,
            licence=self.source.licence,
            source=self.source.source,
            files=tuple(sorted(recorded, key=lambda file: file.path)),
            report=report,
        )
        write_file(self.record_uri, record.to_json().encode())
        return _from_record(self.uri, record, moved_bytes=moved)

    def _bring_left(self) -> int:
        """Bring what cannot be converted on its way to where a pull would have put it; return the bytes that moved."""
        left = [file for file in self.source.files if file.is_left]
        log.info("%d files are not laid out to be converted on their way; they are brought first.", len(left))
        plans = []
        for file in left:
            whole = Extent(reader=self.source.open(file), offset_bytes=0, length_bytes=file.size_bytes)
            plans.append(FilePlan(uri=join(self.source.uri, file.path), segments=[whole], sha256=file.sha256))
        written = write_files(
            plans, memory_bytes=self.memory_bytes, workers=_REMOTE_WORKERS, on_progress=self.on_progress
        )
        here = {
            file.path: replace(file, uri=new.uri, crc32c=new.crc32c) for file, new in zip(left, written, strict=True)
        }
        self.source = replace(self.source, files=tuple(here.get(file.path, file) for file in self.source.files))
        return sum(file.moved_bytes for file in written)

    def _refuse_strays(self, plan: ConversionPlan) -> None:
        """Keep what an earlier model left in the target from being served with this one."""
        if not self.copy_unchanged:
            return
        ours = {shard.name for shard in plan.shards} | {path for path, _ in plan.kept}
        ours |= {INDEX_NAME} if plan.index is not None else set()
        for file in list_files(self.uri):
            if file.path.endswith((".safetensors", ".safetensors.index.json")) and file.path not in ours:
                raise WeightsError(
                    f"{self.uri} holds {file.path}, which is not part of this model and would be served with it.",
                    next_step="Give an empty folder for the result.",
                )

    def _write(
        self, shards: Sequence[Shard], promises: Mapping[str, SourcePromise]
    ) -> tuple[tuple[WrittenFile, ...], list[ProvedTensor]]:
        """Write the new shards, and prove each against its sources before anything speaks of it."""
        if not shards:
            return (), []
        witness = Witness(tensor for shard in shards for tensor in shard.tensors)
        plans = [
            FilePlan(uri=join(self.uri, shard.name), segments=witness.segments(shard), source=promises.get(shard.name))
            for shard in shards
        ]
        written = self._move(plans)

        def prove(shard: Shard, file: WrittenFile) -> tuple[ProvedTensor, ...]:
            return _prove(shard, file, witness, promised=shard.name in promises)

        with ThreadPoolExecutor(_PROOFS_AT_ONCE if is_gs(self.uri) else 1) as pool:
            proved = list(pool.map(prove, shards, written))
        return written, [tensor for group in proved for tensor in group]

    def _move(self, plans: Sequence[FilePlan], *, tell: bool = True) -> tuple[WrittenFile, ...]:
        return write_files(
            plans,
            memory_bytes=self.memory_bytes,
            workers=self.workers,
            sha256=self.sha256,
            read_back=True,
            on_progress=self.on_progress if tell else None,
        )

    def _place_kept(self, plan: ConversionPlan, folder: ModelFolder) -> "_Placed":
        kept = [*plan.kept, *((file.path, file) for file in folder.companions)]
        if self.copy_unchanged:
            return self._copy(plan, kept)
        return _Placed(recorded=tuple(_by_reference(path, file) for path, file in kept), moved_bytes=0)

    def _copy(self, plan: ConversionPlan, kept: Sequence[tuple[str, SourceFile]]) -> "_Placed":
        """Copy what is left unchanged: inside Cloud Storage where it is there with both hashes, else through here."""
        near = [(path, file) for path, file in kept if self._is_near(file)]
        copied = map_at_once(lambda pair: self._copy_in_place(*pair), near)
        plans: list[FilePlan] = []
        far = [(path, file) for path, file in kept if not self._is_near(file)]
        for path, file in far:
            reader = open_reader(file.uri)
            whole = Extent(reader=reader, offset_bytes=0, length_bytes=reader.size_bytes)
            plans.append(FilePlan(uri=join(self.uri, path), segments=[whole], sha256=file.sha256 or None))
        # Beside new shards these are small; where nothing is new, they are all there is to tell.
        written = self._move(plans, tell=not plan.shards)
        moved = tuple(_recorded(path, file) for (path, _), file in zip(far, written, strict=True))
        return _Placed(recorded=(*copied, *moved), moved_bytes=sum(file.moved_bytes for file in written))

    def _is_near(self, file: SourceFile) -> bool:
        return is_gs(self.uri) and is_gs(file.uri) and bool(file.sha256) and file.crc32c is not None

    def _copy_in_place(self, path: str, file: SourceFile) -> RecordedFile:
        uri = join(self.uri, path)
        copy_file(file.uri, uri, crc32c=file.crc32c, sha256=file.sha256)
        return _by_reference(path, replace(file, uri=uri))

    def _write_index(self, data: bytes) -> "_Placed":
        plan = FilePlan(uri=join(self.uri, INDEX_NAME), segments=[data], sha256=hashlib.sha256(data).hexdigest())
        (written,) = self._move([plan], tell=False)
        return _Placed(recorded=(_recorded(INDEX_NAME, written),), moved_bytes=written.moved_bytes)

    def _report(
        self, folder: ModelFolder, plan: ConversionPlan, proved: Sequence[ProvedTensor], moved: int
    ) -> dict[str, Any]:
        return {
            **plan.report,
            "fingerprint": self.fingerprint,
            "source_files": [file.path for file in folder.weights.files],
            "converted": plan.converted,
            "realigned": [] if plan.converted else [shard.name for shard in plan.shards],
            "tensors": plan.tensors,
            "tensor_bytes": plan.tensor_bytes,
            "aliases": plan.aliases,
            "shards": [
                {
                    "path": shard.name,
                    "tensors": len(shard.tensors),
                    "size_bytes": shard.size_bytes,
                    "recipe": recipe(shard, self.source.files),
                }
                for shard in plan.shards
            ],
            "left_behind": [{"path": path, "reason": reason} for path, reason in folder.left_behind],
            "moved_bytes": moved,
            "proof": _proof(self.uri, plan, proved),
        }


def _prove(shard: Shard, file: WrittenFile, witness: Witness, *, promised: bool) -> tuple[ProvedTensor, ...]:
    """Prove a shard, or remove it, so that a rerun does not take it for a good one."""
    try:
        disk_crc32c = file.crc32c if file.read_back else None
        return prove_shard(shard, file.uri, witness, disk_crc32c=disk_crc32c, promised=promised)
    except WeightsError:
        delete_files([file.uri])
        raise


@dataclass(frozen=True, kw_only=True)
class _Placed:
    recorded: tuple[RecordedFile, ...]
    moved_bytes: int


def _recorded(path: str, file: WrittenFile) -> RecordedFile:
    return RecordedFile(
        path=path, uri=file.uri, size_bytes=file.size_bytes, sha256=file.sha256 or "", crc32c=file.crc32c
    )


def _by_reference(path: str, file: SourceFile) -> RecordedFile:
    """Record a file where it is; only what nobody has hashed before is read for it."""
    sha256, checksum = (file.sha256, file.crc32c) if file.sha256 else _hash_file(file.uri)
    return RecordedFile(path=path, uri=file.uri, size_bytes=file.size_bytes, sha256=sha256, crc32c=checksum)


def _hash_file(uri: str) -> tuple[str, int]:
    reader, sha256, checksum = open_reader(uri), hashlib.sha256(), 0
    for offset in range(0, reader.size_bytes, _HASHED_BYTES):
        data = reader.read(offset, min(_HASHED_BYTES, reader.size_bytes - offset))
        sha256.update(data)
        checksum = crc32c(data, checksum)
    return sha256.hexdigest(), checksum


def _proof(uri: str, plan: ConversionPlan, proved: Sequence[ProvedTensor]) -> dict[str, Any]:
    if not plan.shards:
        method = "headers validated; every tensor's bytes are the source's own"
    elif is_gs(uri):
        method = "crc32c of the source's tensors adds up to the checksum that Cloud Storage computed"
    else:
        method = "crc32c of the source's tensors adds up to that of what was read back from disk"
    return {
        "method": method,
        "tensors_compared": len(proved),
        "bytes_compared": sum(tensor.size_bytes for tensor in proved),
        "tensors": {
            tensor.name: f"{tensor.dtype} {list(tensor.shape)} {tensor.file} crc32c:{tensor.crc32c:08x}"
            for tensor in proved
        },
    }


def _from_release(release: Release) -> ConvertedWeights:
    conversion = release.manifest.conversion
    return ConvertedWeights(
        uri=release.uri,
        files=release.recorded_files,
        tensors=int(conversion.get("tensors", 0)),
        tensor_bytes=int(conversion.get("tensor_bytes", 0)),
        aliases=dict(conversion.get("aliases", {})),
        converted=bool(conversion.get("converted", False)),
        realigned=tuple(conversion.get("realigned", ())),
        moved_bytes=0,
        report=dict(conversion),
    )


def _from_record(uri: str, record: PreparedWeights, *, moved_bytes: int = 0) -> ConvertedWeights:
    report: Mapping[str, Any] = record.report
    return ConvertedWeights(
        uri=uri,
        files=record.files,
        tensors=report["tensors"],
        tensor_bytes=report["tensor_bytes"],
        aliases=dict(report["aliases"]),
        converted=report["converted"],
        realigned=tuple(report["realigned"]),
        moved_bytes=moved_bytes,
        report=dict(report),
    )
