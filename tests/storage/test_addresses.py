"""Names from repositories and configurations become addresses only if they are harmless."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamway.errors import StorageError
from streamway.storage import check_relative, is_gs, join
from streamway.storage.addresses import local_path, parent, parse_gs


def test_join_puts_single_slashes_between_parts() -> None:
    assert join("gs://bucket/prefix/", "org/name", "sha") == "gs://bucket/prefix/org/name/sha"
    assert join("gs://bucket", "file") == "gs://bucket/file"
    assert join("/tmp/root/", "file") == "/tmp/root/file"
    assert join("/", "file") == "/file"
    assert join("relative", "folder/") == "relative/folder/"


@pytest.mark.parametrize(
    "path", ["", "..", "../x", "a/../b", "a/..", "/etc/passwd", "a//b", "a/./b", "a\\b", "a\0b", "C:/x", "a\nb", "/"]
)
def test_hostile_paths_are_refused(path: str) -> None:
    with pytest.raises(StorageError):
        check_relative(path)
    with pytest.raises(StorageError):
        join("gs://bucket/prefix", path)


@pytest.mark.parametrize("half", ["\ud800", "model-\udfff.safetensors"])
def test_half_a_character_as_json_can_spell_it_is_refused(half: str) -> None:
    with pytest.raises(StorageError, match="control characters"):
        check_relative(half)
    with pytest.raises(StorageError, match="control characters"):
        parse_gs(f"gs://bucket/{half}")


@given(st.text(alphabet=st.sampled_from("./\\a\0:é-") | st.characters(), max_size=12))
def test_no_path_leaves_its_root(path: str) -> None:
    try:
        joined = join("/root/of/all", path)
    except StorageError:
        return
    assert joined.startswith("/root/of/all/")
    assert ".." not in joined.split("/")
    assert local_path(joined).resolve().is_relative_to(local_path("/root/of/all").resolve())


def test_gs_addresses_are_taken_apart() -> None:
    assert is_gs("gs://bucket/a") and not is_gs("/gs:/a")
    assert parse_gs("gs://my-bucket/a/b.txt").bucket == "my-bucket"
    assert parse_gs("gs://my-bucket/a/b.txt").key == "a/b.txt"
    assert parse_gs("gs://my-bucket").key == ""
    assert parent("gs://my-bucket/a/b") == ("gs://my-bucket/a", "b")


@pytest.mark.parametrize(
    "uri", ["gs://", "gs:///x", "gs://UPPER/x", "gs://a/x", "gs://b c/x", "s3://b/x", "gs://bkt/a\nb"]
)
def test_wrong_gs_addresses_are_refused(uri: str) -> None:
    with pytest.raises(StorageError):
        parse_gs(uri)


def test_names_longer_than_cloud_storage_takes_are_refused() -> None:
    with pytest.raises(StorageError, match="1025 bytes"):
        parse_gs("gs://bucket/" + "x" * 1025)


@pytest.mark.parametrize("uri", ["", "s3://bucket/x", "https://host/x", "a\0b"])
def test_what_is_neither_a_path_nor_a_bucket_is_refused(uri: str) -> None:
    with pytest.raises(StorageError):
        local_path(uri)
