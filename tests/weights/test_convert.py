"""Whatever a repository holds becomes one verified set of safetensors, and only what is missing is ever moved."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import (
    CONFIG,
    checksums,
    metadata_of,
    pickled_model,
    put,
    ramp,
    safetensors_bytes,
    small_model,
    snapshot_of,
    stored_rows,
)
from strategies import state_dicts
from torch_writer import Storage, Tensor, checkpoint_bytes, expected_rows, legacy_bytes, tensor

from streamway.errors import (
    CheckpointError,
    NoWeightsError,
    SafetensorsError,
    StorageError,
    UnsafePickleError,
    WeightsError,
)
from streamway.storage import delete_files, join, list_files, read_file, upload_model, write_file
from streamway.storage.records import WEIGHTS_RECORD, PreparedWeights
from streamway.weights import ConvertedWeights, convert_weights, report_lines

PLAIN_ROWS = {
    "model.embed_tokens.weight": ("BF16", [6, 4], ramp(24)),
    "model.layers.0.weight": ("F32", [3], ramp(6)),
    "lm_head.weight": ("BF16", [6, 4], ramp(24, 9)),
}


@pytest.fixture(params=["folder", "bucket"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for models: once on disk, once in a bucket."""
    return str(tmp_path) if request.param == "folder" else request.getfixturevalue("bucket_uri")


def convert(source: str, target: str, **more: Any) -> ConvertedWeights:
    return convert_weights(snapshot_uri=source, weights_uri=target, **more)


def shards_of(converted: ConvertedWeights) -> list[str]:
    return [file.uri for file in converted.files if file.path.endswith(".safetensors")]


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


# A second run


def test_a_second_run_moves_nothing(root: str) -> None:
    source = snapshot_of(pickled_model(f"{root}/source"))
    first = convert(source, f"{root}/weights")
    second = convert(source, f"{root}/weights")
    assert first.moved_bytes > 0
    assert second.moved_bytes == 0
    assert second.files == first.files
    assert second.report == first.report


def test_a_run_without_its_record_takes_up_what_is_there(root: str) -> None:
    source = snapshot_of(pickled_model(f"{root}/source"))
    first = convert(source, f"{root}/weights", shard_bytes=50)
    remove(f"{root}/weights", WEIGHTS_RECORD)
    remove(f"{root}/weights", "model-00002-of-00002.safetensors")
    second = convert(source, f"{root}/weights", shard_bytes=50)
    sizes = {file.path: file.size_bytes for file in first.files}
    assert second.moved_bytes == sizes["model-00002-of-00002.safetensors"]
    assert [(f.path, f.sha256) for f in second.files] == [(f.path, f.sha256) for f in first.files]


def remove(folder: str, path: str) -> None:
    assert delete_files([join(folder, path)]) == 1


def test_another_shard_size_is_another_result(tmp_path: Path) -> None:
    source = snapshot_of(pickled_model(tmp_path / "source"))
    convert(source, str(tmp_path / "out"))
    again = convert(source, str(tmp_path / "out"), shard_bytes=50)
    assert len(shards_of(again)) == 2


def test_a_changed_source_is_converted_again(tmp_path: Path) -> None:
    source = pickled_model(tmp_path / "source")
    convert(source, str(tmp_path / "out"))
    state = {"other": tensor(ramp(8), (8,), "bfloat16")}
    pickled_model(tmp_path / "source", state)
    assert stored_rows(*shards_of(convert(source, str(tmp_path / "out")))) == expected_rows(state)


def test_a_result_that_lost_a_file_is_made_again(tmp_path: Path) -> None:
    source = snapshot_of(pickled_model(tmp_path / "source"))
    first = convert(source, str(tmp_path / "out"))
    Path(shards_of(first)[0]).unlink()
    assert Path(shards_of(convert(source, str(tmp_path / "out")))[0]).exists()


# Models that are safetensors already


