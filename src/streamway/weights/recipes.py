"""What a shard is made of, in words that hold across commits, so that what another release has is not made again.

A new commit often leaves the weights as they are. Safetensors are known by their SHA-256; what is yet to be made has
none, but the same header over the same bytes of the same source is the same file.
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from streamway.storage import ModelLayout, exists, read_other_manifests
from streamway.storage.records import RecordedFile
from streamway.weights.proofs import ProvedTensor
from streamway.weights.shards import Shard
from streamway.weights.sources import SourceFile

log = logging.getLogger("streamway.weights")


@dataclass(frozen=True, kw_only=True)
class MadeShard:
    """A shard that another release has.

    Args:
        file: Where, under the name that it has here.
        proved: What was proved of its tensors when it was made.
    """

    file: RecordedFile
    proved: tuple[ProvedTensor, ...]


def recipe(shard: Shard, files: Iterable[SourceFile]) -> str:
    """Return what tells a shard's bytes before they are made; "" where a source's hash is not known.

    Args:
        shard: A file to be.
        files: The files that its tensors are in.
    """
    hashes = {file.uri: file.sha256 for file in files}
    row = hashlib.sha256(hashlib.sha256(shard.header).digest())
    for tensor in shard.tensors:
        source = hashes.get(tensor.reader.uri, "")
        if not source:
            return ""
        row.update(
            f"{source} {tensor.offset_bytes} {tensor.dimensions} {tensor.element_bytes} {tensor.swap}\n".encode()
        )
    return row.hexdigest()


def find_made(layout: ModelLayout, shards: Sequence[Shard], files: Sequence[SourceFile]) -> dict[str, MadeShard]:
    """Find shards that other releases of the model have, by their names here.

    Args:
        layout: The release to be.
        shards: What would be made.
        files: Of which files.
    """
    wanted = {words: shard for shard in shards if (words := recipe(shard, files))}
    found: dict[str, MadeShard] = {}
    for release_uri, manifest in read_other_manifests(layout) if wanted else ():
        published = {file.path: file for file in manifest.files}
        for entry in manifest.conversion.get("shards", ()):
            shard = wanted.get(entry.get("recipe", ""))
            file = published.get(entry["path"])
            if shard is None or file is None or shard.name in found:
                continue
            proved = _proved_before(shard, manifest.conversion)
            recorded = file.at(release_uri)
            if proved is not None and exists(recorded.uri):
                found[shard.name] = MadeShard(file=replace(recorded, path=shard.name), proved=proved)
    if found:
        size = sum(made.file.size_bytes for made in found.values())
        log.info("%d shards, %.2f GB, are in other releases of this model already.", len(found), size / 1e9)
    return found


def _proved_before(shard: Shard, conversion: Mapping[str, Any]) -> tuple[ProvedTensor, ...] | None:
    """Take over what was proved of the same bytes; None where the report does not say it of every tensor."""
    told = conversion.get("proof", {}).get("tensors", {})
    proved = []
    for tensor in shard.tensors:
        _, _, checksum = str(told.get(tensor.name, "")).rpartition("crc32c:")
        if not checksum:
            return None
        proved.append(
            ProvedTensor(
                name=tensor.name,
                dtype=tensor.dtype.code,
                shape=tensor.shape,
                size_bytes=tensor.size_bytes,
                source=tensor.reader.uri,
                file=shard.name,
                crc32c=int(checksum, 16),
            )
        )
    return tuple(proved)
