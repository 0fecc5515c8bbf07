"""A release exists all at once, never changes, and is never copied through this process where it need not be."""

import hashlib
import os
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from streamway import storage
from streamway.errors import ChecksumError, ReleaseError, StreamwayError
from streamway.storage.manifest import MAX_BYTES
from streamway.storage.records import WEIGHTS_RECORD, PreparedWeights, RecordedFile
from streamway.storage.segments import FilePlan

SHA = "0123456789abcdef0123456789abcdef01234567"
OTHER_SHA = "f" * 40
FILES = {"config.json": b"{}", "model.safetensors": os.urandom(300_000), "LICENSE": b"free"}


def prepare(root: str, files: Mapping[str, bytes], *, sha: str = SHA, folder: str = "", model_id: str = "org/m") -> str:
    """Leave prepared weights as the conversion does; return where."""
    layout = storage.ModelLayout(root, "org/m", sha)
    folder = folder or layout.weights_uri
    plans = [FilePlan(uri=storage.join(folder, path), segments=(data,)) for path, data in files.items()]
    recorded = tuple(
        RecordedFile(path=path, uri=file.uri, size_bytes=file.size_bytes, sha256=file.sha256 or "", crc32c=file.crc32c)
        for path, file in zip(files, storage.write_files(plans), strict=True)
    )
    prepared = PreparedWeights(
        model_id=model_id,
        revision="main",
        commit_sha=sha if model_id else "",
        licence="mit",
        source="https://hub",
        files=recorded,
        report={"tensors": 3},
    )
    storage.write_file(storage.join(folder, WEIGHTS_RECORD), prepared.to_json().encode())
    return folder


def paths(uri: str) -> list[str]:
    return [file.path for file in storage.list_files(uri)]


def test_a_release_holds_what_was_prepared(root_uri: str) -> None:
    release = storage.upload_model(weights_uri=prepare(root_uri, FILES), release_root=root_uri)
    assert release.uri == storage.ModelLayout(root_uri, "org/m", SHA).release_uri
    assert {p: storage.read_file(storage.join(release.uri, p)) for p in paths(release.uri)} == FILES
    assert release.size_bytes == sum(map(len, FILES.values()))
    assert not release.already_published
    assert (release.manifest.licence, release.manifest.conversion) == ("mit", {"tensors": 3})
    assert [f.sha256 for f in release.files] == [hashlib.sha256(FILES[f.path]).hexdigest() for f in release.files]
    assert storage.verify_release(release.uri, deep=True).manifest == release.manifest


def test_publication_copies_in_place_and_removes_staging(root_uri: str, cloud: Any) -> None:
    weights_uri = prepare(root_uri, FILES)
    cloud.begin_anew()
    release = storage.upload_model(weights_uri=weights_uri, release_root=root_uri)
    assert (release.moved_bytes, release.copied_bytes) == (0, release.size_bytes)
    assert cloud.bytes_in() < 20_000
    assert paths(storage.join(root_uri, ".staging")) == []


def test_publishing_again_moves_nothing_and_says_so(root_uri: str, cloud: Any) -> None:
    first = storage.upload_model(weights_uri=prepare(root_uri, FILES), release_root=root_uri)
    weights_uri = prepare(root_uri, FILES)
    cloud.begin_anew()
    for uri in (weights_uri, first.uri):
        again = storage.upload_model(weights_uri=uri, release_root=root_uri)
        assert again.already_published
        assert (again.moved_bytes, again.copied_bytes) == (0, 0)
        assert again.manifest == first.manifest
    assert cloud.bytes_in() < 10_000
    assert paths(storage.join(root_uri, ".staging")) == []


def test_what_is_on_disk_is_uploaded_with_its_hash_checked(bucket_uri: str, tmp_path: Path, cloud: Any) -> None:
    folder = prepare(bucket_uri, FILES, folder=str(tmp_path / "weights"))
    release = storage.upload_model(weights_uri=folder, release_root=bucket_uri)
    assert release.moved_bytes == release.size_bytes
    storage.verify_release(release.uri, deep=True)
    assert paths(bucket_uri) == [f"org/m/{SHA}.manifest.json", *(f"org/m/{SHA}/{path}" for path in sorted(FILES))]
    assert (tmp_path / "weights" / "model.safetensors").exists(), "a folder of the user's is not ours to remove"


