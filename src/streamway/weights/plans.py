"""What a conversion will do, decided from headers and pickles alone, before a byte of a tensor is read."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streamway.storage.segments import SourcePromise
from streamway.weights.findings import WARNING, raise_first_error
from streamway.weights.folders import ModelFolder
from streamway.weights.pickled import plan_pickled
from streamway.weights.sets import ReadSet, ReadShard, read_set
from streamway.weights.shards import FORMAT_METADATA, SINGLE_NAME, Shard, build_index, build_shard, index_json
from streamway.weights.sources import ModelSource, SourceFile
from streamway.weights.straight import promise_of
from streamway.weights.tensors import row_tensor

log = logging.getLogger("streamway.weights")


@dataclass(frozen=True, kw_only=True)
class ConversionPlan:
    """What will stand in the result.

    Args:
        shards: Files to be written.
        kept: (path in the result, file) of weights that need no change.
        index: Bytes of a new index, None where none is needed or the source's own is kept.
        report: Its part of the report.
        aliases: Dropped name to kept name.
        tensors: Number of tensors stored.
        tensor_bytes: Their bytes.
        converted: Whether the source is pickled.
        promises: What sources must hash to that are left at the Hub, by the shard that each of them becomes; empty
            where nothing is left there, None where something is that cannot be converted on its way.
    """

    shards: tuple[Shard, ...]
    kept: tuple[tuple[str, SourceFile], ...]
    index: bytes | None
    report: dict[str, Any]
    aliases: dict[str, str]
    tensors: int
    tensor_bytes: int
    converted: bool
    promises: Mapping[str, SourcePromise] | None


def plan_conversion(source: ModelSource, folder: ModelFolder, *, shard_bytes: int) -> ConversionPlan:
    """Decide what is written and what passes by reference.

    Raises:
        UnsafePickleError: a pickle asks for more than tensors.
        CheckpointError: a checkpoint is malformed, or the files do not belong together.
        SafetensorsError: a safetensors set is malformed.
    """
    if folder.weights.form == "pickle":
        return _plan_pickled(source, folder, shard_bytes)
    return _plan_safetensors(source, folder)


def _plan_pickled(source: ModelSource, folder: ModelFolder, shard_bytes: int) -> ConversionPlan:
    plan = plan_pickled(source, folder.weights, shard_bytes=shard_bytes)
    stored = sum(len(shard.tensors) for shard in plan.shards)
    total = sum(shard.data_bytes for shard in plan.shards)
    log.info(
        "Converting %d pickled files with %d tensors (%.2f GiB) into %d safetensors shards.",
        len(folder.weights.files), plan.source_tensors, total / 2**30, len(plan.shards),
    )  # fmt: skip
    return ConversionPlan(
        shards=plan.shards,
        kept=(),
        index=build_index(plan.shards) if len(plan.shards) > 1 else None,
        report={
            "format": "torch " + "+".join(sorted(set(plan.forms))),
            "source_tensors": plan.source_tensors,
            "stored_twice": list(plan.doubled),
            "notes": list(plan.notes),
        },
        aliases=plan.aliases,
        tensors=stored,
        tensor_bytes=total,
        converted=True,
        promises=_promises(folder.weights.files, plan.shards),
    )


def _promises(files: Sequence[SourceFile], shards: Sequence[Shard]) -> dict[str, SourcePromise] | None:
    """Find out whether every file that is left at the Hub becomes one shard while it is read from there."""
    promises: dict[str, SourcePromise] = {}
    for file in files:
        if not file.is_left:
            continue
        made = [shard for shard in shards if any(tensor.reader.uri == file.uri for tensor in shard.tensors)]
        promise = promise_of(made[0], file) if len(made) == 1 else None
        if promise is None:
            return None
        promises[made[0].name] = promise
    return promises


def _plan_safetensors(source: ModelSource, folder: ModelFolder) -> ConversionPlan:
    found = read_set(source, folder.weights)
    raise_first_error(found.findings)
    names = {shard.file.path: _served_name(shard.file, found) for shard in found.shards}
    crooked = [shard for shard in found.shards if shard.header.misaligned]
    shards = tuple(_realigned(shard, names[shard.file.path]) for shard in crooked)
    kept = [(names[shard.file.path], shard.file) for shard in found.shards if not shard.header.misaligned]
    index = _index_of(found, names)
    notes = [f"{finding.subject} {finding.message}" for finding in found.findings if finding.severity == WARNING]
    if folder.weights.index and index and _says_the_same(source, folder.weights.index, index):
        kept.append((folder.weights.index.path, folder.weights.index))
        index = None
    elif folder.weights.index:
        notes.append(f"{folder.weights.index.path} is not kept, because it does not say what the release holds.")
    log.info(
        "%d safetensors shards with %d tensors are valid; %d must be written again to align them.",
        len(found.shards), len(found.entries), len(shards),
    )  # fmt: skip
    return ConversionPlan(
        shards=shards,
        kept=tuple(kept),
        index=index_json(*index) if index else None,
        report={
            "format": "safetensors",
            "source_tensors": len(found.entries),
            "stored_twice": [],
            "notes": notes,
        },
        aliases={},
        tensors=len(found.entries),
        tensor_bytes=found.data_bytes,
        converted=False,
        promises={},
    )


def _served_name(file: SourceFile, found: ReadSet) -> str:
    """A lone file gets the name that loaders look for; its bytes stay where they are."""
    return SINGLE_NAME if len(found.shards) == 1 else file.path


def _realigned(shard: ReadShard, name: str) -> Shard:
    tensors = [
        row_tensor(
            name=entry.name,
            code=entry.dtype.code,
            shape=entry.shape,
            reader=shard.reader,
            offset_bytes=shard.header.data_start + entry.begin,
            size_bytes=entry.size_bytes,
        )
        for entry in shard.header.entries
    ]
    metadata = {key: value for key, value in shard.header.metadata.items() if key not in FORMAT_METADATA}
    return build_shard(name, tensors, metadata=metadata)


def _index_of(found: ReadSet, names: Mapping[str, str]) -> tuple[dict[str, str], int] | None:
    """Return what an index of these shards says, under the names that they get; a lone file needs none."""
    if len(found.shards) == 1:
        return None
    homes = {entry.name: names[shard.file.path] for shard in found.shards for entry in shard.header.entries}
    return homes, found.data_bytes


def _says_the_same(source: ModelSource, file: SourceFile, index: tuple[dict[str, str], int]) -> bool:
    stated = source.read_json(file.path)
    metadata = stated.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return (stated.get("weight_map"), total) == index
