"""Models that are safetensors already move no byte, unless a shard must be written again."""

import json
from pathlib import Path
from typing import Any

import pytest
from conversions import convert, shards_of
from models import (
    CONFIG,
    PLAIN_ROWS,
    checksums,
    metadata_of,
    put,
    ramp,
    safetensors_bytes,
    safetensors_model,
    small_model,
    snapshot_of,
    stored_rows,
)
from torch_writer import checkpoint_bytes

from streamway.errors import SafetensorsError
from streamway.storage import list_files, read_file
from streamway.storage.records import WEIGHTS_RECORD
from streamway.weights import validate


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


def test_a_lone_shard_leaves_the_index_of_its_old_name_behind(tmp_path: Path) -> None:
    name, index = "model-00001-of-00001.safetensors", "model.safetensors.index.json"
    content = safetensors_bytes(PLAIN_ROWS, metadata={"format": "pt"})
    weight_map = {"metadata": {"total_size": 108}, "weight_map": dict.fromkeys(PLAIN_ROWS, name)}
    source = put(tmp_path / "source", {name: content, index: weight_map, "config.json": CONFIG})
    converted = convert(source, str(tmp_path / "out"), copy_unchanged=True)
    assert [file.path for file in converted.files] == ["config.json", "model.safetensors"]
    assert any(note.startswith(f"{index} is not kept") for note in converted.report["notes"])
    assert "stray-file" not in [finding.code for finding in validate(str(tmp_path / "out")).findings]


def test_an_index_that_is_wrong_gives_way_to_what_the_shards_hold(tmp_path: Path) -> None:
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    rows = {"model.embed_tokens.weight": ("U8", [2], b"aa"), "model.norm.weight": ("U8", [2], b"bb")}
    contents = [safetensors_bytes({name: row}, metadata={"format": "pt"}) for name, row in rows.items()]
    homes = dict(zip(rows, names, strict=True))
    stated = {"metadata": {"total_size": 6}, "weight_map": {**homes, "lm_head.weight": names[1]}}
    shards = dict(zip(names, contents, strict=True))
    put(tmp_path / "source", {**shards, "config.json": {}, "model.safetensors.index.json": stated})
    converted = convert(str(tmp_path / "source"), str(tmp_path / "out"))
    uris = {file.path: file.uri for file in converted.files}
    index = json.loads(read_file(uris["model.safetensors.index.json"]))
    assert index == {"metadata": {"total_size": 4}, "weight_map": homes}
    assert uris[names[0]] == str(tmp_path / "source" / names[0])


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
