"""Checkpoints of every kind that torch has written give their tensors; what cannot be served says why."""

import struct
from collections.abc import Callable
from typing import Any

import pytest
from byte_readers import BytesReader
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import state_dicts
from torch_writer import (
    Call,
    Global,
    Persistent,
    Raw,
    Storage,
    Tensor,
    checkpoint_bytes,
    expected_rows,
    legacy_bytes,
    members_of,
    tensor,
    with_member,
    zip_bytes,
)

from streamway.errors import CheckpointError, UnsafePickleError, WeightsError
from streamway.storage.segments import Computed, Extent
from streamway.weights.checkpoints import Checkpoint, read_checkpoint

Rows = dict[str, tuple[str, list[int], bytes]]
FOUR = struct.pack("<4f", 1, 2, 3, 4)


def opened(data: bytes) -> Checkpoint:
    return read_checkpoint(BytesReader(data))


def rows(data: bytes) -> Rows:
    found: Rows = {}
    for item in opened(data).tensors:
        row = b""
        for segment in item.segments(64):
            if isinstance(segment, Extent):
                row += segment.reader.read(segment.offset_bytes, segment.length_bytes)
            elif isinstance(segment, Computed):
                row += segment.make()
        found[item.name] = (item.dtype.code, list(item.shape), row)
    return found


@settings(deadline=None, max_examples=120)
@given(
    state=state_dicts(),
    protocol=st.integers(1, 5),
    zip64=st.booleans(),
    align=st.sampled_from([1, 64]),
    byteorder=st.sampled_from([None, "little", "big"]),
)
def test_zip_checkpoints_give_every_tensor(
    state: dict[str, Tensor], protocol: int, zip64: bool, align: int, byteorder: str | None
) -> None:
    data = checkpoint_bytes(state, protocol=protocol, zip64=zip64, align=align, byteorder=byteorder)
    assert rows(data) == expected_rows(state)


@settings(deadline=None, max_examples=80)
@given(state=state_dicts(), protocol=st.integers(1, 5), big=st.booleans())
def test_legacy_checkpoints_give_every_tensor(state: dict[str, Tensor], protocol: int, big: bool) -> None:
    assert rows(legacy_bytes(state, protocol=protocol, big=big)) == expected_rows(state)


WRITERS = pytest.mark.parametrize("write", [checkpoint_bytes, legacy_bytes])
Write = Callable[[Any], bytes]


@WRITERS
@pytest.mark.parametrize("keys", [("state_dict",), ("model",), ("module",), ("model", "module"), ("model_state_dict",)])
def test_nested_state_dicts_are_found_and_the_rest_is_named(write: Write, keys: tuple[str, ...]) -> None:
    wrapped: Any = {"weight": tensor(FOUR, (4,))}
    for key in reversed(keys):
        wrapped = {"epoch": 3, key: wrapped, "optimizer": {"state": {0: {"moment": tensor(FOUR, (4,))}}}}
    found = opened(write(wrapped))
    assert [item.name for item in found.tensors] == ["weight"]
    assert found.path == keys
    assert "optimizer (1 tensors)" in found.left_out
    assert "epoch (int)" in found.left_out


def test_entries_that_are_no_tensors_are_named() -> None:
    state = {"weight": tensor(FOUR, (4,)), "head._extra_state": None, "version": Call(Global("torch", "Size"), ((2,),))}
    assert opened(checkpoint_bytes(state)).left_out == ("head._extra_state (NoneType)", "version (tuple)")


def test_of_what_is_left_out_the_first_few_are_named_and_the_rest_is_counted() -> None:
    lists = {f"list{number}": [tensor(FOUR, (4,))] for number in range(20)}
    left_out = opened(checkpoint_bytes({"weight": tensor(FOUR, (4,)), **lists})).left_out
    assert left_out == (*(f"list{number} (1 tensors)" for number in range(8)), "12 more")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_the_prefix_of_a_wrapper_is_taken_off(prefix: str) -> None:
    state = {f"{prefix}a": tensor(FOUR, (4,)), f"{prefix}b": tensor(FOUR, (2, 2))}
    found = opened(checkpoint_bytes(state))
    assert ([item.name for item in found.tensors], found.prefix) == (["a", "b"], prefix)


def test_of_the_prefixes_only_what_every_name_has_is_taken_off() -> None:
    state = {"module._orig_mod.a": tensor(FOUR, (4,)), "module.b": tensor(FOUR, (2, 2)), "module.": tensor(FOUR, (4,))}
    assert [item.name for item in opened(checkpoint_bytes(state)).tensors] == [*state]
    del state["module."]
    assert [item.name for item in opened(checkpoint_bytes(state)).tensors] == ["_orig_mod.a", "b"]