def safetensors_model(folder: str, **files: Any) -> str:
    content = safetensors_bytes(PLAIN_ROWS, metadata={"format": "pt"})
    return put(folder, {"model.safetensors": content, "config.json": CONFIG, "tokenizer.json": {}, **files})


def test_good_safetensors_pass_without_moving_a_byte(root: str) -> None:
    source = snapshot_of(safetensors_model(f"{root}/source"))
    converted = convert(source, f"{root}/weights")
    assert converted.moved_bytes == 0
    assert not converted.converted
    assert [file.uri for file in converted.files] == [
        f"{root}/source/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")
    ]
    assert [file.path for file in list_files(f"{root}/weights")] == [WEIGHTS_RECORD]


def test_a_folder_without_hashes_gets_them(root: str) -> None:
    converted = convert(safetensors_model(f"{root}/source"), f"{root}/weights")
    for file in converted.files:
        assert (file.sha256, file.crc32c) == checksums(read_file(file.uri))


def test_an_unaligned_shard_is_written_again(root: str) -> None:
    crooked = safetensors_bytes(PLAIN_ROWS, metadata={"made": "elsewhere"}, padding=1)
    straight = safetensors_bytes({"z": ("F32", [2], ramp(4))}, metadata={"format": "pt"})
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    weight_map = {**dict.fromkeys(PLAIN_ROWS, names[0]), "z": names[1]}
    source = snapshot_of(
        put(
            f"{root}/source",
            {
                names[0]: crooked,
                names[1]: straight,
                "model.safetensors.index.json": {"metadata": {"total_size": 116}, "weight_map": weight_map},
                "config.json": CONFIG,
            },
        )
    )
    converted = convert(source, f"{root}/weights")
    assert converted.realigned == (names[0],)
    uris = {file.path: file.uri for file in converted.files}
    assert uris[names[0]] == f"{root}/weights/{names[0]}"
    assert uris[names[1]] == f"{root}/source/{names[1]}"
    assert stored_rows(uris[names[0]]) == PLAIN_ROWS
    assert metadata_of(uris[names[0]]) == {"made": "elsewhere", "format": "pt"}
    assert converted.report["proof"]["tensors_compared"] == 3
    data = read_file(uris[names[0]])
    assert (8 + int.from_bytes(data[:8], "little")) % 64 == 0


def test_unaligned_tensors_behind_narrow_ones_are_put_in_order(tmp_path: Path) -> None:
    rows = {"flag": ("BOOL", [3], b"\1\0\1"), "weight": ("F32", [2], ramp(4)), "half": ("F16", [1], ramp(1))}
    put(
        tmp_path / "source",
        {"model.safetensors": safetensors_bytes(rows, metadata={"format": "pt"}), "config.json": {}},
    )
    converted = convert(str(tmp_path / "source"), str(tmp_path / "out"))
    assert converted.realigned == ("model.safetensors",)
    assert stored_rows(*shards_of(converted)) == rows


def test_a_missing_format_alone_moves_nothing_and_is_noted(tmp_path: Path) -> None:
    put(tmp_path / "source", {"model.safetensors": safetensors_bytes(PLAIN_ROWS), "config.json": CONFIG})
    converted = convert(str(tmp_path / "source"), str(tmp_path / "out"))
    assert converted.moved_bytes == 0
    assert any("format" in note for note in converted.report["notes"])


def test_a_lone_file_gets_the_name_that_loaders_look_for(tmp_path: Path) -> None:
    content = safetensors_bytes(PLAIN_ROWS, metadata={"format": "pt"})
    put(tmp_path / "source", {"weights.safetensors": content, "config.json": CONFIG})
    converted = convert(str(tmp_path / "source"), str(tmp_path / "out"))
    (file,) = [file for file in converted.files if file.path.endswith(".safetensors")]
    assert file.path == "model.safetensors"
    assert file.uri == str(tmp_path / "source" / "weights.safetensors")