def test_what_changed_on_disk_since_it_was_prepared_is_not_published(bucket_uri: str, tmp_path: Path) -> None:
    folder = prepare(bucket_uri, FILES, folder=str(tmp_path / "weights"))
    (tmp_path / "weights" / "model.safetensors").write_bytes(os.urandom(300_000))
    with pytest.raises(ChecksumError):
        storage.upload_model(weights_uri=folder, release_root=bucket_uri)
    assert storage.find_release(storage.ModelLayout(bucket_uri, "org/m", SHA).release_uri) is None


def test_what_was_replaced_in_staging_is_not_published(bucket_uri: str) -> None:
    weights_uri = prepare(bucket_uri, FILES)
    storage.write_file(f"{weights_uri}/model.safetensors", os.urandom(300_000))
    with pytest.raises(ChecksumError, match=r"model\.safetensors has crc32c"):
        storage.upload_model(weights_uri=weights_uri, release_root=bucket_uri)
    assert storage.find_release(storage.ModelLayout(bucket_uri, "org/m", SHA).release_uri) is None


def test_a_reader_never_sees_half_a_release(root_uri: str) -> None:
    files = FILES | {f"model-{n:05d}-of-00009.safetensors": os.urandom(1000) for n in range(9)}
    weights_uri = prepare(root_uri, files)
    release_uri = storage.ModelLayout(root_uri, "org/m", SHA).release_uri
    done, seen, wrong = threading.Event(), [], []

    def watch() -> None:
        while not done.is_set():
            if release := storage.find_release(release_uri):
                seen.append(release)
                if paths(release_uri) != sorted(files):
                    wrong.append(paths(release_uri))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        storage.upload_model(weights_uri=weights_uri, release_root=root_uri)
        while not seen and watcher.is_alive():
            done.wait(0.01)
    finally:
        done.set()
        watcher.join()
    assert seen and not wrong


def test_an_interrupted_publication_is_finished_by_the_next(root_uri: str) -> None:
    weights_uri = prepare(root_uri, FILES)
    release_uri = storage.ModelLayout(root_uri, "org/m", SHA).release_uri
    storage.copy_file(f"{weights_uri}/config.json", storage.join(release_uri, "config.json"))
    storage.write_file(storage.join(release_uri, "model.safetensors"), b"half of it")
    storage.write_file(storage.join(release_uri, "stray.safetensors"), b"of an earlier conversion")
    assert storage.find_release(release_uri) is None
    release = storage.upload_model(weights_uri=weights_uri, release_root=root_uri)
    assert paths(release.uri) == sorted(FILES)
    storage.verify_release(release.uri, deep=True)


def test_a_release_never_changes(root_uri: str) -> None:
    first = storage.upload_model(weights_uri=prepare(root_uri, FILES), release_root=root_uri)
    changed = prepare(root_uri, FILES | {"model.safetensors": b"other weights"})
    with pytest.raises(ReleaseError, match=r"published already with other content.*model\.safetensors"):
        storage.upload_model(weights_uri=changed, release_root=root_uri)
    assert storage.verify_release(first.uri, deep=True).manifest == first.manifest


