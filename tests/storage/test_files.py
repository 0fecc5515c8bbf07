"""Small files, the same on disk and in a bucket."""

import hashlib
import os
import resource
from pathlib import Path
from typing import Any

import pytest

from streamway import storage
from streamway.errors import BucketNotFoundError, ChecksumError, StorageAccessError, StorageError


def test_what_is_written_can_be_listed_and_read(root_uri: str) -> None:
    storage.write_file(storage.join(root_uri, "b/two.json"), b"22")
    storage.write_file(storage.join(root_uri, "a.txt"), b"1")
    files = storage.list_files(root_uri)
    assert [(file.path, file.size_bytes) for file in files] == [("a.txt", 1), ("b/two.json", 2)]
    assert [storage.read_file(file.uri) for file in files] == [b"1", b"22"]
    assert storage.exists(files[0].uri) and not storage.exists(storage.join(root_uri, "none"))


def test_a_place_without_files_lists_none(root_uri: str) -> None:
    assert storage.list_files(root_uri) == ()


def test_a_prefix_is_a_folder_and_not_the_start_of_a_name(bucket_uri: str) -> None:
    storage.write_file(f"{bucket_uri}/abc/file", b"1")
    storage.write_file(f"{bucket_uri}/abcdef/file", b"2")
    assert [file.path for file in storage.list_files(f"{bucket_uri}/abc")] == ["file"]


def test_files_in_flight_are_not_listed(root_uri: str) -> None:
    storage.write_file(storage.join(root_uri, ".transfer/model.partial"), b"x")
    storage.write_file(storage.join(root_uri, "sub/.transfer/model.save-0"), b"x")
    storage.write_file(storage.join(root_uri, "sub/model"), b"x")
    assert [file.path for file in storage.list_files(root_uri)] == ["sub/model"]


def test_listing_goes_on_after_the_first_page(bucket_uri: str) -> None:
    from streamway.storage.parallel import map_at_once

    names = [f"{number:04d}" for number in range(1005)]
    map_at_once(lambda name: storage.write_file(f"{bucket_uri}/{name}", b""), names)
    assert [file.path for file in storage.list_files(bucket_uri)] == names
    assert storage.delete_files([f"{bucket_uri}/{name}" for name in [*names, "absent"]]) == 1005


def test_reading_more_than_allowed_is_refused(root_uri: str) -> None:
    uri = storage.join(root_uri, "file")
    storage.write_file(uri, b"12345")
    with pytest.raises(StorageError, match="5 bytes long, expected at most 4"):
        storage.read_file(uri, max_bytes=4)


def test_what_the_disk_refuses_is_an_error_that_names_the_path(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    endless, below = str(tmp_path / ("x" * 300)), str(tmp_path / "file" / "below")
    for refused in (
        lambda: storage.exists(endless),
        lambda: storage.list_files(str(tmp_path)),
        lambda: storage.write_file(below, b"x"),
        lambda: storage.copy_file(str(tmp_path / "file"), below),
        lambda: storage.delete_files([endless]),
    ):
        with pytest.raises(StorageError, match=rf"{tmp_path}.* cannot be \w+( at)?: \w") as caught:
            refused()
        assert caught.value.next_step


def test_what_does_not_fit_on_the_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    allowed, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, most))
    try:
        with pytest.raises(StorageError, match="record cannot be written"):
            storage.write_file(str(tmp_path / "record"), bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (allowed, most))
    assert list(tmp_path.iterdir()) == []


def test_writing_only_if_absent_keeps_what_is_there(root_uri: str) -> None:
    uri = storage.join(root_uri, "file")
    storage.write_file(uri, b"first", if_generation=0)
    with pytest.raises(storage.PreconditionFailedError):
        storage.write_file(uri, b"second", if_generation=0)
    assert storage.read_file(uri) == b"first"
    storage.write_file(uri, b"first", if_generation=0)  # what is there is what was meant
    storage.write_file(uri, b"third")
    assert storage.read_file(uri) == b"third"


def test_writing_at_a_generation_notices_another_writer(bucket_uri: str) -> None:
    seen = storage.write_file(f"{bucket_uri}/file", b"1")
    storage.write_file(f"{bucket_uri}/file", b"2", if_generation=seen.generation)
    with pytest.raises(storage.PreconditionFailedError):
        storage.write_file(f"{bucket_uri}/file", b"3", if_generation=seen.generation)


def test_deleting_is_done_once(root_uri: str) -> None:
    uri = storage.join(root_uri, "file")
    storage.write_file(uri, b"x")
    assert storage.delete_files([uri]) == 1
    assert storage.delete_files([uri]) == 0


def test_a_missing_bucket_is_named(cloud: Any) -> None:
    for act in (
        lambda: storage.list_files("gs://no-such-bucket/x"),
        lambda: storage.write_file("gs://no-such-bucket/x", b""),
    ):
        with pytest.raises(BucketNotFoundError, match="gs://no-such-bucket") as caught:
            act()
        assert caught.value.next_step


