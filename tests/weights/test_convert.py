"""Pickled checkpoints become one verified set of safetensors."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from conversions import convert, shards_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import CONFIG, checksums, metadata_of, pickled_model, put, ramp, small_model, snapshot_of, stored_rows
from strategies import state_dicts
from torch_writer import Storage, Tensor, checkpoint_bytes, expected_rows, legacy_bytes, tensor

from streamway.errors import CheckpointError, UnsafePickleError
from streamway.storage import list_files, read_file
from streamway.storage.records import WEIGHTS_RECORD, PreparedWeights
from streamway.weights import report_lines


def test_a_pickled_model_becomes_safetensors(root: str) -> None:
    source = snapshot_of(pickled_model(f"{root}/source"))
    converted = convert(source, f"{root}/weights")
    expected = expected_rows(small_model())
    del expected["lm_head.weight"]
    assert stored_rows(*shards_of(converted)) == expected
    assert converted.converted
    assert converted.tensors == 4
    assert converted.aliases == {"lm_head.weight": "model.embed_tokens.weight"}
    assert [file.path for file in converted.files] == ["config.json", "model.safetensors", "tokenizer.json"]


def test_what_is_recorded_is_what_is_there(root: str) -> None:
    source = snapshot_of(pickled_model(f"{root}/source"))
    converted = convert(source, f"{root}/weights", shard_bytes=50)
    record = PreparedWeights.from_json(read_file(f"{root}/weights/{WEIGHTS_RECORD}"), uri="record")
    assert record.files == converted.files
    assert (record.model_id, record.commit_sha, record.licence) == ("org/model", "a" * 40, "mit")
    for file in converted.files:
        assert (file.sha256, file.crc32c) == checksums(read_file(file.uri)), file.path


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(state=state_dicts(), legacy=st.booleans(), shard_bytes=st.integers(1, 400))
def test_every_tensor_arrives_with_its_bytes(
    state: dict[str, Tensor], legacy: bool, shard_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    write = legacy_bytes if legacy else checkpoint_bytes
    put(folder / "source", {"pytorch_model.bin": write(state), "config.json": {}})
    converted = convert(str(folder / "source"), str(folder / "out"), shard_bytes=shard_bytes)
    expected = expected_rows(state)
    stored = stored_rows(*shards_of(converted))
    assert {**stored, **{dropped: stored[kept] for dropped, kept in converted.aliases.items()}} == expected
    assert set(stored) | set(converted.aliases) == set(expected)
    assert not set(stored) & set(converted.aliases)


def test_shards_have_a_size_an_order_and_an_index(root: str) -> None:
    state = {f"layers.{n}.weight": tensor(ramp(50, n), (50,), "bfloat16") for n in range(5)}
    converted = convert(pickled_model(f"{root}/source", state), f"{root}/weights", shard_bytes=200)
    names = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert [file.path for file in converted.files if "safetensors" in file.path] == [
        *names,
        "model.safetensors.index.json",
    ]
    index = json.loads(read_file(f"{root}/weights/model.safetensors.index.json"))
    assert index["metadata"] == {"total_size": 500}
    homes = [names[0], names[0], names[1], names[1], names[2]]
    assert index["weight_map"] == {f"layers.{n}.weight": home for n, home in enumerate(homes)}
    assert stored_rows(*shards_of(converted)) == expected_rows(state)


def test_the_index_has_no_dropped_names_and_the_metadata_has(root: str) -> None:
    converted = convert(pickled_model(f"{root}/source"), f"{root}/weights", shard_bytes=50)
    index = json.loads(read_file(f"{root}/weights/model.safetensors.index.json"))
    assert "lm_head.weight" not in index["weight_map"]
    recorded = [metadata_of(uri) for uri in shards_of(converted)]
    assert recorded[0] == {"format": "pt", "lm_head.weight": "model.embed_tokens.weight"}
    assert all(metadata == {"format": "pt"} for metadata in recorded[1:])


def test_every_tensor_lies_aligned(tmp_path: Path) -> None:
    kinds = ["bool", "bfloat16", "uint8", "float64", "float32", "int64", "float8_e5m2", "complex64", "int16"]
    widths = [1, 2, 1, 8, 4, 8, 1, 8, 2]
    state = {
        f"t{n}.{kind}": Tensor(Storage(bytes(3 * width), kind), (3,))
        for n, (kind, width) in enumerate(zip(kinds, widths, strict=True))
    }
    (uri,) = shards_of(convert(pickled_model(tmp_path / "source", state), str(tmp_path / "out")))
    data = read_file(uri)
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    assert start % 64 == 0
    for name, entry in header.items():
        if name != "__metadata__":
            width = widths[int(name[1])]
            assert (start + entry["data_offsets"][0]) % width == 0, name


def test_sharded_checkpoints_are_read_with_their_index(root: str) -> None:
    first = {"a": tensor(ramp(10), (10,), "bfloat16")}
    second = {"b": tensor(ramp(6, 7), (6,), "bfloat16")}
    names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    source = put(
        f"{root}/source",
        {
            names[0]: checkpoint_bytes(first),
            names[1]: legacy_bytes(second),
            "pytorch_model.bin.index.json": {"metadata": {}, "weight_map": {"a": names[0], "b": names[1]}},
            "config.json": {},
        },
    )
    converted = convert(source, f"{root}/weights")
    assert stored_rows(*shards_of(converted)) == expected_rows({**first, **second})
    assert converted.report["format"] == "torch legacy+zip"


SHARDS = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")


@pytest.mark.parametrize(
    ("states", "weight_map", "expected"),
    [
        ([["a"], ["b"]], {"a": 1, "b": 0}, "says that a is in .*00002.*, and it is in .*00001"),
        ([["a"], ["b"]], {"a": 0, "b": 1, "c": 1}, "says that c is in .*, and no shard has it"),
        ([["a"], ["a", "b"]], {"a": 0, "b": 1}, "tensor a is in .*00001.* too"),
    ],
)
def test_shards_that_do_not_belong_together_are_refused(
    tmp_path: Path, states: list[list[str]], weight_map: dict[str, int], expected: str
) -> None:
    files: dict[str, Any] = {
        shard: checkpoint_bytes({name: tensor(ramp(4), (4,), "bfloat16") for name in names})
        for shard, names in zip(SHARDS, states, strict=True)
    }
    index = {"weight_map": {name: SHARDS[number] for name, number in weight_map.items()}}
    put(tmp_path / "source", {**files, "pytorch_model.bin.index.json": index, "config.json": {}})
    with pytest.raises(CheckpointError, match=expected):
        convert(str(tmp_path / "source"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_tensor_that_the_index_forgot_is_stored_and_noted(tmp_path: Path) -> None:
    shards = {name: checkpoint_bytes({f"t{n}": tensor(ramp(4), (4,), "bfloat16")}) for n, name in enumerate(SHARDS)}
    put(
        tmp_path / "source",
        {**shards, "pytorch_model.bin.index.json": {"weight_map": {"t0": SHARDS[0], "t0b": SHARDS[1]}}},
    )
    put(tmp_path / "source", {"pytorch_model.bin.index.json": {"weight_map": {"t0": SHARDS[0]}}, "config.json": {}})
    index = {"weight_map": {"t0": SHARDS[0], "t1": SHARDS[1]}}
    put(tmp_path / "source", {"pytorch_model.bin.index.json": index})
    assert convert(str(tmp_path / "source"), str(tmp_path / "out")).tensors == 2


def test_an_untied_model_keeps_its_head(tmp_path: Path) -> None:
    source = pickled_model(tmp_path / "source", **{"config.json": {**CONFIG, "tie_word_embeddings": False}})
    converted = convert(source, str(tmp_path / "out"))
    assert stored_rows(*shards_of(converted)) == expected_rows(small_model())
    assert converted.report["stored_twice"] == ["lm_head.weight"]
    assert not converted.aliases


def test_overlapping_views_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    storage = Storage(ramp(20), "bfloat16")
    state = {"whole": Tensor(storage, (20,)), "part": Tensor(storage, (4,), None, 8)}
    with pytest.raises(CheckpointError, match=r"whole .* part .* overlap"):
        convert(pickled_model(tmp_path / "source", state), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_hostile_pickle_stops_everything(root: str) -> None:
    evil = b"\x80\x02cos\nsystem\nX\x05\x00\x00\x00touch\x85R."
    with pytest.raises(UnsafePickleError, match=r"pytorch_model\.bin.*os\.system"):
        convert(put(f"{root}/source", {"pytorch_model.bin": evil, "config.json": {}}), f"{root}/weights")
    assert list_files(f"{root}/weights") == ()


def test_the_report_names_every_tensor_with_its_checksum(root: str) -> None:
    converted = convert(pickled_model(f"{root}/source"), f"{root}/weights")
    proof = converted.report["proof"]
    assert proof["tensors_compared"] == 4
    assert set(proof["tensors"]) == {name for name in small_model() if name != "lm_head.weight"}
    assert proof["tensors"]["model.layers.0.scale"].startswith("F32 [] model.safetensors crc32c:")
    lines = report_lines(converted)
    assert "Tied      lm_head.weight is model.embed_tokens.weight" in lines
    assert any(line.startswith("Proof") and "4 tensors" in line for line in lines)
    assert json.loads(json.dumps(converted.report)) == converted.report


def test_progress_ends_at_the_whole(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    lock = threading.Lock()

    def on_progress(done: int, total: int) -> None:
        with lock:
            told.append((done, total))

    convert(pickled_model(tmp_path / "source"), str(tmp_path / "out"), on_progress=on_progress)
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert told[-1] == (size, size)