def test_the_word_module_inside_other_names_stays() -> None:
    state = {"module.a": tensor(FOUR, (4,)), "b": tensor(FOUR, (2, 2))}
    assert [item.name for item in opened(checkpoint_bytes(state)).tensors] == ["module.a", "b"]


def test_parameters_with_state_and_buffers_are_read() -> None:
    hooks = Call(Global("collections", "OrderedDict"), ())
    wrap = Global("torch._utils", "_rebuild_parameter_with_state")
    state = {
        "parameter": Call(wrap, (tensor(FOUR, (4,)), True, hooks, {"foo": 1})),
        "buffer": tensor(FOUR, (2, 2), buffer=True),
    }
    assert rows(checkpoint_bytes(state)) == {"parameter": ("F32", [4], FOUR), "buffer": ("F32", [2, 2], FOUR)}


def test_scalars_of_numpy_and_devices_beside_the_weights_do_no_harm() -> None:
    kind = Call(Global("numpy", "dtype"), ("f8", False, True), ("<", 3, None))
    state = {
        "state_dict": {"weight": tensor(FOUR, (4,))},
        "best": Call(Global("numpy.core.multiarray", "scalar"), (kind, b"\0" * 8)),
        "device": Call(Global("torch", "device"), ("cuda", 0)),
        "dtype": Global("torch", "bfloat16"),
    }
    left_out = opened(checkpoint_bytes(state)).left_out
    assert left_out == ("best (numpy scalar)", "device (torch.device)", "dtype (TorchDType)")


MISFITS: dict[str, tuple[Any, str]] = {
    "complex128": ({"w": tensor(bytes(32), (2,), "complex128")}, "w has dtype complex128"),
    "conjugate": ({"w": tensor(bytes(16), (2,), "complex64", metadata={"conj": True})}, "lazy conj view"),
    "negative": ({"w": tensor(bytes(16), (2,), "complex64", metadata={"neg": True})}, "lazy neg view"),
    "list": ([tensor(FOUR, (4,))], "is a list, expected a dict"),
    "number": (5, "is a int, expected a dict"),
    "nothing": ({"epoch": 3}, "no tensors by name; it has the keys epoch"),
    "empty": ({}, "the keys nothing"),
    "two_models": (
        {"model": {"w": tensor(FOUR, (4,))}, "state_dict": {"w": tensor(FOUR, (4,))}},
        "competing state dicts under state_dict and model",
    ),
    "numbered": ({0: tensor(FOUR, (4,))}, "named by a int"),
    "metadata": ({"__metadata__": tensor(FOUR, (4,))}, "cannot be the name"),
    "control": ({"a\nb": tensor(FOUR, (4,))}, r"a\\nb.* cannot be the name"),
    "endless_name": ({"a" * 5000: tensor(FOUR, (4,))}, "cannot be the name"),
    "surrogate": ({"a\ud800": tensor(FOUR, (4,))}, "cannot be the name"),
    "beyond": ({"w": Tensor(Storage(FOUR), (5,))}, "ends at byte 20 of its storage, which has 16"),
    "offset_beyond": ({"w": Tensor(Storage(FOUR), (2,), None, 3)}, "ends at byte 20"),
    "strides_beyond": ({"w": Tensor(Storage(FOUR), (2, 2), (3, 1), 0)}, "ends at byte 20"),
    "inflated": ({"w": Tensor(Storage(FOUR), (1 << 40,), (0,), 0)}, "an expanded view"),
    "inflated_by_names": (
        {f"w{n}": Tensor(Storage(bytes(4000)), (1 << 20, n + 1), (0, 1)) for n in range(9)},
        "add up to",
    ),
}


@WRITERS
@pytest.mark.parametrize("misfit", MISFITS)
def test_what_cannot_be_served_says_why(write: Write, misfit: str) -> None:
    value, expected = MISFITS[misfit]
    with pytest.raises(CheckpointError, match=expected) as caught:
        opened(write(value))
    assert "memory.bin" in str(caught.value)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"GGUF\3\0\0\0" + bytes(100), "GGUF"),
        (b"\x10" + bytes(7) + b'{"a": {}}     ', "safetensors file under another name"),
        (bytes(257) + b"ustar\x0000" + bytes(600), "tar archive"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
        (b"<!doctype html><html></html>", "web page"),
        (b"", "is empty"),
        (b"\x80\x02K\x01.", "ends too early"),
        (b"\x80\x02K\x01.\x80\x02K\x02.\x80\x02}.", "torch's magic number"),
        (zip_bytes(with_member(members_of({}), "data.pkl", name="archive/other.pkl", local_name=None)), "data.pkl"),
        (zip_bytes(with_member(members_of({}), "/version", name="archive/constants.pkl")), "TorchScript"),
    ],
)
def test_other_files_are_recognised(data: bytes, expected: str) -> None:
    with pytest.raises(CheckpointError, match=expected):
        opened(data)