def test_shards_without_an_index_get_one(tmp_path: Path) -> None:
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    contents = [safetensors_bytes({n: ("U8", [2], n.encode() * 2)}, metadata={"format": "pt"}) for n in "ab"]
    put(tmp_path / "source", {**dict(zip(names, contents, strict=True)), "config.json": {}})
    converted = convert(str(tmp_path / "source"), str(tmp_path / "out"))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index == {"metadata": {"total_size": 4}, "weight_map": {"a": names[0], "b": names[1]}}
    assert "model.safetensors.index.json" in [file.path for file in converted.files]


def test_safetensors_win_over_pickles_and_strays_stay_behind(tmp_path: Path) -> None:
    source = safetensors_model(
        str(tmp_path / "source"),
        **{
            "pytorch_model.bin": checkpoint_bytes(small_model()),
            "consolidated.safetensors": safetensors_bytes(PLAIN_ROWS),
            "original/consolidated.00.pth": b"x",
            "adapter_model.safetensors": b"x",
            "model.fp16.safetensors": b"x",
            "tf_model.h5": b"x",
            "onnx/model.onnx": b"x",
            "training_args.bin": b"x",
            "README.md": b"x",
            "LICENSE": b"x",
            "chat_template.jinja": b"x",
            ".gitattributes": b"x",
        },
    )
    converted = convert(source, str(tmp_path / "out"))
    served = ["LICENSE", "chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
    assert [file.path for file in converted.files] == served
    left = {entry["path"]: entry["reason"] for entry in converted.report["left_behind"]}
    assert set(left) == {file.path for file in list_files(source)} - set(served)
    assert left["pytorch_model.bin"] == "pickled weights beside the ones that are served"
    assert left["consolidated.safetensors"] == "a second set of weights"
    assert left["original/consolidated.00.pth"] == "original/ holds the model in another form"


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda data: data[:-1], "cut off"),
        (lambda data: data + b"x", "belong to no tensor"),
        (lambda data: b"\xff" * 8 + data[8:], "announces a header"),
    ],
)
def test_damaged_safetensors_are_refused(root: str, damage: Any, expected: str) -> None:
    content = damage(safetensors_bytes(PLAIN_ROWS, metadata={"format": "pt"}))
    source = put(f"{root}/source", {"model.safetensors": content, "config.json": CONFIG})
    with pytest.raises(SafetensorsError, match=expected):
        convert(source, f"{root}/weights")


# What is no model


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"config.json": {}}, "has no weights"),
        ({"model-q4.gguf": b"x", "config.json": {}}, "only as GGUF"),
        (
            {"adapter_config.json": {"base_model_name_or_path": "org/base"}, "adapter_model.safetensors": b"x"},
            "LoRA adapter of org/base",
        ),
        ({"consolidated.00.pth": b"x", "params.json": {}}, "their author's own layout"),
        ({"tf_model.h5": b"x"}, "another framework"),
    ],
)
def test_folders_without_a_servable_model_say_what_they_are(tmp_path: Path, files: Any, expected: str) -> None:
    with pytest.raises(NoWeightsError, match=expected) as caught:
        convert(put(tmp_path / "source", files), str(tmp_path / "out"))
    assert caught.value.next_step


def test_two_sets_without_an_index_are_refused(tmp_path: Path) -> None:
    one = safetensors_bytes(PLAIN_ROWS)
    with pytest.raises(SafetensorsError, match="2 sets of weights"):
        convert(put(tmp_path / "source", {"a.safetensors": one, "b.safetensors": one}), str(tmp_path / "out"))


def test_missing_shards_are_refused(tmp_path: Path) -> None:
    one = safetensors_bytes(PLAIN_ROWS)
    with pytest.raises(SafetensorsError, match="1 of the 2 shards"):
        convert(put(tmp_path / "source", {"model-00001-of-00002.safetensors": one}), str(tmp_path / "out"))
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    put(tmp_path / "source", {"model.safetensors.index.json": index})
    with pytest.raises(SafetensorsError, match=r"model-00002-of-00002\.safetensors, and 1 of its 2 shards"):
        convert(str(tmp_path / "source"), str(tmp_path / "out"))


