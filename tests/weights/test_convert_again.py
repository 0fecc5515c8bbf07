"""A second conversion moves only what is missing, and what was published is not converted at all."""

from pathlib import Path

from conversions import convert, shards_of
from models import pickled_model, ramp, snapshot_of, stored_rows
from torch_writer import expected_rows, tensor

from streamway.storage import delete_files, join, list_files, upload_model, write_file
from streamway.storage.records import WEIGHTS_RECORD


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


def test_a_damaged_record_is_made_again(tmp_path: Path) -> None:
    source = snapshot_of(pickled_model(tmp_path / "source"))
    first = convert(source, str(tmp_path / "out"))
    write_file(str(tmp_path / "out" / WEIGHTS_RECORD), b"{broken")
    assert convert(source, str(tmp_path / "out")).files == first.files


def test_a_published_release_needs_nothing(root: str) -> None:
    source = snapshot_of(pickled_model(f"{root}/source"))
    convert(source, f"{root}/weights")
    release = upload_model(weights_uri=f"{root}/weights", release_root=f"{root}/releases")
    again = convert(release.uri, f"{root}/elsewhere")
    assert again.uri == release.uri
    assert (again.tensors, again.converted, again.moved_bytes) == (4, True, 0)
    assert list_files(f"{root}/elsewhere") == ()
