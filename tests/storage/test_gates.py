"""A release is promoted only if exactly these bytes have passed, and what is missing is said."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from streamway import storage
from streamway.errors import GateError, ReleaseError
from streamway.storage.gates import Passage, check_passages, promote_release, record_passage
from streamway.storage.records import WEIGHTS_RECORD, PreparedWeights, RecordedFile
from streamway.storage.segments import FilePlan

SHA = "0123456789abcdef0123456789abcdef01234567"
EVIDENCE = {"passed": True, "metrics": {"seconds_to_first_token": 0.2}}
FILES = {"config.json": b"{}", "model.safetensors": os.urandom(200_000)}


def publish(root: str, files: dict[str, bytes] = FILES) -> storage.Release:
    layout = storage.ModelLayout(root, "org/m", SHA)
    plans = [FilePlan(uri=storage.join(layout.weights_uri, path), segments=(data,)) for path, data in files.items()]
    recorded = tuple(
        RecordedFile(path=path, uri=file.uri, size_bytes=file.size_bytes, sha256=file.sha256 or "", crc32c=file.crc32c)
        for path, file in zip(files, storage.write_files(plans), strict=True)
    )
    prepared = PreparedWeights(
        model_id="org/m", revision="main", commit_sha=SHA, licence="mit", source="https://hub", files=recorded
    )
    storage.write_file(storage.join(layout.weights_uri, WEIGHTS_RECORD), prepared.to_json().encode())
    return storage.upload_model(weights_uri=layout.weights_uri, release_root=root)


def record(root: str, stage: str = "staging", evidence: dict[str, Any] = EVIDENCE) -> Passage:
    return record_passage(
        model_id="org/m", commit_sha=SHA, release_root=root, stage=stage, run_uri=f"{root}/.runs/1", evidence=evidence
    )


def check(root: str, *requires: str) -> tuple[Passage, ...]:
    return check_passages(model_id="org/m", commit_sha=SHA, release_root=root, requires=requires)


def promote(source: str, target: str, *requires: str) -> storage.Release:
    return promote_release(model_id="org/m", commit_sha=SHA, source_root=source, release_root=target, requires=requires)


def test_a_passage_names_the_manifest_by_its_digest(root_uri: str) -> None:
    release = publish(root_uri)
    recorded = record(root_uri)
    written = json.loads(storage.read_file(f"{release.uri.rstrip('/')}.passed.staging.json"))
    assert written["manifest_sha256"] == hashlib.sha256(storage.read_file(release.manifest_uri)).hexdigest()
    assert (written["evidence"], written["run_uri"]) == (EVIDENCE, f"{root_uri}/.runs/1")
    assert check(root_uri, "staging") == (recorded,)
    assert check(root_uri) == ()


def test_every_stage_that_is_missing_is_named(root_uri: str) -> None:
    publish(root_uri)
    record(root_uri, "staging")
    with pytest.raises(
        GateError, match=r"may not be promoted. canary: it has not passed .*; load: it has not"
    ) as caught:
        check(root_uri, "staging", "canary", "load")
    assert "promotion.stage set to canary" in caught.value.next_step


def test_a_release_that_was_published_anew_has_passed_nothing(tmp_path: Path) -> None:
    root = str(tmp_path)
    release = publish(root)
    record(root)
    for file in (release.manifest_uri, *(storage.join(release.uri, path) for path in FILES)):
        storage.delete_files([file])
    publish(root, {**FILES, "model.safetensors": b"other"})
    with pytest.raises(GateError, match="was another release under this commit"):
        check(root, "staging")


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"stage": "canary"}, "speaks of canary"),
        ({"commit_sha": "f" * 40}, "speaks of staging for org/m at ffff"),
        ({"model_id": "org/other"}, "for org/other"),
        ({"manifest_sha256": "0" * 64}, "another release"),
        ({"evidence": {"passed": "yes"}}, "no smoke test that passed"),
        ({"evidence": {}}, "no smoke test that passed"),
    ],
)
def test_a_record_that_was_copied_or_edited_opens_no_gate(
    tmp_path: Path, changed: dict[str, Any], problem: str
) -> None:
    release = publish(str(tmp_path))
    record(str(tmp_path))
    path = Path(f"{release.uri.rstrip('/')}.passed.staging.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(GateError, match=problem):
        check(str(tmp_path), "staging")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"stage": 1, "odd": 2}', "nonsense"])
def test_a_record_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    release = publish(str(tmp_path))
    path = Path(f"{release.uri.rstrip('/')}.passed.staging.json")
    path.write_text(text)
    with pytest.raises(GateError, match="not a record that this version can read") as caught:
        check(str(tmp_path), "staging")
    assert str(path) in caught.value.problem


@pytest.mark.parametrize("evidence", [{}, {"passed": False}, {"passed": 1}, {**EVIDENCE, "commit_sha": "f" * 40}])
def test_nothing_is_recorded_without_a_smoke_test_that_passed(tmp_path: Path, evidence: dict[str, Any]) -> None:
    publish(str(tmp_path))
    with pytest.raises(GateError, match="has not passed staging: no smoke test of this commit"):
        record(str(tmp_path), evidence=evidence)
    assert not list(tmp_path.glob("**/*.passed.*"))


@pytest.mark.parametrize("stage", ["", "Staging", "../x", "a b", "-a", "a" * 41])
def test_what_is_no_stage_is_refused(tmp_path: Path, stage: str) -> None:
    publish(str(tmp_path))
    with pytest.raises(GateError, match="not a name of a stage"):
        record(str(tmp_path), stage)


def test_without_a_release_there_is_nothing_to_pass(root_uri: str) -> None:
    with pytest.raises(GateError, match="There is no release"):
        record(root_uri)
    with pytest.raises(GateError, match="There is no release"):
        promote(root_uri, root_uri + "-production")


def test_promotion_copies_inside_cloud_storage(bucket_uri: str, cloud: Any) -> None:
    source = publish(f"{bucket_uri}/staging")
    record(f"{bucket_uri}/staging")
    cloud.begin_anew()
    target = f"gs://other/{bucket_uri.rpartition('/')[2]}"
    promoted = promote(f"{bucket_uri}/staging", target, "staging")
    assert promoted.moved_bytes == 0
    assert cloud.bytes_out() < 50_000 and cloud.bytes_in() < 50_000
    assert storage.verify_release(promoted.uri, deep=True).manifest.same_content(source.manifest)
    assert (promoted.manifest.source, promoted.manifest.licence) == ("https://hub", "mit")
    assert storage.list_files(f"{target}/.staging") == ()


def test_promoting_again_changes_nothing(root_uri: str, cloud: Any) -> None:
    publish(f"{root_uri}/staging")
    record(f"{root_uri}/staging")
    first = promote(f"{root_uri}/staging", f"{root_uri}/production", "staging")
    again = promote(f"{root_uri}/staging", f"{root_uri}/production", "staging")
    assert again.already_published
    assert again.manifest == first.manifest


def test_a_release_that_has_not_passed_is_not_copied(root_uri: str) -> None:
    publish(f"{root_uri}/staging")
    with pytest.raises(GateError, match="may not be promoted"):
        promote(f"{root_uri}/staging", f"{root_uri}/production", "staging")
    assert storage.list_files(f"{root_uri}/production") == ()


def test_a_release_that_was_damaged_after_it_passed_is_not_copied(root_uri: str) -> None:
    release = publish(f"{root_uri}/staging")
    record(f"{root_uri}/staging")
    storage.write_file(storage.join(release.uri, "model.safetensors"), os.urandom(200_000))
    with pytest.raises(ReleaseError, match="not what its manifest says"):
        promote(f"{root_uri}/staging", f"{root_uri}/production", "staging")
    assert storage.list_files(f"{root_uri}/production") == ()


def test_promotion_within_one_root_only_checks_the_gates(tmp_path: Path) -> None:
    publish(str(tmp_path))
    with pytest.raises(GateError):
        promote(str(tmp_path), str(tmp_path), "staging")
    record(str(tmp_path))
    assert promote(str(tmp_path), f"{tmp_path}/", "staging").already_published
