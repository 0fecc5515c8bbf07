"""The pickle machine builds plain data exactly as Python does, and refuses everything else by name."""

import builtins
import collections
import os
import pickle
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from byte_readers import BytesReader
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_writer import Call, Global, Persistent, Raw, pickle_bytes

from streamway.errors import CheckpointError, StreamwayError, UnsafePickleError, WeightsError
from streamway.weights.pickles import read_pickle
from streamway.weights.torch_objects import StorageRef, TensorRef, TorchVocabulary
from streamway.weights.windows import ByteWindow


def read(data: bytes, budget_bytes: int = 64 * 1024 * 1024) -> Any:
    window = ByteWindow(BytesReader(data), 0, len(data), subject="memory.bin")
    return read_pickle(window, TorchVocabulary("memory.bin"), subject="memory.bin", budget_bytes=budget_bytes)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=300)
)
PLAIN = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.tuples(inner, inner)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text() | st.integers(-1000, 1000), inner, max_size=5)
    ),
    max_leaves=40,
)


@settings(deadline=None, max_examples=150)
@given(value=PLAIN, protocol=st.integers(1, 5))
def test_plain_data_is_read_as_python_wrote_it(value: Any, protocol: int) -> None:
    assert read(pickle.dumps(value, protocol)) == value


@settings(deadline=None, max_examples=60)
@given(value=PLAIN)
def test_the_text_protocol_is_read_as_python_wrote_it(value: Any) -> None:
    assert read(pickle.dumps(value, 0)) == value


@settings(deadline=None, max_examples=60)
@given(value=st.sets(st.integers(-100, 100) | st.text(max_size=5)) | st.frozensets(st.integers(0, 100)))
def test_sets_are_read_where_the_protocol_has_them(value: Any) -> None:
    assert read(pickle.dumps(value, 4)) == value


def test_values_that_are_stored_once_stay_one_object() -> None:
    shared = ["x"]
    first, second = read(pickle.dumps([shared, shared]))
    assert first is second


def test_a_list_that_holds_itself_ends() -> None:
    loop: list[Any] = []
    loop.append(loop)
    found = read(pickle.dumps(loop))
    assert found[0] is found


def test_ordered_dicts_keep_their_order_and_drop_their_attributes() -> None:
    ordered = collections.OrderedDict([("b", 1), ("a", 2)])
    ordered._metadata = collections.OrderedDict(x=1)  # type: ignore[attr-defined]
    assert list(read(pickle.dumps(ordered, 2)).items()) == [("b", 1), ("a", 2)]


def test_a_tensor_becomes_a_description() -> None:
    storage = Persistent(("storage", Global("torch", "HalfStorage"), "7", "cuda:0", 12))
    hooks = Call(Global("collections", "OrderedDict"), ())
    made = Call(Global("torch._utils", "_rebuild_tensor_v2"), (storage, 2, (2, 3), (3, 1), False, hooks))
    assert read(pickle_bytes(made)) == TensorRef(StorageRef("7", 24, 0, "float16"), "float16", 2, (2, 3), (3, 1))


