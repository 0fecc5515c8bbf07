"""Headers are read as strictly as the reference reader does, and written so that every tensor lies aligned."""

import ctypes
import json
import struct
import sys
from typing import Any

import pytest
import safetensors
from byte_readers import BytesReader
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import NAMES

from streamway.errors import SafetensorsError
from streamway.weights.dtypes import DTYPES
from streamway.weights.safetensors_file import DATA_ALIGNMENT, Header, HeaderError, build_header, read_header


def file_of(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def header_of(data: bytes) -> Header:
    return read_header(BytesReader(data, "model.safetensors"))


def entry(shape: list[int], begin: int, end: int, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


TENSORS = st.lists(
    st.tuples(NAMES, st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 5), max_size=3)),
    max_size=8,
    unique_by=lambda item: item[0],
).map(
    # Elements narrower than a byte must fill whole bytes.
    lambda items: [(name, code, [*shape, 8] if DTYPES[code].bits % 8 else shape) for name, code, shape in items]
)


def sized(code: str, shape: list[int]) -> int:
    bits = DTYPES[code].bits
    for count in shape:
        bits *= count
    return bits // 8


@settings(deadline=None, max_examples=150)
@given(tensors=TENSORS, metadata=st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3))
def test_what_is_written_is_read_by_us_and_by_the_reference(tensors: Any, metadata: dict[str, str]) -> None:
    rows = [(name, DTYPES[code], tuple(shape), sized(code, shape)) for name, code, shape in tensors]
    start = build_header(rows, metadata)
    data = start + bytes(sum(size for *_, size in rows))
    assert len(start) % DATA_ALIGNMENT == 0
    found = header_of(data)
    assert {e.name: (e.dtype.code, list(e.shape)) for e in found.entries} == {n: (c, s) for n, c, s in tensors}
    assert dict(found.metadata) == metadata
    reference = {name: (info["dtype"], info["shape"]) for name, info in safetensors.deserialize(data)}
    assert reference == {name: (code, shape) for name, code, shape in tensors}


@settings(deadline=None, max_examples=100)
@given(tensors=TENSORS)
def test_what_the_reference_writes_is_read(tensors: Any) -> None:
    kept = [(name, code, shape) for name, code, shape in tensors if code in REFERENCE_NAMES]
    nothing = ctypes.create_string_buffer(8 * 5**3)
    specs = {
        name: safetensors.TensorSpec(
            dtype=REFERENCE_NAMES[code],
            shape=shape,
            data_ptr=ctypes.addressof(nothing),
            data_len=sized(code, shape),
        )
        for name, code, shape in kept
    }
    found = header_of(safetensors.serialize(specs, {"format": "pt"}))
    assert {e.name: (e.dtype.code, list(e.shape)) for e in found.entries} == {n: (c, s) for n, c, s in kept}


REFERENCE_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool", "U16": "uint16", "U32": "uint32", "U64": "uint64",
}  # fmt: skip

GOOD = {"a": entry([2], 0, 2), "b": entry([3], 2, 5)}

