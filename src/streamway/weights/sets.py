"""A set of safetensors shards as one model: headers read in parallel, names held against each other and the index."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from streamway.storage.segments import ByteReader
from streamway.weights.findings import Finding, error, warning
from streamway.weights.folders import WeightSet
from streamway.weights.safetensors_file import Header, HeaderError, TensorEntry, read_header
from streamway.weights.shards import FORMAT_METADATA
from streamway.weights.sources import ModelSource, SourceFile
from streamway.weights.ties import is_embedding, is_head, ties_embeddings
from streamway.weights.wording import show_name

_HEADERS_AT_ONCE = 8
_AGAIN = "Download the model again at one commit; its files do not belong together."


@dataclass(frozen=True, kw_only=True)
class ReadShard:
    """One shard of a set, opened and understood."""

    file: SourceFile
    reader: ByteReader
    header: Header


@dataclass(frozen=True, kw_only=True)
class ReadSet:
    """Shards whose headers could be read, and what is wrong with the set."""

    shards: tuple[ReadShard, ...]
    findings: tuple[Finding, ...]

    @property
    def entries(self) -> dict[str, TensorEntry]:
        return {entry.name: entry for shard in self.shards for entry in shard.header.entries}

    @property
    def data_bytes(self) -> int:
        return sum(entry.size_bytes for shard in self.shards for entry in shard.header.entries)


def read_set(source: ModelSource, weights: WeightSet) -> ReadSet:
    """Read every header of a set by ranges, and judge the set; no tensor's byte is read."""
    with ThreadPoolExecutor(_HEADERS_AT_ONCE) as pool:
        results = list(pool.map(lambda file: _read_shard(source, file), weights.files))
    shards = tuple(result for result in results if isinstance(result, ReadShard))
    findings = [result for result in results if isinstance(result, Finding)]
    findings += _repeated_names(shards)
    if len(shards) == len(weights.files):
        findings += _index_against_headers(source, weights, shards)
        findings += _nothing_in(shards)
    findings += _layout(shards)
    return ReadSet(shards=shards, findings=tuple(findings))


def _read_shard(source: ModelSource, file: SourceFile) -> ReadShard | Finding:
    reader = source.open(file)
    try:
        return ReadShard(file=file, reader=reader, header=read_header(reader))
    except HeaderError as fault:
        return error(fault.code, file.path, fault.problem, fault.next_step)


def _repeated_names(shards: Sequence[ReadShard]) -> Iterator[Finding]:
    homes: dict[str, str] = {}
    for shard in shards:
        for entry in shard.header.entries:
            if entry.name in homes:
                yield error(
                    "duplicate-tensor",
                    show_name(entry.name),
                    f"is in both {homes[entry.name]} and {shard.file.path}, so which one is served depends on chance.",
                    _AGAIN,
                )
            homes[entry.name] = shard.file.path


def _index_against_headers(source: ModelSource, weights: WeightSet, shards: Sequence[ReadShard]) -> Iterator[Finding]:
    if weights.index is None or weights.weight_map is None:
        if len(shards) > 1:
            yield warning(
                "index-missing",
                weights.files[0].path,
                f"is one of {len(shards)} shards without an index, which transformers needs.",
                "Run streamway convert, which writes one.",
            )
        return
    tied = ties_embeddings(source.read_json("config.json")) is not False
    yield from compare_index(weights.index.path, weights.weight_map, _homes(shards), tied=tied)
    total = source.read_json(weights.index.path).get("metadata", {})
    found = sum(entry.size_bytes for shard in shards for entry in shard.header.entries)
    claimed = total.get("total_size") if isinstance(total, dict) else None
    if isinstance(claimed, int | float) and claimed != found:
        yield warning(
            "index-total-size",
            weights.index.path,
            f"says {show_name(f'{claimed:,}', 40)} bytes of tensors, and there are {found:,}.",
        )


def _nothing_in(shards: Sequence[ReadShard]) -> Iterator[Finding]:
    if not any(shard.header.entries for shard in shards):
        yield error(
            "no-tensors",
            shards[0].file.path,
            "holds no tensor, so there is nothing that an engine could load.",
            "Download the model again; if it is the same, ask the model's owner for its weights.",
        )


def _homes(shards: Sequence[ReadShard]) -> dict[str, str]:
    return {entry.name: shard.file.path for shard in shards for entry in shard.header.entries}


def compare_index(
    index_path: str, weight_map: Mapping[str, str], homes: Mapping[str, str], *, tied: bool = False
) -> Iterator[Finding]:
    """Hold an index against the tensors that the shards have.

    Args:
        index_path: The index, for messages.
        weight_map: Tensor to file, as the index says.
        homes: Tensor to file, as the files say.
        tied: Whether the model may tie its embeddings. Converters have left names in the index that they dropped from
            the files because another name holds their bytes (safetensors' convert.py); loaders do not miss those.
    """
    tied = tied and any(map(is_embedding, homes))
    for name, file in weight_map.items():
        home = homes.get(name)
        if home is None and tied and (is_head(name) or is_embedding(name)):
            yield warning(
                "index-tied-name",
                index_path,
                f"says that {show_name(name)} is in {show_name(file)}, and no shard has it; the model ties it.",
                "Run streamway convert, which writes the index that the shards make.",
            )
        elif home is None:
            yield error(
                "index-unknown-tensor",
                index_path,
                f"says that {show_name(name)} is in {show_name(file)}, and no shard has it.",
                _AGAIN,
            )
        elif home != file:
            yield error(
                "index-wrong-file",
                index_path,
                f"says that {show_name(name)} is in {show_name(file)}, and it is in {home}.",
                _AGAIN,
            )
    unlisted = sorted(set(homes) - set(weight_map))
    if unlisted:
        yield warning(
            "index-incomplete",
            index_path,
            f"does not list {len(unlisted)} tensors that the shards have, such as {show_name(unlisted[0])}; engines "
            "load them all the same.",
        )


def _layout(shards: Sequence[ReadShard]) -> Iterator[Finding]:
    for shard in shards:
        misaligned = shard.header.misaligned
        if misaligned:
            yield warning(
                "misaligned",
                shard.file.path,
                f"has {len(misaligned)} tensors at addresses that their dtype cannot be read from, such as "
                f"{show_name(misaligned[0])}; streaming copies each of them.",
                "Run streamway convert, which writes the shard again, aligned.",
            )
        if shard.header.metadata.get("format") != FORMAT_METADATA["format"]:
            found = show_name(shard.header.metadata.get("format", "none"), 40)
            yield warning(
                "format-metadata",
                shard.file.path,
                f"says format {found}, expected pt; some loaders refuse it, vLLM's streamer does not look.",
            )