def test_two_runs_at_once_make_one_release(root_uri: str, tmp_path: Path) -> None:
    folders = [prepare(root_uri, FILES, folder=str(tmp_path / f"run-{n}")) for n in range(2)]
    releases: list[storage.Release] = []
    failures: list[StreamwayError] = []
    start = threading.Barrier(2)

    def publish(folder: str) -> None:
        start.wait()
        try:
            releases.append(storage.upload_model(weights_uri=folder, release_root=root_uri))
        except StreamwayError as error:
            failures.append(error)

    threads = [threading.Thread(target=publish, args=(folder,)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert releases, failures
    final = storage.verify_release(releases[0].uri, deep=True)
    assert all(release.manifest.same_content(final.manifest) for release in releases)


def test_a_file_of_another_release_is_copied_from_there(bucket_uri: str, tmp_path: Path, cloud: Any) -> None:
    storage.upload_model(weights_uri=prepare(bucket_uri, FILES), release_root=bucket_uri)
    changed = FILES | {"config.json": b'{"changed": true}'}
    folder = prepare(bucket_uri, changed, sha=OTHER_SHA, folder=str(tmp_path / "weights"))
    cloud.begin_anew()
    release = storage.upload_model(weights_uri=folder, release_root=bucket_uri)
    assert release.moved_bytes == len(changed["config.json"])
    assert release.copied_bytes == release.size_bytes - release.moved_bytes
    assert cloud.bytes_in() < 20_000
    storage.verify_release(release.uri, deep=True)


def test_files_of_a_release_are_no_links_to_what_others_may_write(tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    folder = prepare(root, FILES, folder=str(tmp_path / "mine"))
    release = storage.upload_model(weights_uri=folder, release_root=root)
    published = Path(release.uri) / "model.safetensors"
    assert not published.samefile(tmp_path / "mine" / "model.safetensors")


@pytest.mark.parametrize("stray", ["pytorch_model.bin", "consolidated.safetensors", "modeling.py", "sub/x.safetensors"])
def test_files_that_would_harm_a_pod_are_refused(root_uri: str, stray: str) -> None:
    with pytest.raises(ReleaseError, match="must not be published"):
        storage.upload_model(weights_uri=prepare(root_uri, FILES | {stray: b"x"}), release_root=root_uri)


def test_a_record_that_no_manifest_could_hold_is_refused_before_anything_is_published(tmp_path: Path) -> None:
    uri = storage.join(prepare(str(tmp_path), FILES), WEIGHTS_RECORD)
    record = PreparedWeights.from_json(storage.read_file(uri), uri=uri)
    storage.write_file(uri, replace(record, report={"notes": "x" * MAX_BYTES}).to_json().encode())
    with pytest.raises(StreamwayError, match=f"expected at most {MAX_BYTES}"):
        storage.upload_model(weights_uri=uri.removesuffix(WEIGHTS_RECORD), release_root=str(tmp_path))
    assert not (tmp_path / "org").exists()


@pytest.mark.parametrize("changes", [{"sha256": ""}, {"path": "../LICENSE"}])
def test_a_record_that_no_step_wrote_publishes_nothing_of_this_machine(tmp_path: Path, changes: Any) -> None:
    secret = tmp_path / "credentials"
    secret.write_text("secret")
    uri = storage.join(prepare(str(tmp_path), FILES), WEIGHTS_RECORD)
    record = PreparedWeights.from_json(storage.read_file(uri), uri=uri)
    named = {"path": "LICENSE-2", "uri": str(secret), "size_bytes": 6, "sha256": "a" * 64, **changes}
    forged = replace(record, files=(*record.files, RecordedFile(**named)))
    storage.write_file(uri, forged.to_json().encode())
    with pytest.raises(StreamwayError, match=r"without the SHA-256|not a path inside a model"):
        storage.upload_model(weights_uri=uri.removesuffix(WEIGHTS_RECORD), release_root=str(tmp_path / "root"))
    assert not (tmp_path / "root").exists()


def test_a_release_without_weights_is_refused(root_uri: str) -> None:
    with pytest.raises(ReleaseError, match="no safetensors"):
        storage.upload_model(weights_uri=prepare(root_uri, {"config.json": b"{}"}), release_root=root_uri)


def test_what_was_not_prepared_is_refused(root_uri: str) -> None:
    with pytest.raises(ReleaseError, match="neither a published release nor prepared weights"):
        storage.upload_model(weights_uri=storage.join(root_uri, "nothing"), release_root=root_uri)


def test_a_folder_that_never_was_on_a_hub_is_named_by_its_content(root_uri: str, tmp_path: Path) -> None:
    folder = prepare(root_uri, FILES, folder=str(tmp_path / "my-model"), model_id="")
    release = storage.upload_model(weights_uri=folder, release_root=root_uri)
    assert release.manifest.model_id == "local/my-model"
    assert release.uri.startswith(storage.join(root_uri, "local/my-model"))
    assert storage.upload_model(weights_uri=folder, release_root=root_uri).already_published


@pytest.mark.parametrize(("folder", "name"), [("my model (v2)", "my-model-v2"), ("_模型", "model")])
def test_a_folder_of_any_name_can_be_published(tmp_path: Path, folder: str, name: str) -> None:
    uri = prepare(str(tmp_path), FILES, folder=str(tmp_path / folder), model_id="")
    release = storage.upload_model(weights_uri=uri, release_root=str(tmp_path / "root"))
    assert release.manifest.model_id == f"local/{name}"


def test_verification_finds_what_is_wrong(root_uri: str) -> None:
    release = storage.upload_model(weights_uri=prepare(root_uri, FILES), release_root=root_uri)
    storage.write_file(storage.join(release.uri, "stray.safetensors"), b"x")
    with pytest.raises(ReleaseError, match=r"stray\.safetensors does not belong"):
        storage.verify_release(release.uri)
    storage.delete_files([storage.join(release.uri, "stray.safetensors"), storage.join(release.uri, "LICENSE")])
    with pytest.raises(ReleaseError, match="LICENSE is missing"):
        storage.verify_release(release.uri)
    storage.write_file(storage.join(release.uri, "LICENSE"), b"FREE")
    with pytest.raises(ReleaseError, match="LICENSE has"):
        storage.verify_release(release.uri, deep=True)


def test_a_place_without_a_manifest_is_no_release(root_uri: str) -> None:
    assert storage.find_release(storage.join(root_uri, "org/m", SHA)) is None
    with pytest.raises(ReleaseError, match="no release"):
        storage.verify_release(storage.join(root_uri, "org/m", SHA))


def test_staging_that_may_not_be_deleted_is_no_failure(
    bucket_uri: str, cloud: Any, caplog: pytest.LogCaptureFixture
) -> None:
    weights_uri = prepare(bucket_uri, FILES)
    cloud.arm("status", status=403, method="DELETE", times=10, path="/storage/*")
    release = storage.upload_model(weights_uri=weights_uri, release_root=bucket_uri)
    assert not release.already_published
    assert "stays in the bucket" in caplog.text


def test_uploads_that_nobody_finishes_are_cleared_away_by_publication(bucket_uri: str, cloud: Any) -> None:
    from streamway.storage.addresses import parse_gs
    from streamway.storage.cloud import cloud_storage

    weights_uri = prepare(bucket_uri, FILES)
    cloud_storage().start_upload(parse_gs(f"{weights_uri}/model.safetensors"), {})
    storage.upload_model(weights_uri=weights_uri, release_root=bucket_uri)
    assert cloud_storage().list_uploads(parse_gs(f"{bucket_uri}/")) == []


def test_staging_that_a_killed_run_left_is_removed_by_the_next(root_uri: str) -> None:
    release = storage.upload_model(weights_uri=prepare(root_uri, FILES), release_root=root_uri)
    storage.write_file(storage.join(root_uri, ".staging/org/m", SHA, "source/_snapshot.json"), b"{}")
    assert storage.upload_model(weights_uri=release.uri, release_root=root_uri).already_published
    assert paths(storage.join(root_uri, ".staging")) == []


@pytest.mark.parametrize("far", [True, False])
def test_progress_of_a_publication_ends_at_its_whole(bucket_uri: str, tmp_path: Path, far: bool) -> None:
    told: list[tuple[int, int]] = []
    folder = prepare(bucket_uri, FILES, folder=str(tmp_path / "weights") if far else "")
    storage.upload_model(
        weights_uri=folder, release_root=bucket_uri, on_progress=lambda done, total: told.append((done, total))
    )
    size = sum(map(len, FILES.values()))
    assert told[-1] == (size, size)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


@pytest.mark.parametrize("same", [True, False])
def test_a_race_is_lost_without_harm_or_with_a_word(root_uri: str, same: bool) -> None:
    other = {"model.safetensors": b"other weights"} if not same else {}
    elsewhere = storage.upload_model(
        weights_uri=prepare(storage.join(root_uri, "elsewhere"), FILES | other),
        release_root=storage.join(root_uri, "elsewhere"),
    )
    theirs = replace(elsewhere.manifest, created="2020-01-01T00:00:00Z").to_json()
    layout = storage.ModelLayout(root_uri, "org/m", SHA)

    def win(done: int, total: int) -> None:
        storage.write_file(layout.manifest_uri, theirs)

    weights_uri = prepare(root_uri, FILES)
    if same:
        release = storage.upload_model(weights_uri=weights_uri, release_root=root_uri, on_progress=win)
        assert release.already_published
    else:
        with pytest.raises(ReleaseError, match="another run published this commit with other content"):
            storage.upload_model(weights_uri=weights_uri, release_root=root_uri, on_progress=win)
    assert storage.read_file(layout.manifest_uri) == theirs