def test_a_storage_that_is_not_there_is_named() -> None:
    members = [m for m in members_of({"w": tensor(FOUR, (4,))}) if not m.name.endswith("data/0")]
    with pytest.raises(CheckpointError, match="storage 0, which is not in the archive"):
        opened(zip_bytes(members))


def test_a_storage_that_is_shorter_than_the_pickle_says_is_named() -> None:
    with pytest.raises(CheckpointError, match="storage '0' has 64 bytes, and there are 16"):
        opened(checkpoint_bytes({"w": Tensor(Storage(FOUR, claimed_bytes=64), (4,))}))


def test_an_unknown_byte_order_is_refused() -> None:
    members = with_member(members_of({"w": tensor(FOUR, (4,))}), "byteorder", data=b"middle")
    with pytest.raises(CheckpointError, match="byte order is b'middle'"):
        opened(zip_bytes(members))


def test_a_long_byte_order_is_not_read() -> None:
    members = with_member(members_of({"w": tensor(FOUR, (4,))}), "byteorder", data=b"l" * 100_000)
    with pytest.raises(CheckpointError, match="expected at most"):
        opened(zip_bytes(members))


def test_legacy_storages_must_be_those_of_the_tensors() -> None:
    data = legacy_bytes({"w": tensor(FOUR, (4,))})
    with pytest.raises(CheckpointError, match="list of storages"):
        opened(data.replace(b"(X\x01\x00\x00\x000e.", b"(X\x01\x00\x00\x001e."))


def legacy_view(offset: int, count: int) -> bytes:
    """A tensor of a view of a storage, as only files from before torch 0.4 have it."""
    kind, hooks = Global("torch", "FloatStorage"), Call(Global("collections", "OrderedDict"), ())
    whole = tensor(FOUR, (4,))
    identifier = ("storage", kind, "0", "cpu", 4, ("view", offset, count))
    made = (Persistent(identifier), 0, (count,), (1,), False, hooks)
    return legacy_bytes({"whole": whole, "view": Call(Global("torch._utils", "_rebuild_tensor_v2"), made)})


def test_views_of_legacy_storages_are_read() -> None:
    assert rows(legacy_view(1, 2))["view"] == ("F32", [2], FOUR[4:12])


def test_views_behind_legacy_storages_are_refused() -> None:
    with pytest.raises(CheckpointError, match="a view of storage 0 ends behind it"):
        opened(legacy_view(3, 2))


@pytest.mark.parametrize("count", [5, 2**40, -1])
def test_legacy_lengths_are_checked(count: int) -> None:
    data = legacy_bytes({"w": tensor(FOUR, (4,))})
    data = data[:-24] + struct.pack("<q", count) + data[-16:]
    with pytest.raises(CheckpointError, match="announces"):
        opened(data)


@WRITERS
def test_a_whole_pickled_model_is_refused_by_the_name_of_its_class(write: Write) -> None:
    model = Call(Global("transformers.models.llama.modeling_llama", "LlamaForCausalLM"), ())
    with pytest.raises(UnsafePickleError, match=r"modeling_llama\.LlamaForCausalLM"):
        opened(write({"model": model}))


def test_a_legacy_module_with_source_is_refused() -> None:
    module = Raw(b"(X\x06\x00\x00\x00moduleNNNtQ")
    with pytest.raises(UnsafePickleError, match="whole pickled model"):
        opened(legacy_bytes({"model": module}))


def test_only_the_pickle_and_small_headers_are_read() -> None:
    reader = BytesReader(checkpoint_bytes({f"w{n}": tensor(bytes(400_000), (100_000,)) for n in range(10)}))
    read_checkpoint(reader)
    assert reader.given_bytes < 100_000


@settings(deadline=None, max_examples=150)
@given(legacy=st.booleans(), where=st.floats(0, 0.9999), value=st.integers(0, 255), cut=st.none() | st.floats(0, 1))
def test_damaged_checkpoints_are_tensors_or_an_error_of_ours(
    legacy: bool, where: float, value: int, cut: float | None
) -> None:
    state = {"w": tensor(FOUR, (2, 2)), "v": tensor(bytes(8), (4,), "bfloat16")}
    data = bytearray(legacy_bytes(state) if legacy else checkpoint_bytes(state))
    data[int(where * len(data))] = value
    try:
        rows(bytes(data if cut is None else data[: int(cut * len(data))]))
    except WeightsError as error:
        assert "memory.bin" in str(error)
