"""What a set of torch checkpoints becomes: every tensor accounted for, ties resolved, shards planned."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from streamway.errors import CheckpointError
from streamway.weights.checkpoints import Checkpoint, read_checkpoint
from streamway.weights.findings import WARNING, raise_first_error
from streamway.weights.folders import WeightSet
from streamway.weights.overlaps import refuse_overlaps
from streamway.weights.sets import compare_index
from streamway.weights.shards import Shard, plan_shards
from streamway.weights.sources import ModelSource, SourceFile
from streamway.weights.ties import TiedNames, resolve_ties
from streamway.weights.wording import show_name

_FILES_AT_ONCE = 4


@dataclass(frozen=True, kw_only=True)
class PickledPlan:
    """How pickled weights become safetensors.

    Args:
        shards: What is to be written.
        source_tensors: How many names the checkpoints have.
        aliases: Dropped name to kept name.
        doubled: Names stored although their bytes are stored under another name too.
        forms: "zip" or "legacy", for each file.
        notes: What a reader of the report should know.
    """

    shards: tuple[Shard, ...]
    source_tensors: int
    aliases: dict[str, str]
    doubled: tuple[str, ...]
    forms: tuple[str, ...]
    notes: tuple[str, ...]


def plan_pickled(source: ModelSource, weights: WeightSet, *, shard_bytes: int) -> PickledPlan:
    """Open every checkpoint of a set, and plan what is written; no tensor's byte is read.

    Raises:
        UnsafePickleError: a pickle asks for more than tensors.
        CheckpointError: a file is malformed, or the files do not belong together.
    """
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        checkpoints = list(pool.map(lambda file: read_checkpoint(source.open(file)), weights.files))
    _refuse_repeated_names(weights.files, checkpoints)
    notes = [*_index_notes(weights, checkpoints), *_file_notes(weights.files, checkpoints)]
    config = source.read_json("config.json")
    ties = [resolve_ties(checkpoint.tensors, config) for checkpoint in checkpoints]
    for checkpoint, tied in zip(checkpoints, ties, strict=True):
        refuse_overlaps([tensor for tensor in checkpoint.tensors if tensor.name not in _set_aside(tied)])
    aliases = {dropped: kept for tied in ties for dropped, kept in tied.aliases.items()}
    stored = [tied.stored for tied in ties if tied.stored]
    return PickledPlan(
        shards=plan_shards(stored or [()], shard_bytes=shard_bytes, aliases=aliases),
        source_tensors=sum(len(checkpoint.tensors) for checkpoint in checkpoints),
        aliases=aliases,
        doubled=tuple(name for tied in ties for name in tied.doubled),
        forms=tuple(checkpoint.form for checkpoint in checkpoints),
        notes=tuple(notes),
    )


def _set_aside(tied: TiedNames) -> set[str]:
    return set(tied.aliases) | set(tied.doubled)


def _refuse_repeated_names(files: Sequence[SourceFile], checkpoints: Sequence[Checkpoint]) -> None:
    homes: dict[str, str] = {}
    for file, checkpoint in zip(files, checkpoints, strict=True):
        for tensor in checkpoint.tensors:
            if tensor.name in homes:
                raise CheckpointError(
                    f"{file.uri}: tensor {show_name(tensor.name)} is in {homes[tensor.name]} too.",
                    next_step="Download the model again at one commit; its files do not belong together.",
                )
            homes[tensor.name] = file.path


def _index_notes(weights: WeightSet, checkpoints: Sequence[Checkpoint]) -> list[str]:
    if weights.index is None or weights.weight_map is None:
        return []
    prefixes = [checkpoint.prefix for checkpoint in checkpoints if checkpoint.prefix]
    homes = {
        tensor.name: file.path
        for file, checkpoint in zip(weights.files, checkpoints, strict=True)
        for tensor in checkpoint.tensors
    }
    listed = {_strip(name, prefixes): file for name, file in weights.weight_map.items()}
    found = list(compare_index(weights.index.path, listed, homes))
    raise_first_error(found, CheckpointError)
    return [f"{finding.subject} {finding.message}" for finding in found if finding.severity == WARNING]


def _strip(name: str, prefixes: Sequence[str]) -> str:
    return name.removeprefix(prefixes[0]) if prefixes else name


def _file_notes(files: Sequence[SourceFile], checkpoints: Sequence[Checkpoint]) -> list[str]:
    notes = []
    for file, checkpoint in zip(files, checkpoints, strict=True):
        if checkpoint.path:
            notes.append(f"{file.path}: the weights were taken from {'.'.join(checkpoint.path)}.")
        if checkpoint.prefix:
            notes.append(f"{file.path}: the prefix {checkpoint.prefix!r} of a wrapper was taken off every name.")
        if checkpoint.left_out:
            notes.append(f"{file.path}: left out what is not weights: {', '.join(checkpoint.left_out)}.")
    return notes