ATTACKS: dict[str, tuple[bytes, str]] = {
    "no_bytes": (b"", "too-short"),
    "only_a_length": (struct.pack("<Q", 2), "too-short"),
    "length_past_the_end": (file_of(GOOD, bytes(5), length=10_000), "header-past-end"),
    "length_of_exabytes": (file_of(GOOD, bytes(5), length=2**63), "header-too-large"),
    "length_just_over_the_limit": (file_of(GOOD, bytes(5), length=100_000_001), "header-too-large"),
    "not_json": (file_of(b"{nope}"), "header-not-json"),
    "a_list": (file_of(b"[1, 2]"), "header-not-json"),
    "leading_space": (file_of(b' {"a": 1}'), "header-not-json"),
    "not_utf8": (file_of(b'{"\xff\xfe": 1}'), "header-not-json"),
    "not_a_number": (file_of(b'{"a": NaN}'), "header-not-json"),
    "number_of_ten_thousand_digits": (file_of(b'{"a": ' + b"9" * 10_000 + b"}"), "header-not-json"),
    "something_after_the_end": (file_of(b"{} x"), "header-not-json"),
    "deep": (file_of(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "header-too-deep"),
    "millions_of_lists": (file_of(b'{"a": [' + b"[]," * 2_000_000 + b"[]]}"), "header-too-many"),
    "millions_of_numbers": (file_of(b'{"a": [' + b"1," * 5_000_000 + b"1]}"), "header-too-many"),
    "same_tensor_twice": (file_of(b'{"a": {}, "a": {}}'), "duplicate-key"),
    "same_field_twice": (file_of(b'{"a": {"dtype": "U8", "dtype": "I8"}}'), "duplicate-key"),
    "metadata_twice": (file_of(b'{"__metadata__": {}, "__metadata__": {}}'), "duplicate-key"),
    "metadata_of_numbers": (file_of({"__metadata__": {"a": 1}}), "bad-metadata"),
    "metadata_list": (file_of({"__metadata__": []}), "bad-metadata"),
    "entry_list": (file_of({"a": []}), "bad-entry"),
    "entry_without_dtype": (file_of({"a": {"shape": [], "data_offsets": [0, 0]}}), "bad-entry"),
    "entry_with_more": (file_of({"a": {**entry([0], 0, 0), "path": "/etc/passwd"}}), "bad-entry"),
    "unknown_dtype": (file_of({"a": entry([1], 0, 1, "F1")}, b"x"), "unknown-dtype"),
    "dtype_number": (file_of({"a": {**entry([1], 0, 1), "dtype": 8}}, b"x"), "unknown-dtype"),
    "negative_shape": (file_of({"a": entry([-1, -1], 0, 1)}, b"x"), "bad-shape"),
    "shape_of_text": (file_of({"a": entry(["1"], 0, 1)}, b"x"), "bad-shape"),  # type: ignore[list-item]
    "shape_of_truth": (file_of({"a": entry([True], 0, 1)}, b"x"), "bad-shape"),
    "shape_of_floats": (file_of({"a": entry([1.0], 0, 1)}, b"x"), "bad-shape"),  # type: ignore[list-item]
    "shape_of_a_thousand": (file_of({"a": entry([1] * 1000, 0, 1)}, b"x"), "bad-shape"),
    "overflowing_shape": (file_of({"a": entry([2**33, 2**33], 0, 4)}, bytes(4)), "wrong-size"),
    "shape_beyond_floats": (file_of({"a": entry([2**61] * 20, 0, 4)}, bytes(4)), "wrong-size"),
    "huge_dimension": (file_of({"a": entry([2**64], 0, 4)}, bytes(4)), "bad-shape"),
    "negative_offset": (file_of({"a": entry([1], -1, 0)}, b"x"), "bad-offsets"),
    "backward_offsets": (file_of({"a": entry([1], 1, 0)}, b"x"), "bad-offsets"),
    "three_offsets": (file_of({"a": {**entry([1], 0, 1), "data_offsets": [0, 1, 1]}}, b"x"), "bad-offsets"),
    "offsets_of_floats": (file_of({"a": {**entry([1], 0, 1), "data_offsets": [0.0, 1.0]}}, b"x"), "bad-offsets"),
    "span_too_small": (file_of({"a": entry([4], 0, 4, "F32")}, bytes(4)), "wrong-size"),
    "span_too_large": (file_of({"a": entry([1], 0, 4)}, bytes(4)), "wrong-size"),
    "overlap": (file_of({"a": entry([3], 0, 3), "b": entry([3], 2, 5)}, bytes(5)), "overlap"),
    "same_place": (file_of({"a": entry([3], 0, 3), "b": entry([3], 0, 3)}, bytes(3)), "overlap"),
    "gap": (file_of({"a": entry([2], 0, 2), "b": entry([2], 3, 5)}, bytes(5)), "gap"),
    "gap_at_the_start": (file_of({"a": entry([2], 1, 3)}, bytes(3)), "gap"),
    "data_cut_off": (file_of(GOOD, bytes(4)), "past-end"),
    "data_too_long": (file_of(GOOD, bytes(6)), "trailing"),
    "empty_name": (file_of({"": entry([0], 0, 0)}), "bad-name"),
    "control_in_name": (file_of({"a\u001b[31m": entry([0], 0, 0)}), "bad-name"),
    "surrogate_in_name": (file_of(b'{"\\ud800": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}'), "bad-name"),
    "endless_name": (file_of({"a" * 5000: entry([0], 0, 0)}), "bad-name"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_headers_are_refused_by_their_rule(attack: str) -> None:
    data, code = ATTACKS[attack]
    with pytest.raises(HeaderError) as caught:
        header_of(data)
    assert caught.value.code == code
    assert "model.safetensors" in str(caught.value)
    assert caught.value.next_step
    assert "\x1b" not in str(caught.value)


def test_a_good_header_is_accepted() -> None:
    found = header_of(file_of(GOOD, bytes(5)))
    assert [(e.name, e.begin, e.end) for e in found.entries] == [("a", 0, 2), ("b", 2, 5)]


def test_padding_behind_the_header_is_accepted() -> None:
    assert header_of(file_of(json.dumps(GOOD).encode() + b" " * 50, bytes(5))).entries


@settings(deadline=None, max_examples=300)
@given(where=st.floats(0, 0.9999), value=st.integers(0, 255), cut=st.none() | st.floats(0, 1))
def test_damage_is_never_accepted_where_the_reference_refuses(where: float, value: int, cut: float | None) -> None:
    data = bytearray(file_of({"a": entry([2, 2], 0, 8, "F16"), "b": entry([3], 8, 11)}, bytes(11)))
    data[int(where * len(data))] = value
    damaged = bytes(data if cut is None else data[: int(cut * len(data))])
    try:
        found = header_of(damaged)
    except SafetensorsError:
        return
    assert {e.name for e in found.entries} == {name for name, _ in safetensors.deserialize(damaged)}


def test_only_the_header_is_read() -> None:
    data = file_of({"a": entry([10_000_000], 0, 10_000_000)}, bytes(10_000_000))
    reader = BytesReader(data)
    read_header(reader)
    assert (reader.reads, reader.given_bytes) == (1, 64 * 1024)


def test_a_header_that_lies_about_its_length_is_not_read() -> None:
    reader = BytesReader(file_of(b"{}", bytes(1000), length=2**62))
    with pytest.raises(HeaderError):
        read_header(reader)
    assert reader.given_bytes < 2000


def test_misaligned_tensors_are_named() -> None:
    text = json.dumps({"a": entry([1], 0, 1), "b": entry([2], 1, 5, "F16"), "c": entry([0], 5, 5, "F64")}).encode()
    for padding in range(2):
        padded = text + b" " * (padding + len(text) % 2)
        assert header_of(file_of(padded, bytes(5))).misaligned == (("b",) if padding == 0 else ())


def test_the_recursion_limit_of_the_caller_does_not_matter() -> None:
    limit = sys.getrecursionlimit()
    with pytest.raises(HeaderError):
        header_of(ATTACKS["deep"][0])
    assert sys.getrecursionlimit() == limit
