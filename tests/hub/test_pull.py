"""A pull moves what serving needs, once, verified, after the policies have been asked."""

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamway import hub as hub_room
from streamway import storage
from streamway.errors import (
    AccessDeniedError,
    ChecksumError,
    HubError,
    ModelNotFoundError,
    NoWeightsError,
    PolicyError,
    RevisionNotFoundError,
    SourceChangedError,
    StreamwayError,
    TransferError,
)
from streamway.sandbox.hub_repository import Promise
from streamway.storage import Patience
from streamway.storage.records import SNAPSHOT_RECORD, WEIGHTS_RECORD, PreparedWeights, Snapshot

MIB = 1024 * 1024
PART = 5 * MIB
SMALL_PARTS = {"memory_bytes": 2 * PART, "workers": 2}
FAULTS = [
    {"kind": "status", "status": 429, "headers": {"Retry-After": "1"}},
    {"kind": "status", "status": 500},
    {"kind": "status", "status": 503},
    {"kind": "reset", "after_bytes": 100_000},
    {"kind": "stall", "after_bytes": 100_000},
    {"kind": "truncate", "after_bytes": 100_000},
    {"kind": "lose_answer"},
]
NAMES = [f"{fault['kind']}{fault.get('status', '')}" for fault in FAULTS]


def publish(pulled: hub_room.PulledModel, root_uri: str) -> storage.Release:
    """Pass a safetensors snapshot through, as the conversion does, and publish it."""
    layout = storage.ModelLayout(root_uri, pulled.model_id, pulled.commit_sha)
    prepared = PreparedWeights(
        model_id=pulled.model_id,
        revision="main",
        commit_sha=pulled.commit_sha,
        licence=pulled.licence,
        source="hub",
        files=pulled.files,
    )
    storage.write_file(storage.join(layout.weights_uri, WEIGHTS_RECORD), prepared.to_json().encode())
    return storage.upload_model(weights_uri=layout.weights_uri, release_root=root_uri)


def blob(hub: Any, model_id: str, path: str, revision: str = "main") -> bytes:
    from streamway.sandbox.hub_repository import find_repository

    repository = find_repository(hub.repos, model_id)
    assert repository
    commit = repository.resolve(revision)
    assert commit
    return repository.blob_path(commit.files[path]).read_bytes()