def test_a_refusal_of_access_says_what_to_grant(cloud: Any, bucket_uri: str) -> None:
    cloud.arm("status", status=403, method="GET", path="*/o*", body='{"error": {"message": "no storage.objects.list"}}')
    with pytest.raises(StorageAccessError, match=r"no storage\.objects\.list") as caught:
        storage.list_files(bucket_uri)
    assert "roles/storage.objectUser" in caught.value.next_step


def test_copies_stay_where_the_bytes_are(root_uri: str, cloud: Any) -> None:
    source, target = storage.join(root_uri, "source"), storage.join(root_uri, "folder/target")
    storage.write_file(source, os.urandom(100_000))
    cloud.begin_anew()
    storage.copy_file(source, target, if_generation=0)
    assert cloud.bytes_in() < 1000 and cloud.bytes_out() < 10_000
    assert storage.read_file(target) == storage.read_file(source)


def test_a_copy_keeps_what_is_there(root_uri: str) -> None:
    source, target = storage.join(root_uri, "source"), storage.join(root_uri, "target")
    storage.write_file(source, b"new")
    storage.write_file(target, b"old")
    with pytest.raises(storage.PreconditionFailedError):
        storage.copy_file(source, target, if_generation=0)
    assert storage.read_file(target) == b"old"
    storage.copy_file(source, target)
    assert storage.read_file(target) == b"new"


def test_a_repeated_copy_is_no_failure(root_uri: str) -> None:
    source, target = storage.join(root_uri, "source"), storage.join(root_uri, "target")
    storage.write_file(source, b"same")
    storage.copy_file(source, target, if_generation=0)
    storage.copy_file(source, target, if_generation=0)
    assert storage.read_file(target) == b"same"


def test_a_copy_of_other_bytes_than_recorded_is_refused(bucket_uri: str) -> None:
    storage.write_file(f"{bucket_uri}/source", b"bytes")
    with pytest.raises(ChecksumError, match="expected"):
        storage.copy_file(f"{bucket_uri}/source", f"{bucket_uri}/target", crc32c=1)
    assert not storage.exists(f"{bucket_uri}/target")


def test_a_copy_records_its_hash(bucket_uri: str) -> None:
    storage.write_file(f"{bucket_uri}/source", b"bytes")
    sha256 = hashlib.sha256(b"bytes").hexdigest()
    assert storage.copy_file(f"{bucket_uri}/source", f"{bucket_uri}/target", sha256=sha256).sha256 == sha256
    assert storage.list_files(bucket_uri)[1].sha256 == sha256


def test_copying_what_is_not_there_says_so(root_uri: str) -> None:
    with pytest.raises(StorageError, match="no such"):
        storage.copy_file(storage.join(root_uri, "none"), storage.join(root_uri, "target"))


def test_a_file_shared_by_a_link_takes_no_room(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"bytes")
    storage.copy_file(str(tmp_path / "source"), str(tmp_path / "linked"), link=True)
    storage.copy_file(str(tmp_path / "source"), str(tmp_path / "copied"))
    assert (tmp_path / "linked").samefile(tmp_path / "source")
    assert not (tmp_path / "copied").samefile(tmp_path / "source")


def test_copies_across_kinds_are_not_guessed(bucket_uri: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="different kinds"):
        storage.copy_file(f"{bucket_uri}/x", str(tmp_path / "x"))


@pytest.mark.parametrize(
    "name", ["with space.json", "ümläut-模型.json", "a+b&c=d.json", "per%20cent.json", "q?#.json", "~'!()*.json"]
)
def test_names_with_any_characters_come_back_as_they_were(root_uri: str, name: str) -> None:
    from streamway.storage.segments import FilePlan

    data = os.urandom(6 * 1024 * 1024)
    storage.write_file(storage.join(root_uri, "small", name), b"small")
    storage.write_files([FilePlan(uri=storage.join(root_uri, "large", name), segments=(data,))], memory_bytes=5 << 20)
    storage.copy_file(storage.join(root_uri, "large", name), storage.join(root_uri, "copied", name))
    assert [file.path for file in storage.list_files(root_uri)] == [f"{f}/{name}" for f in ("copied", "large", "small")]
    assert storage.read_file(storage.join(root_uri, "small", name)) == b"small"
    assert storage.read_file(storage.join(root_uri, "copied", name)) == data
    assert storage.delete_files(file.uri for file in storage.list_files(root_uri)) == 3


def test_a_bucket_without_a_prefix_is_a_root_too(cloud: Any) -> None:
    layout = storage.ModelLayout("gs://other", "org/m", "a" * 40)
    storage.write_file(layout.manifest_uri, b"{}")
    assert [file.uri for file in storage.list_files("gs://other")] == [f"gs://other/org/m/{'a' * 40}.manifest.json"]
    assert storage.delete_files([layout.manifest_uri]) == 1
