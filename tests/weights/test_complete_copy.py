"""A conversion that copies what it leaves unchanged gives a folder that stands by itself."""

from pathlib import Path

import pytest
from conversions import convert
from models import pickled_model, put, safetensors_model, snapshot_of

from streamway.errors import StorageError, WeightsError
from streamway.storage import list_files, read_file, upload_model
from streamway.storage.records import WEIGHTS_RECORD


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


def test_a_complete_copy_inside_a_bucket_moves_no_byte_that_is_known(bucket_uri: str) -> None:
    source = snapshot_of(safetensors_model(f"{bucket_uri}/source"))
    converted = convert(source, f"{bucket_uri}/model", copy_unchanged=True)
    assert converted.moved_bytes == 0
    assert all(read_file(file.uri) == read_file(f"{source}/{file.path}") for file in converted.files)
    assert {file.uri for file in converted.files} == {
        f"{bucket_uri}/model/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")
    }


def test_the_index_of_another_model_is_not_left_beside_a_copy(tmp_path: Path) -> None:
    put(tmp_path / "out", {"model.safetensors.index.json": {"weight_map": {"a": "model-00001-of-00002.safetensors"}}})
    with pytest.raises(WeightsError, match=r"index\.json, which is not part of this model"):
        convert(pickled_model(tmp_path / "source"), str(tmp_path / "out"), copy_unchanged=True)


def test_a_copy_into_itself_or_beside_another_model_is_refused(tmp_path: Path) -> None:
    source = pickled_model(tmp_path / "source")
    with pytest.raises(StorageError, match="both the source and the target"):
        convert(source, source + "/", copy_unchanged=True)
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(StorageError, match="both the source and the target"):
        convert(str(tmp_path / "link"), source, copy_unchanged=True)
    put(tmp_path / "out", {"model-00001-of-00009.safetensors": b"x"})
    with pytest.raises(WeightsError, match="not part of this model"):
        convert(source, str(tmp_path / "out"), copy_unchanged=True)
