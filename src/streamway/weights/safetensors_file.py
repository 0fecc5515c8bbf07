"""The safetensors format: a header read with suspicion, and written so that weights stream well.

A file is an 8-byte little-endian length, a JSON header of that length, and the tensors' bytes one after the other.
Format and limits: the safetensors 0.8 specification. Every rule that its reader enforces is enforced here, and names
the tensor and the numbers where it does not hold; a few more refuse headers that only an attacker would write.
"""

import collections
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streamway.errors import SafetensorsError
from streamway.storage.segments import ByteReader
from streamway.weights.dtypes import DTYPES, DType
from streamway.weights.wording import show_name

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""

DATA_ALIGNMENT = 64
"""Tensors' data starts at a multiple of this: a cache line, as torch aligns its own storages, and a multiple of every
element's width. Streaming an 8 GiB file into an H100 took 1.7 times as long from an unaligned start, and larger
alignments gained nothing."""

_MAX_BRACKETS = 1_500_000
_MAX_COMMAS = 4_000_000
_MAX_DIMENSIONS = 64
_FIRST_READ_BYTES = 64 * 1024
_LENGTH_BYTES = 8


class HeaderError(SafetensorsError):
    """A header that breaks a rule; `code` names the rule for programs."""

    def __init__(self, code: str, problem: str) -> None:
        self.code = code
        super().__init__(
            problem, next_step="Download the file again; if it is the same, do not serve it: tell the model's owner."
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorEntry:
    """One tensor of a header.

    Args:
        name: Its name.
        dtype: Its element type.
        shape: Its dimensions.
        begin: First byte, counted from the start of the data.
        end: First byte behind it.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size_bytes(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True, kw_only=True)
class Header:
    """A header that keeps every rule.

    Args:
        entries: Tensors in order of their bytes.
        metadata: The `__metadata__` of the file.
        data_start: Offset in the file of the first tensor's first byte.
    """

    entries: tuple[TensorEntry, ...]
    metadata: Mapping[str, str]
    data_start: int

    @property
    def misaligned(self) -> tuple[str, ...]:
        """Names of the tensors whose bytes do not lie at a multiple of their element's width."""
        return tuple(
            entry.name
            for entry in self.entries
            if entry.size_bytes and (self.data_start + entry.begin) % entry.dtype.alignment
        )


def read_header(reader: ByteReader) -> Header:
    """Read and check a file's header; its data is not read.

    Raises:
        HeaderError: it breaks a rule of the format.
    """
    text, data_start = _read_text(reader)
    fields = _parse(text, reader.uri)
    metadata = _check_metadata(fields.pop("__metadata__", {}), reader.uri)
    entries = [_check_entry(name, entry, reader.uri) for name, entry in fields.items()]
    ordered = tuple(sorted(entries, key=lambda entry: (entry.begin, entry.end)))
    _check_coverage(ordered, reader.size_bytes - data_start, reader.uri)
    return Header(entries=ordered, metadata=metadata, data_start=data_start)


def _read_text(reader: ByteReader) -> tuple[bytes, int]:
    size = reader.size_bytes
    if size < _LENGTH_BYTES + 2:
        raise HeaderError("too-short", f"{reader.uri} has {size} bytes, too few for a safetensors file.")
    first = reader.read(0, min(size, _FIRST_READ_BYTES))
    length = int.from_bytes(first[:_LENGTH_BYTES], "little")
    data_start = _LENGTH_BYTES + length
    if length > MAX_HEADER_BYTES:
        raise HeaderError(
            "header-too-large",
            f"{reader.uri} announces a header of {length:,} bytes, at most {MAX_HEADER_BYTES:,} are allowed; it is no "
            "safetensors file, or a hostile one.",
        )
    if data_start > size:
        raise HeaderError(
            "header-past-end", f"{reader.uri} announces a header of {length:,} bytes, and has {size:,} in all."
        )
    rest = reader.read(len(first), data_start - len(first)) if data_start > len(first) else b""
    return (first + rest)[_LENGTH_BYTES:data_start], data_start


def _parse(text: bytes, uri: str) -> dict[str, Any]:
    brackets = text.count(b"[") + text.count(b"{")
    if brackets > _MAX_BRACKETS or text.count(b",") > _MAX_COMMAS:
        raise HeaderError(
            "header-too-many", f"{uri} has a header of {brackets:,} lists and objects, more than any model."
        )
    if not text.startswith(b"{"):
        raise HeaderError("header-not-json", f"{uri} has a header that does not start with '{{'.")
    try:
        fields = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except _DuplicateError as error:
        raise HeaderError("duplicate-key", f"{uri} has {show_name(str(error))} twice in its header.") from error
    except RecursionError as error:
        raise HeaderError("header-too-deep", f"{uri} has a header nested deeper than any model's.") from error
    except ValueError as error:
        raise HeaderError(
            "header-not-json", f"{uri} has a header that is not JSON: {show_name(str(error))}."
        ) from error
    return dict(fields)


class _DuplicateError(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        counts = collections.Counter(name for name, _ in pairs)
        raise _DuplicateError(counts.most_common(1)[0][0])
    return made


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _check_metadata(metadata: Any, uri: str) -> dict[str, str]:
    plain = isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    if not plain:
        raise HeaderError("bad-metadata", f"{uri} has a __metadata__ that is not text by name.")
    return dict(metadata)


def _check_entry(name: str, entry: Any, uri: str) -> TensorEntry:
    def fault(code: str, what: str) -> HeaderError:
        return HeaderError(code, f"{uri}: tensor {show_name(name)} {what}.")

    if (
        not name
        or len(name) > 4096
        or any(ord(character) < 32 or 0xD800 <= ord(character) < 0xE000 for character in name)
    ):
        raise fault("bad-name", "has a name that is empty, too long or not printable")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise fault("bad-entry", "is not described by exactly dtype, shape and data_offsets")
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise fault("unknown-dtype", f"has the unknown dtype {show_name(str(entry['dtype']), 40)}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _is_counts(shape) or len(shape) > _MAX_DIMENSIONS:
        raise fault("bad-shape", "has a shape that is not a list of sizes")
    if not _is_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise fault("bad-offsets", f"has data_offsets {show_name(str(offsets), 60)}, expected [begin, end]")
    bits, span = math.prod(shape) * dtype.bits, offsets[1] - offsets[0]
    if bits != span * 8:
        raise fault(
            "wrong-size",
            f"spans {span * 8:,} bits, and {dtype.code} {show_name(str(shape), 60)} takes {show_name(f'{bits:,}', 60)}",
        )
    return TensorEntry(name=name, dtype=dtype, shape=tuple(shape), begin=offsets[0], end=offsets[1])


def _is_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 62 for value in values)


def _check_coverage(ordered: Sequence[TensorEntry], data_bytes: int, uri: str) -> None:
    position = 0
    for entry in ordered:
        if entry.begin < position:
            raise HeaderError(
                "overlap",
                f"{uri}: tensor {show_name(entry.name)} begins at {entry.begin:,}, and the one before it ends at "
                f"{position:,}.",
            )
        if entry.begin > position:
            raise HeaderError(
                "gap",
                f"{uri}: {entry.begin - position:,} bytes before tensor {show_name(entry.name)} belong to no tensor.",
            )
        position = entry.end
    if position > data_bytes:
        raise HeaderError(
            "past-end", f"{uri}: its tensors end at {position:,}, and its data at {data_bytes:,}; the file is cut off."
        )
    if position < data_bytes:
        raise HeaderError("trailing", f"{uri}: {data_bytes - position:,} bytes at its end belong to no tensor.")


def build_header(tensors: Iterable[tuple[str, DType, tuple[int, ...], int]], metadata: Mapping[str, str]) -> bytes:
    """Write the start of a file, its length included, so that data begins aligned.

    Args:
        tensors: (name, dtype, shape, size in bytes) in the order of their bytes.
        metadata: What goes under `__metadata__`.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for name, dtype, shape, size in tensors:
        header[name] = {"dtype": dtype.code, "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    padding = -(_LENGTH_BYTES + len(text)) % DATA_ALIGNMENT
    return (len(text) + padding).to_bytes(_LENGTH_BYTES, "little") + text + b" " * padding