class Exploit:
    """Pickles to a call of whatever it is given."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch {marker}",), "posix.system"),
        (builtins.eval, ("open('{marker}', 'w')",), "eval"),
        (builtins.exec, ("open('{marker}', 'w')",), "exec"),
        (builtins.getattr, (os, "system"), "getattr"),
        (builtins.open, ("{marker}", "w"), "open"),
        (os.mkdir, ("{marker}",), "posix.mkdir"),
    ],
)
def test_calls_are_refused_by_name_and_never_made(
    tmp_path: Path, protocol: int, function: Any, arguments: tuple[Any, ...], name: str
) -> None:
    marker = tmp_path / "marker"
    filled = tuple(part.format(marker=marker) if isinstance(part, str) else "posix" for part in arguments)
    with pytest.raises(UnsafePickleError, match=name.replace(".", r"\.")) as caught:
        read(pickle.dumps({"weight": Exploit(function, *filled)}, protocol))
    assert "memory.bin" in str(caught.value)
    assert "Nothing was executed" in str(caught.value)
    assert not marker.exists()


def proto(body: bytes, version: int = 4) -> bytes:
    return b"\x80" + bytes([version]) + body


NASTY = {
    "inst": (b"(S'touch x'\nios\nsystem\n.", "os.system"),
    "inst_of_an_allowed_name": (b"(icollections\nOrderedDict\n.", "INST"),
    "obj": (b"(ccollections\nOrderedDict\no.", "OBJ"),
    "obj_of_nothing": (b"(N(o.", "OBJ"),
    "newobj_ex": (proto(b"ccollections\nOrderedDict\n)}\x92."), "NEWOBJ_EX"),
    "ext1": (proto(b"\x82\x05."), "extension code 5"),
    "ext2": (proto(b"\x83\x05\x01."), "extension code 261"),
    "ext4": (proto(b"\x84\x05\x01\x00\x00."), "extension code 261"),
    "persid": (b"Pstorage\n.", "PERSID"),
    "next_buffer": (proto(b"\x97.", 5), "NEXT_BUFFER"),
    "readonly_buffer": (proto(b"N\x98.", 5), "READONLY_BUFFER"),
    "global_by_attribute": (proto(b"\x8c\x02os\x8c\x0bpath.system\x93."), "os.path.system"),
    "global_with_newlines": (proto(b"\x8c\x02os\x8c\x08sys\ntem\x1b\x93."), r"os\.sys\\ntem\\x1b"),
    "torch_that_calls": (b"ctorch.hub\nload\n.", "torch.hub.load"),
    "torch_storage_confusion": (b"ctorch.storage\n_load_from_bytes\n.", "_load_from_bytes"),
    "storage_of_another_module": (b"cevil\nFloatStorage\n.", r"evil\.FloatStorage"),
    "storage_by_suffix": (b"cos\nsystemStorage\n.", "os.systemStorage"),
    "sparse": (b"ctorch._utils\n_rebuild_sparse_tensor\n.", "sparse"),
    "quantised": (b"ctorch._utils\n_rebuild_qtensor\n.", "quantisation"),
    "call_of_a_dict": (b"})R.", "a call of a dict"),
    "call_of_a_string": (b"S'os.system'\n(S'x'\ntR.", "a call of a str"),
    "call_of_a_dtype": (b"ctorch\nfloat32\n)R.", "a call of a TorchDType"),
    "build_on_a_dict": (b"}}b.", "attributes to be set on a dict"),
    "build_on_a_list": (b"]}b.", "attributes to be set on a list"),
    "build_on_a_constructor": (b"ccollections\nOrderedDict\n}b.", "attributes to be set on a Constructor"),
    "items_of_a_list": (b"]K\x01K\x02s.", "an item assignment to a list"),
    "append_to_a_dict": (b"}K\x01a.", "an append to a dict"),
    "append_to_a_tuple": (b")K\x01a.", "an append to a tuple"),
    "add_to_a_list": (proto(b"](K\x01\x90."), "adding elements to a list"),
}


@pytest.mark.parametrize("name", NASTY)
def test_tricks_are_refused_with_their_name(name: str) -> None:
    data, expected = NASTY[name]
    with pytest.raises(UnsafePickleError, match=expected):
        read(data)


BROKEN = {
    "empty": b"",
    "stop_alone": b".",
    "two_values": b"K\x01K\x02.",
    "open_mark": b"(K\x01.",
    "no_stop": b"K\x01",
    "mark_that_was_never_set": b"t.",
    "unknown_opcode": b"\xff.",
    "protocol_6": b"\x80\x06N.",
    "protocol_255": b"\x80\xffN.",
    "protocol_in_the_middle": b"\x80\x02N0\x80\x04N.",
    "memo_never_stored": b"h\x05.",
    "memo_negative": b"Np-1\n.",
    "memo_not_a_number": b"Npx\n.",
    "memo_of_nothing": b"q\x00.",
    "dup_of_nothing": b"2.",
    "pop_of_nothing": b"0.",
    "huge_string": b"X\xff\xff\xff\x7f.",
    "huge_string_8": b"\x8d" + b"\xff" * 8 + b".",
    "huge_bytes_8": b"\x8e\x00\x00\x00\x00\x00\x00\x00\x40.",
    "huge_bytearray": b"\x96\x00\x00\x00\x00\x00\x00\x00\x40.",
    "negative_string": b"T\xff\xff\xff\xff.",
    "huge_frame": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7fN.",
    "huge_long": b"\x8b\xff\xff\xff\x7f.",
    "long_of_two_thousand_bytes": b"\x8b\xd0\x07\x00\x00" + b"\x01" * 2000 + b".",
    "negative_long": b"\x8b\xff\xff\xff\xff.",
    "long_line": b"I" + b"9" * 5000 + b"\n.",
    "line_without_end": b"V" + b"a" * 2_000_000,
    "number_that_is_none": b"Ixyz\n.",
    "float_that_is_none": b"F1e\n.",
    "string_without_quotes": b"Sabc\n.",
    "bad_utf8": b"X\x02\x00\x00\x00\xff\xfe.",
    "odd_items": b"}(K\x01u.",
    "unhashable_key": b"}]K\x01s.",
    "dict_as_key": b"}}K\x01s.",
    "nested_tuple_as_key": b"}((K\x01ttK\x01s.",
    "huge_integer_as_key": b"}\x8a\x10" + b"\x7f" * 16 + b"K\x01s.",
    "arguments_that_are_no_tuple": b"ccollections\nOrderedDict\n]R.",
    "global_from_numbers": b"\x80\x04K\x01K\x02\x93.",
    "ordered_dict_of_numbers": b"ccollections\nOrderedDict\n(K\x05tR.",
    "ordered_dict_of_lists": b"ccollections\nOrderedDict\n(](]K\x01\x86etR.",
    "device_called_twice": b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
    "persistent_id_of_nothing": b"NQ.",
    "persistent_id_of_a_tuple": b")Q.",
    "encode_with_a_codec": b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.",
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_pickles_end_in_a_sentence(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"memory\.bin"):
        read(BROKEN[name])


def test_deep_nesting_needs_no_recursion() -> None:
    depth = 200_000
    value = read(b"]" * depth + b"a" * (depth - 1) + b".")
    for _ in range(depth - 1):
        (value,) = value
    assert value == []


def test_deep_tuples_and_their_doubling_cost_nothing() -> None:
    assert read(b")" + b"2\x86" * 5000 + b".")


def test_a_doubling_tuple_cannot_be_a_key() -> None:
    with pytest.raises(CheckpointError, match="as a key"):
        read(b"}K\x01\x85" + b"2\x86" * 60 + b"K\x01s.")


def test_tuples_as_keys_are_hashed_with_a_secret() -> None:
    (key,) = read(pickle.dumps({(1, 2): None}))
    assert key == (1, 2)
    assert hash(key) != hash((1, 2))


COLLIDING = [number * sys.hash_info.modulus for number in range(1, 4)]


@pytest.mark.parametrize(
    "program",
    [
        pickle_bytes(dict.fromkeys(COLLIDING)),
        pickle_bytes(Call(Global("collections", "OrderedDict"), ([(number, None) for number in COLLIDING],))),
        b"N" + b"".join(b"p%d\n" % number for number in COLLIDING) + b".",
    ],
    ids=["dict", "ordered", "memo"],
)
def test_numbers_that_collide_at_will_are_no_keys(program: bytes) -> None:
    with pytest.raises(CheckpointError):
        read(program)


@pytest.mark.parametrize("opcodes", [b"}", b"]", b"(", b"N", b"\x8f", b"K\x01", b"]\x94", b"N0"])
def test_endless_programs_are_stopped_by_the_budget(opcodes: bytes) -> None:
    with pytest.raises(CheckpointError, match="too large"):
        read(b"\x80\x04" + opcodes * 400_000 + b".", budget_bytes=4 * 1024 * 1024)


def test_text_is_paid_for_before_it_is_read() -> None:
    data = b"".join(b"X" + struct.pack("<I", 1_000_000) + b"a" * 1_000_000 for _ in range(5))
    with pytest.raises(CheckpointError, match="too large"):
        read(data, budget_bytes=3_000_000)


def test_a_rebuild_inside_a_rebuild_is_refused() -> None:
    kind = Global("torch", "Tensor")
    inner: Any = Global("torch._tensor", "_rebuild_from_type_v2")
    nested: Any = (inner, kind, (), {})
    for _ in range(50):
        nested = (inner, kind, nested, {})
    with pytest.raises(CheckpointError, match="does not wrap a tensor"):
        read(pickle_bytes(Call(inner, nested)))


@pytest.mark.parametrize(
    "view",
    [
        (-1, (2,), (1,)),
        (0, (-2,), (1,)),
        (0, (2,), (-1,)),
        (0, (2, 2), (1,)),
        (0, (2**63,), (1,)),
        (0, (True,), (1,)),
        (0, ("2",), (1,)),
        (0, (1,) * 100, (1,) * 100),
        (0, 5, 1),
    ],
)
def test_impossible_views_are_refused(view: Any) -> None:
    storage = Persistent(("storage", Global("torch", "FloatStorage"), "0", "cpu", 12))
    made = Call(Global("torch._utils", "_rebuild_tensor_v2"), (storage, *view, False, {}))
    with pytest.raises(CheckpointError, match="arguments that do not fit"):
        read(pickle_bytes(made))


@settings(deadline=None, max_examples=400)
@given(data=st.binary(max_size=200))
def test_random_bytes_are_data_or_an_error_of_ours(data: bytes) -> None:
    try:
        read(data, budget_bytes=1024 * 1024)
    except WeightsError as error:
        assert isinstance(error, StreamwayError)


OPCODES = st.sampled_from([bytes([code]) for code in range(256)])
PIECES = st.one_of(
    OPCODES,
    st.sampled_from([b"(", b"t", b"}", b"]", b")", b"K\x01", b"u", b"s", b"a", b"e", b"R", b"b", b"\x93", b"2", b"0"]),
    st.sampled_from([b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nSize\n"]),
    st.sampled_from(
        [b"X\x01\x00\x00\x00a", b"q\x00", b"h\x00", b"\x94", b"cos\nsystem\n", b"Q", b"c_codecs\nencode\n"]
    ),
)


@settings(deadline=None, max_examples=500)
@given(program=st.lists(PIECES, max_size=60))
def test_random_programs_are_data_or_an_error_of_ours(program: list[bytes]) -> None:
    try:
        read(b"".join(program) + b".", budget_bytes=1024 * 1024)
    except WeightsError as error:
        assert "memory.bin" in str(error)


@settings(deadline=None, max_examples=200)
@given(cut=st.floats(0, 1), flip=st.integers(0, 7), where=st.floats(0, 0.999))
def test_damaged_pickles_are_data_or_an_error_of_ours(cut: float, flip: int, where: float) -> None:
    storage = Persistent(("storage", Global("torch", "FloatStorage"), "0", "cpu", 12))
    hooks = Call(Global("collections", "OrderedDict"), ())
    made = Call(Global("torch._utils", "_rebuild_tensor_v2"), (storage, 0, (3, 4), (4, 1), False, hooks))
    data = bytearray(pickle_bytes({"weight": made, "more": [1, 2.5, None, Raw(b"\x88")]}))
    data[int(where * len(data))] ^= 1 << flip
    try:
        read(bytes(data[: max(1, int(cut * len(data)))]))
    except WeightsError as error:
        assert "memory.bin" in str(error)
