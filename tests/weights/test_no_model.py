"""Folders that hold no model that can be served say what they hold instead."""

from pathlib import Path
from typing import Any

import pytest
from conversions import convert
from models import PLAIN_ROWS, put, safetensors_bytes, safetensors_model

from streamway.errors import NoWeightsError, SafetensorsError, StorageError


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