def test_a_snapshot_holds_what_serving_needs_and_nothing_else(hub: Any, root_uri: str) -> None:
    sha = hub.model("org/pulled", **{"tokenizer.json": b"{}", "pytorch_model.bin": b"same", "onnx/model.onnx": b"same"})
    pulled = hub_room.pull_model(model_id="org/pulled", release_root=root_uri)
    assert pulled.uri == storage.ModelLayout(root_uri, "org/pulled", sha).snapshot_uri
    assert (pulled.model_id, pulled.commit_sha, pulled.licence) == ("org/pulled", sha, "apache-2.0")
    assert [file.path for file in pulled.files] == ["config.json", "model.safetensors", "tokenizer.json"]
    for file in pulled.files:
        content = blob(hub, "org/pulled", file.path)
        assert storage.read_file(file.uri) == content
        assert (file.size_bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert file.crc32c is not None
    assert pulled.size_bytes == pulled.moved_bytes == sum(file.size_bytes for file in pulled.files)
    assert not pulled.already_published


def test_the_record_is_written_last_and_says_the_same(hub: Any, root_uri: str) -> None:
    hub.model("org/recorded")
    pulled = hub_room.pull_model(model_id="org/recorded", release_root=root_uri)
    uri = storage.join(pulled.uri, SNAPSHOT_RECORD)
    snapshot = Snapshot.from_json(storage.read_file(uri), uri=uri)
    assert snapshot.files == pulled.files
    assert (snapshot.revision, snapshot.source) == ("main", hub.url)


def test_staging_may_be_somewhere_else(hub: Any, bucket_uri: str, tmp_path: Path) -> None:
    hub.model("org/elsewhere")
    staging = str(tmp_path / "staging")
    pulled = hub_room.pull_model(model_id="org/elsewhere", release_root=bucket_uri, staging_uri=staging)
    assert pulled.uri == staging
    assert {file.path for file in storage.list_files(staging)} >= {"config.json", "model.safetensors"}
    assert storage.list_files(bucket_uri) == ()


def test_a_second_pull_moves_no_weight_byte(hub: Any, root_uri: str) -> None:
    hub.model("org/twice", size_bytes=PART + 5)
    first = hub_room.pull_model(model_id="org/twice", release_root=root_uri, **SMALL_PARTS)
    hub.begin_anew()
    second = hub_room.pull_model(model_id="org/twice", release_root=root_uri, **SMALL_PARTS)
    assert second.moved_bytes == 0 and second.files == first.files
    assert hub.bytes_out() < 10_000


def test_a_published_model_moves_nothing_at_all(hub: Any, cloud: Any, root_uri: str) -> None:
    hub.model("org/published")
    release = publish(hub_room.pull_model(model_id="org/published", release_root=root_uri), root_uri)
    hub.begin_anew()
    cloud.begin_anew()
    again = hub_room.pull_model(model_id="org/published", release_root=root_uri)
    assert again.already_published and again.moved_bytes == 0
    assert again.uri == release.uri
    assert [file.path for file in again.files] == [file.path for file in release.files]
    assert hub.count("GET") == 1 and cloud.bytes_in() == 0


def test_a_new_commit_moves_only_what_it_changed(hub: Any, cloud: Any, bucket_uri: str) -> None:
    shards = {f"model-{n:05d}-of-00008.safetensors": bytes([n]) * 300_000 for n in range(1, 9)}
    first = hub.push("org/eight", {"config.json": b"{}", **shards})
    publish(hub_room.pull_model(model_id="org/eight", release_root=bucket_uri), bucket_uri)
    changed = "model-00003-of-00008.safetensors"
    second = hub.push("org/eight", {changed: b"c" * 300_000})
    hub.begin_anew()
    cloud.begin_anew()
    pulled = hub_room.pull_model(model_id="org/eight", release_root=bucket_uri)
    assert pulled.commit_sha == second != first
    assert 300_000 <= pulled.moved_bytes < 301_000
    release = publish(pulled, bucket_uri)
    assert hub.bytes_out() < 320_000 and cloud.bytes_in() < 340_000
    assert release.moved_bytes == 0
    storage.verify_release(release.uri, deep=True)
    assert storage.read_file(storage.join(release.uri, changed)) == b"c" * 300_000


def test_a_moved_branch_is_another_commit(hub: Any, root_uri: str) -> None:
    first = hub.model("org/moves")
    assert hub_room.pull_model(model_id="org/moves", release_root=root_uri).commit_sha == first
    second = hub.model("org/moves")
    assert hub_room.pull_model(model_id="org/moves", release_root=root_uri).commit_sha == second
    assert hub_room.pull_model(model_id="org/moves", revision=first, release_root=root_uri).commit_sha == first


@pytest.mark.parametrize("path", ["model.safetensors", "config.json"])
def test_bytes_that_the_hub_did_not_promise_never_appear(hub: Any, root_uri: str, path: str) -> None:
    content = {"config.json": b'{"a": 1}', "model.safetensors": b"w" * 100_000}
    lie = Promise(sha256=hashlib.sha256(b"something else").hexdigest(), size_bytes=len(content[path]))
    model_id = f"org/lying-{'small' if path == 'config.json' else 'large'}-{abs(hash(root_uri))}"
    if path == "config.json":
        sha = hub.push(model_id, content)
        _tamper(hub, model_id, path, b'{"a": 2}')
    else:
        sha = hub.push(model_id, content, promises={path: lie})
    with pytest.raises(ChecksumError, match=path.replace(".", r"\.")) as caught:
        hub_room.pull_model(model_id=model_id, release_root=root_uri)
    assert caught.value.next_step
    staging = storage.ModelLayout(root_uri, model_id, sha).snapshot_uri
    assert path not in {file.path for file in storage.list_files(staging)}
    assert not storage.exists(storage.join(staging, SNAPSHOT_RECORD))


def _tamper(hub: Any, model_id: str, path: str, content: bytes) -> None:
    from streamway.sandbox.hub_repository import find_repository

    repository = find_repository(hub.repos, model_id)
    assert repository
    commit = repository.resolve("main")
    assert commit
    repository.blob_path(commit.files[path]).write_bytes(content)


def test_corruption_on_the_way_is_noticed_and_a_rerun_repairs_it(hub: Any, root_uri: str) -> None:
    hub.model("org/corrupted", size_bytes=2 * PART)
    hub.arm("corrupt", path="/cdn/*", after_bytes=1000)
    with pytest.raises(ChecksumError):
        hub_room.pull_model(model_id="org/corrupted", release_root=root_uri, **SMALL_PARTS)
    pulled = hub_room.pull_model(model_id="org/corrupted", release_root=root_uri, **SMALL_PARTS)
    assert storage.read_file(pulled.files[1].uri) == blob(hub, "org/corrupted", "model.safetensors")


@pytest.mark.parametrize("fault", FAULTS, ids=NAMES)
def test_a_pull_survives_faults_of_both_sides(
    hub: Any, cloud: Any, bucket_uri: str, hurried: Patience, fault: Any
) -> None:
    hub.model("org/faulty", size_bytes=3 * PART)
    for path in ("/api/*", "*/resolve/*", "/cdn/*"):
        hub.arm(**fault, path=path)
    cloud.arm(**fault, method="PUT", path="*partNumber=2&*")
    cloud.arm(**fault, method="POST", path="*?uploads")
    pulled = hub_room.pull_model(model_id="org/faulty", release_root=bucket_uri, patience=hurried, **SMALL_PARTS)
    assert not hub.armed() and not cloud.armed()
    release = publish(pulled, bucket_uri)
    storage.verify_release(release.uri, deep=True)
    model = blob(hub, "org/faulty", "model.safetensors")
    assert storage.read_file(storage.join(release.uri, "model.safetensors")) == model


def test_addresses_that_expire_again_and_again_do_not_stop_a_pull(hub: Any, root_uri: str, hurried: Patience) -> None:
    hub.model("org/expiring", size_bytes=6 * PART)
    done = threading.Event()

    def expire() -> None:
        while not done.wait(0.02):
            hub.expire_links()

    thread = threading.Thread(target=expire)
    thread.start()
    try:
        pulled = hub_room.pull_model(model_id="org/expiring", release_root=root_uri, **SMALL_PARTS)
    finally:
        done.set()
        thread.join()
    assert storage.read_file(pulled.files[1].uri) == blob(hub, "org/expiring", "model.safetensors")


@contextlib.contextmanager
def under_way(cloud: Any, action: Callable[[], None]) -> Iterator[None]:
    """Do something while a transfer waits for its second part to be taken."""
    cloud.arm("stall", method="PUT", path="*partNumber=2&*")

    def act() -> None:
        while cloud.armed():
            time.sleep(0.01)
        action()

    thread = threading.Thread(target=act)
    thread.start()
    yield
    thread.join()


def test_access_that_is_withdrawn_under_way_is_said_and_nothing_is_lost(
    hub: Any, cloud: Any, bucket_uri: str, hurried: Patience
) -> None:
    hub.model("org/withdrawn", size_bytes=4 * PART)
    hub.settle("org/withdrawn", gated="manual")
    hub.tokens({"hf_good": ["org/*"]})

    def withdraw() -> None:
        hub.tokens({"hf_good": []})
        hub.expire_links()

    pull = {"model_id": "org/withdrawn", "release_root": bucket_uri, "token": "hf_good", "patience": hurried}
    with under_way(cloud, withdraw), pytest.raises(AccessDeniedError, match="revoked, or access was withdrawn"):
        hub_room.pull_model(**pull, memory_bytes=PART, workers=1)
    hub.tokens({"hf_good": ["org/*"]})
    pulled = hub_room.pull_model(**pull, memory_bytes=PART, workers=1)
    assert pulled.moved_bytes < 3 * PART, "what had arrived must not move again"
    assert storage.read_file(pulled.files[1].uri) == blob(hub, "org/withdrawn", "model.safetensors")


def test_a_file_that_is_taken_away_under_way_is_noticed(
    hub: Any, cloud: Any, bucket_uri: str, hurried: Patience
) -> None:
    hub.model("org/changing", size_bytes=4 * PART)

    def take_away() -> None:
        hub.arm("status", status=404, method="HEAD", path="*/resolve/*", times=20)
        hub.expire_links()

    with under_way(cloud, take_away), pytest.raises(SourceChangedError, match="the file is gone"):
        hub_room.pull_model(
            model_id="org/changing", release_root=bucket_uri, patience=hurried, memory_bytes=PART, workers=1
        )


@pytest.mark.parametrize(
    ("files", "settings", "more", "error", "words"),
    [
        ({}, {}, {"allowed_licences": ["mit", "BSD-3-Clause"]}, PolicyError, "licence is 'apache-2.0', allowed are"),
        ({"config.json": b'{"auto_map": {"AutoModel": "m.M"}}'}, {}, {}, PolicyError, "asks for code of its own"),
        ({"tokenizer_config.json": b'{"auto_map": {"x": "t.T"}}'}, {}, {}, PolicyError, "tokenizer_config.json"),
        ({}, {"unsafe_files": ("model.safetensors",)}, {}, PolicyError, r"scanners complain about model.safetensors"),
        ({}, {"gated": "manual"}, {}, AccessDeniedError, "is gated"),
        ({"model.safetensors": None}, {}, {}, NoWeightsError, "no weights at its root"),
    ],
)
def test_what_is_refused_is_refused_before_weights_move(
    hub: Any, bucket_uri: str, files: Any, settings: Any, more: Any, error: type[StreamwayError], words: str
) -> None:
    model_id = "org/refused"
    hub.push(model_id, {"config.json": b"{}", "README.md": b"---\nlicense: apache-2.0\n---\n"}, keep_other_files=False)
    hub.push(model_id, {"model.safetensors": b"w" * 100_000, **files})
    hub.settle(model_id, **settings)
    hub.begin_anew()
    with pytest.raises(error, match=words) as caught:
        hub_room.pull_model(model_id=model_id, release_root=bucket_uri, **more)
    assert caught.value.next_step
    assert hub.bytes_out() < 20_000 and hub.count(containing="/cdn/") == 0
    assert storage.list_files(bucket_uri) == ()
    hub.settle(model_id)


def test_a_licence_that_is_not_allowed_any_more_is_refused_where_it_was_published(hub: Any, root_uri: str) -> None:
    hub.model("org/once-allowed")
    publish(hub_room.pull_model(model_id="org/once-allowed", release_root=root_uri), root_uri)
    with pytest.raises(PolicyError, match="licence is 'apache"):
        hub_room.pull_model(model_id="org/once-allowed", release_root=root_uri, allowed_licences=["mit"])


def test_policies_say_everything_that_is_wrong_at_once(hub: Any, bucket_uri: str) -> None:
    hub.model("org/very-wrong", **{"config.json": b'{"auto_map": {"AutoModel": "m.M"}}'})
    with pytest.raises(PolicyError, match=r"licence.*and it asks for code"):
        hub_room.pull_model(model_id="org/very-wrong", release_root=bucket_uri, allowed_licences=["mit"])


def test_policies_allow_what_they_name(hub: Any, root_uri: str) -> None:
    hub.model("org/allowed", **{"config.json": b'{"auto_map": {"AutoModel": "m.M"}}', "m.py": b"raise SystemExit"})
    pulled = hub_room.pull_model(
        model_id="org/allowed", release_root=root_uri, allowed_licences=["APACHE-2.0"], allow_remote_code=True
    )
    assert "m.py" not in [file.path for file in pulled.files], "code is never taken along"


def test_complaints_about_files_that_are_not_taken_do_not_matter(hub: Any, root_uri: str) -> None:
    hub.model("org/half-unsafe", **{"pytorch_model.bin": b"evil"})
    hub.settle("org/half-unsafe", unsafe_files=("pytorch_model.bin",))
    pulled = hub_room.pull_model(model_id="org/half-unsafe", release_root=root_uri)
    taken = [file.path for file in pulled.files]
    assert "model.safetensors" in taken
    assert "pytorch_model.bin" not in taken


@pytest.mark.parametrize(
    ("model_id", "revision", "error"),
    [("org/nowhere", "main", ModelNotFoundError), ("org/here", "v9", RevisionNotFoundError)],
)
def test_what_is_not_there_is_named(hub: Any, bucket_uri: str, model_id: str, revision: str, error: Any) -> None:
    hub.model("org/here")
    with pytest.raises(error, match=model_id):
        hub_room.pull_model(model_id=model_id, revision=revision, release_root=bucket_uri)


def test_hostile_file_names_are_refused(hub: Any, root_uri: str) -> None:
    sha = hub.model("org/hostile")
    record = hub.repos / "org/hostile" / "commits" / f"{sha}.json"
    commit = json.loads(record.read_text())
    commit["files"]["../../escape.json"] = commit["files"].pop("config.json") | {"path": "../../escape.json"}
    record.write_text(json.dumps(commit))
    with pytest.raises(StreamwayError, match="not a path inside a model"):
        hub_room.pull_model(model_id="org/hostile", release_root=root_uri)


def test_a_bucket_that_is_not_there_is_named_before_weights_move(hub: Any, cloud: Any) -> None:
    hub.model("org/bucketless")
    with pytest.raises(StreamwayError, match="gs://no-such-bucket"):
        hub_room.pull_model(model_id="org/bucketless", release_root="gs://no-such-bucket/models")
    assert hub.count(containing="/cdn/") == 0


def test_a_storage_that_fails_for_good_is_an_error_within_patience(
    hub: Any, cloud: Any, bucket_uri: str, hurried: Patience
) -> None:
    hub.model("org/unlucky", size_bytes=2 * PART)
    cloud.arm("status", status=503, method="PUT", times=1000)
    with pytest.raises(TransferError, match="503; tried 4 times"):
        hub_room.pull_model(model_id="org/unlucky", release_root=bucket_uri, patience=hurried, **SMALL_PARTS)


def test_small_files_beyond_reason_are_not_held_in_memory(hub: Any, root_uri: str) -> None:
    sha = hub.model("org/swollen")
    record = hub.repos / "org/swollen" / "commits" / f"{sha}.json"
    commit = json.loads(record.read_text())
    commit["files"]["config.json"]["size_bytes"] = 10**12
    record.write_text(json.dumps(commit))
    with pytest.raises(HubError, match=r"config\.json is 1000000000000 bytes long"):
        hub_room.pull_model(model_id="org/swollen", release_root=root_uri)
