"""Whether a checkpoint can become safetensors while it is read for the first time, from front to back.

Its owner has promised one SHA-256 of the whole file, and a hash follows in order. The tensors of a file are stored in
the order of their bytes, but wide elements must come before narrow ones, so a few buffers of another width lie out of
order; what does not pass in order is small, or the file is brought first.
"""

import itertools

from streamway.storage.segments import SourcePromise
from streamway.weights.shards import Shard
from streamway.weights.sources import SourceFile

_MOST_AGAIN_BYTES = 64 * 1024 * 1024
"""What may be read a second time for the hash alone, however small the file is; and the share of a large file."""
_MOST_AGAIN_SHARE = 0.02


def promise_of(shard: Shard, file: SourceFile) -> SourcePromise | None:
    """Return how a shard keeps its source's promise while it is written; None where it cannot.

    Args:
        shard: A file to be.
        file: The source of all its tensors, with the hash that is promised.
    """
    tensors = [tensor for tensor in shard.tensors if tensor.size_bytes]
    if not tensors or not all(tensor.is_row and tensor.reader.uri == file.uri for tensor in tensors):
        return None
    groups = [list(group) for _, group in itertools.groupby(tensors, key=lambda tensor: tensor.dtype.alignment)]
    sizes = [sum(tensor.size_bytes for tensor in group) for group in groups]
    largest = sizes.index(max(sizes))
    spans = [tensor.span for tensor in groups[largest]]
    if any(first[1] > second[0] for first, second in itertools.pairwise(spans)):
        return None
    if file.size_bytes - sizes[largest] > max(_MOST_AGAIN_BYTES, _MOST_AGAIN_SHARE * file.size_bytes):
        return None
    begin = len(shard.header) + sum(sizes[:largest])
    return SourcePromise(
        reader=tensors[0].reader, sha256=file.sha256, begin_bytes=begin, end_bytes=begin + sizes[largest]
    )
