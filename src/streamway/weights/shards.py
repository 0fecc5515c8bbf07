"""How tensors are laid out in safetensors shards: names, order, sizes and the index."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from streamway.storage.segments import Segment
from streamway.weights.safetensors_file import build_header
from streamway.weights.tensors import SourceTensor

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
FORMAT_METADATA = {"format": "pt"}
"""transformers, accelerate and others refuse or warn about files without it."""

DEFAULT_SHARD_BYTES = 10_000_000_000
"""Measured, size makes no difference to how fast a model streams or converts (0.5 to 5 GB, benchmarks/convert.py
--shards). 10 GB is what transformers cut pickled checkpoints into, so each of those becomes one file; it keeps an
800 GB model at 80 objects, and leaves a unit that can be reused by the next commit."""

PIECE_BYTES = 2 * 1024 * 1024
"""How much of a strided tensor is made at a time."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One safetensors file to be.

    Args:
        name: Its file name.
        header: Its first bytes, up to the first tensor's.
        tensors: Its tensors in the order of their bytes.
    """

    name: str
    header: bytes = field(repr=False)
    tensors: tuple[SourceTensor, ...] = field(repr=False)

    @property
    def data_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.tensors)

    @property
    def size_bytes(self) -> int:
        return len(self.header) + self.data_bytes

    def segments(self) -> list[Segment]:
        """Return the row of bytes that the file is made of."""
        return [self.header, *(segment for tensor in self.tensors for segment in tensor.segments(PIECE_BYTES))]


def plan_shards(
    files: Sequence[Sequence[SourceTensor]], *, shard_bytes: int, aliases: Mapping[str, str] | None = None
) -> tuple[Shard, ...]:
    """Lay tensors out: each source file becomes one file, or several of at most `shard_bytes` of data.

    Tensors keep the order of their bytes in the source, so that it can be read once, from front to back. A tensor
    larger than `shard_bytes` gets a file of its own.

    Args:
        files: What to store of each source file, each name once.
        shard_bytes: Most data bytes in one file.
        aliases: Dropped name to kept name; the file with the kept one records it.
    """
    groups = [group for tensors in files for group in _split(tensors, shard_bytes)]
    names = shard_names(len(groups))
    return tuple(build_shard(name, group, aliases=aliases) for name, group in zip(names, groups, strict=True))


def _split(tensors: Sequence[SourceTensor], shard_bytes: int) -> list[list[SourceTensor]]:
    groups: list[list[SourceTensor]] = [[]]
    filled = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.span):
        if groups[-1] and filled + tensor.size_bytes > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.size_bytes
    return groups


def shard_names(count: int) -> list[str]:
    """Return the names that transformers and vLLM look for."""
    if count == 1:
        return [SINGLE_NAME]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def build_shard(
    name: str,
    tensors: Sequence[SourceTensor],
    *,
    aliases: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Shard:
    """Lay tensors out in one file so that each lies at a multiple of its element's width.

    Data starts aligned and no gaps are allowed, so wide elements come first; tensors of one width keep their order.

    Args:
        name: The file's name.
        tensors: What it holds.
        aliases: Dropped name to kept name. Those kept here are recorded in the metadata, in the way that
            `safetensors.torch.load_model` reads.
        metadata: What else goes into the metadata.
    """
    ordered = tuple(sorted(tensors, key=lambda tensor: -tensor.dtype.alignment))
    kept = {tensor.name for tensor in ordered}
    recorded = {alias: name for alias, name in sorted((aliases or {}).items()) if name in kept}
    entries = [(tensor.name, tensor.dtype, tensor.shape, tensor.size_bytes) for tensor in ordered]
    header = build_header(entries, {**(metadata or {}), **recorded, **FORMAT_METADATA})
    return Shard(name=name, header=header, tensors=ordered)


def build_index(shards: Sequence[Shard]) -> bytes:
    """Write `model.safetensors.index.json`: only names that are stored, and the bytes of tensors in all."""
    weight_map = {tensor.name: shard.name for shard in shards for tensor in shard.tensors}
    total = sum(shard.data_bytes for shard in shards)
    return index_json(weight_map, total)


def index_json(weight_map: Mapping[str, str], total_bytes: int) -> bytes:
    """Write an index as transformers does."""
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    return (json.dumps(index, indent=2, ensure_ascii=False) + "\n").encode()