@pytest.mark.parametrize("home", ["../escape.safetensors", "/etc/passwd", "a\\b", "", 5, None])
def test_an_index_cannot_name_files_elsewhere(tmp_path: Path, home: Any) -> None:
    source = safetensors_model(
        str(tmp_path / "source"), **{"model.safetensors.index.json": {"weight_map": {"a": home}}}
    )
    with pytest.raises(SafetensorsError, match="no weight_map"):
        convert(source, str(tmp_path / "out"))


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(StorageError, match="has no files"):
        convert(str(tmp_path / "source"), str(tmp_path / "out"))


# A complete copy


def test_a_complete_copy_is_a_model_of_its_own(root: str) -> None:
    source = pickled_model(f"{root}/source", **{"README.md": b"x"})
    converted = convert(source, f"{root}/model", copy_unchanged=True)
    record, *paths = [file.path for file in list_files(f"{root}/model")]
    assert paths == ["config.json", "model.safetensors", "tokenizer.json"]
    assert record == (WEIGHTS_RECORD if root.startswith("gs://") else "_conversion.json")
    assert all(file.uri.startswith(f"{root}/model/") for file in converted.files)
    assert convert(source, f"{root}/model", copy_unchanged=True).moved_bytes == 0


def test_a_complete_copy_can_be_published_by_passing_it_through(tmp_path: Path) -> None:
    source = pickled_model(tmp_path / "source")
    convert(source, str(tmp_path / "model"), copy_unchanged=True)
    prepared = convert(str(tmp_path / "model"), str(tmp_path / "prepared"))
    assert prepared.moved_bytes == 0
    assert [file.path for file in prepared.files] == ["config.json", "model.safetensors", "tokenizer.json"]
    release = upload_model(weights_uri=str(tmp_path / "prepared"), release_root=str(tmp_path / "releases"))
    assert {file.path: file.sha256 for file in release.files} == {f.path: f.sha256 for f in prepared.files}


def test_a_complete_copy_of_safetensors_is_equal(root: str) -> None:
    source = snapshot_of(safetensors_model(f"{root}/source"))
    convert(source, f"{root}/model", copy_unchanged=True)
    for name in ("model.safetensors", "config.json"):
        assert read_file(f"{root}/model/{name}") == read_file(f"{root}/source/{name}")


def test_a_copy_into_itself_or_beside_another_model_is_refused(tmp_path: Path) -> None:
    source = pickled_model(tmp_path / "source")
    with pytest.raises(StorageError, match="both the source and the target"):
        convert(source, source + "/", copy_unchanged=True)
    put(tmp_path / "out", {"model-00001-of-00009.safetensors": b"x"})
    with pytest.raises(WeightsError, match="not part of this model"):
        convert(source, str(tmp_path / "out"), copy_unchanged=True)


# Proof, progress, publication


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


def test_a_published_release_needs_nothing(root: str) -> None:
    source = snapshot_of(pickled_model(f"{root}/source"))
    convert(source, f"{root}/weights")
    release = upload_model(weights_uri=f"{root}/weights", release_root=f"{root}/releases")
    again = convert(release.uri, f"{root}/elsewhere")
    assert again.uri == release.uri
    assert (again.tensors, again.converted, again.moved_bytes) == (4, True, 0)
    assert list_files(f"{root}/elsewhere") == ()


def test_a_damaged_record_is_made_again(tmp_path: Path) -> None:
    source = snapshot_of(pickled_model(tmp_path / "source"))
    first = convert(source, str(tmp_path / "out"))
    write_file(str(tmp_path / "out" / WEIGHTS_RECORD), b"{broken")
    assert convert(source, str(tmp_path / "out")).files == first.files
