"""Pickled weights that stay at the Hub until they are converted move once, and are held to the Hub's hash."""

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamway import hub as hub_room
from streamway import storage, weights
from streamway.errors import AccessDeniedError, ChecksumError, HubError, SettingsError, StorageError, UnsafePickleError
from streamway.sandbox.hub_repository import Promise
from streamway.storage import Patience
from streamway.storage.records import LeftFile
from streamway.storage.segments import ByteReader

WRITER = Path(__file__).parents[1] / "weights" / "torch_writer.py"
_SPEC = importlib.util.spec_from_file_location("torch_writer", WRITER)
assert _SPEC and _SPEC.loader
torch = sys.modules["torch_writer"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(torch)

MIB = 1024 * 1024
LIMITS = {"memory_bytes": 11 * MIB}
"""Two parts of 5 MiB, so that a model of a few MiB is made of several."""
BESIDE = 150_000
"""Descriptions, requests and records, and a checkpoint's directory and pickle, in bytes."""

State = dict[str, Any]


def matrix(size_bytes: int, dtype: str = "float16") -> Any:
    return torch.tensor(os.urandom(size_bytes), (size_bytes // torch.WIDTHS[dtype],), dtype)


def large_model() -> State:
    """Wide and narrow buffers between matrices, as older checkpoints have them."""
    state: State = {}
    for layer in range(4):
        state[f"layers.{layer}.weight"] = matrix(4 * MIB + 10)
        state[f"layers.{layer}.mask"] = matrix(70_000, "uint8")
        state[f"layers.{layer}.frequencies"] = matrix(64, "float32")
    return state


def push(hub: Any, model_id: str, checkpoint: bytes, **more: Any) -> None:
    hub.push(model_id, {"config.json": b"{}", "pytorch_model.bin": checkpoint}, keep_other_files=False, **more)
    hub.begin_anew()


def pull(model_id: str, root_uri: str, **more: Any) -> hub_room.PulledModel:
    return hub_room.pull_model(model_id=model_id, release_root=root_uri, leave_pickled=True, **more)


def convert(pulled: hub_room.PulledModel, root_uri: str, **more: Any) -> weights.ConvertedWeights:
    layout = storage.ModelLayout(root_uri, pulled.model_id, pulled.commit_sha)
    chosen = {"open_left": hub_room.open_left_files(), **LIMITS, **more}
    return weights.convert_weights(snapshot_uri=pulled.uri, weights_uri=layout.weights_uri, **chosen)


def stored(converted: weights.ConvertedWeights) -> dict[str, bytes]:
    found = {}
    for file in converted.files:
        if file.path.endswith(".safetensors"):
            rows = safetensors.deserialize(storage.read_file(file.uri, max_bytes=1 << 30))
            found |= {name: bytes(info["data"]) for name, info in rows}
    return found


def contents(state: State) -> dict[str, bytes]:
    return {name: tensor.storage.data for name, tensor in state.items()}


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_pickled_weights_move_once(hub: Any, cloud: Any, root_uri: str, form: str) -> None:
    state = large_model()
    checkpoint = torch.checkpoint_bytes(state) if form == "zip" else torch.legacy_bytes(state)
    push(hub, f"org/left-{form}", checkpoint)
    cloud.begin_anew()
    pulled = pull(f"org/left-{form}", root_uri)
    assert pulled.moved_bytes < BESIDE
    converted = convert(pulled, root_uri)
    assert stored(converted) == contents(state)
    again = 4 * 70_100 + 2 * BESIDE  # the buffers out of order, which are read once more for the hash
    assert len(checkpoint) <= hub.bytes_out() <= len(checkpoint) + again
    if root_uri.startswith("gs://"):
        assert cloud.bytes_in() <= len(checkpoint) + BESIDE


def test_a_stretch_of_tensors_is_one_request_for_each_part(hub: Any, root_uri: str) -> None:
    state = {f"layers.{number}.weight": matrix(100_000) for number in range(100)}
    push(hub, "org/many", torch.checkpoint_bytes(state))
    converted = convert(pull("org/many", root_uri), root_uri)
    assert stored(converted) == contents(state)
    headers = len(state)  # of the archive's members, which are read before anything is planned
    assert hub.count("GET", "/cdn/") < headers + 15


def test_the_result_is_the_same_as_of_a_model_that_was_brought(hub: Any, bucket_uri: str, tmp_path: Path) -> None:
    push(hub, "org/same", torch.checkpoint_bytes(large_model()))
    left = convert(pull("org/same", bucket_uri), bucket_uri)
    brought = hub_room.pull_model(model_id="org/same", release_root=str(tmp_path))
    other = convert(brought, str(tmp_path))
    assert [(f.path, f.sha256) for f in left.files] == [(f.path, f.sha256) for f in other.files]


def test_bytes_that_the_hub_did_not_promise_are_never_recorded(hub: Any, root_uri: str) -> None:
    checkpoint = torch.checkpoint_bytes(large_model())
    lie = Promise(sha256="0" * 64, size_bytes=len(checkpoint))
    push(hub, "org/lie", checkpoint, promises={"pytorch_model.bin": lie})
    pulled = pull("org/lie", root_uri)
    with pytest.raises(ChecksumError, match=r"pytorch_model\.bin: its \d+ bytes have sha256 .*, expected 0000"):
        convert(pulled, root_uri)
    layout = storage.ModelLayout(root_uri, pulled.model_id, pulled.commit_sha)
    assert [f for f in storage.list_files(layout.weights_uri) if f.path.endswith((".safetensors", ".json"))] == []


@pytest.mark.parametrize("after", [200_000, 4_000_000], ids=["early in a part", "late in a part"])
def test_corruption_on_the_way_is_noticed_and_a_rerun_repairs_it(hub: Any, root_uri: str, after: int) -> None:
    state = large_model()
    push(hub, "org/corrupted-left", torch.checkpoint_bytes(state))
    pulled = pull("org/corrupted-left", root_uri)
    hub.arm("corrupt", path="/cdn/*", after_bytes=after, times=100)  # what is shorter, such as a header, arrives whole
    with pytest.raises(ChecksumError):
        convert(pulled, root_uri)
    hub.begin_anew()
    assert stored(convert(pulled, root_uri)) == contents(state)


@pytest.mark.parametrize(
    "awkward",
    [
        {"weight": torch.Tensor(torch.Storage(os.urandom(400_000), "float16"), (400, 500), (1, 400))},
        {"weight": matrix(200_000, "float32"), "half": matrix(66 * MIB), "other": matrix(66 * MIB, "float32")},
    ],
    ids=["transposed", "two widths of a size"],
)
def test_what_does_not_lie_in_order_is_brought_first(hub: Any, root_uri: str, awkward: State) -> None:
    push(hub, "org/awkward", torch.checkpoint_bytes(awkward))
    pulled = pull("org/awkward", root_uri)
    converted = convert(pulled, root_uri)
    assert set(stored(converted)) == set(awkward)
    assert converted.moved_bytes > 2 * sum(len(data) for data in contents(awkward).values())
    assert storage.exists(storage.join(pulled.uri, "pytorch_model.bin"))


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(
        st.tuples(st.sampled_from(["float16", "float32", "uint8", "int64"]), st.integers(0, 3000)), max_size=20
    )
)
def test_any_checkpoint_arrives_with_its_bytes(
    hub: Any, sizes: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    state = {
        f"tensor.{number}": matrix(count * torch.WIDTHS[dtype], dtype) for number, (dtype, count) in enumerate(sizes)
    }
    state["weight"] = matrix(1000)
    root_uri = str(tmp_path_factory.mktemp("any"))
    push(hub, "org/any", torch.checkpoint_bytes(state))
    assert stored(convert(pull("org/any", root_uri), root_uri)) == contents(state)


def test_several_checkpoints_become_as_many_shards(hub: Any, root_uri: str) -> None:
    states = [{f"layers.{part}.weight": matrix(6 * MIB), f"layers.{part}.scale": matrix(40)} for part in range(3)]
    names = [f"pytorch_model-0000{part + 1}-of-00003.bin" for part in range(3)]
    index = {name: file for state, file in zip(states, names, strict=True) for name in state}
    files = {name: torch.checkpoint_bytes(state) for name, state in zip(names, states, strict=True)}
    files |= {"config.json": b"{}", "pytorch_model.bin.index.json": json.dumps({"weight_map": index}).encode()}
    hub.push("org/several", files, keep_other_files=False)
    hub.begin_anew()
    converted = convert(pull("org/several", root_uri), root_uri)
    assert stored(converted) == {name: data for state in states for name, data in contents(state).items()}
    assert [file.path for file in converted.files if file.path.endswith(".safetensors")] == [
        f"model-0000{part + 1}-of-00003.safetensors" for part in range(3)
    ]
    assert hub.bytes_out() <= sum(map(len, files.values())) + 3 * BESIDE


def test_a_hostile_pickle_is_refused_before_its_weights_move(hub: Any, root_uri: str) -> None:
    state = {"weight": matrix(8 * MIB), "trap": torch.Call(torch.Global("os", "system"), ("true",))}
    push(hub, "org/trap", torch.checkpoint_bytes(state))
    pulled = pull("org/trap", root_uri)
    with pytest.raises(UnsafePickleError, match=r"os\.system"):
        convert(pulled, root_uri)
    assert hub.bytes_out() < 2 * MIB


def test_a_token_that_is_revoked_before_the_conversion_is_said(hub: Any, root_uri: str) -> None:
    push(hub, "org/private-left", torch.checkpoint_bytes(large_model()))
    hub.settle("org/private-left", private=True)
    hub.tokens({"hf_good": ["org/private-left"]})
    pulled = pull("org/private-left", root_uri, token="hf_good")
    with pytest.raises(AccessDeniedError, match=r"pytorch_model\.bin"):
        convert(pulled, root_uri)
    converted = convert(pulled, root_uri, open_left=hub_room.open_left_files(token="hf_good"))
    assert converted.converted


def test_the_secret_of_a_token_is_read_only_where_a_file_was_left(hub: Any, bucket_uri: str) -> None:
    push(hub, "org/secret-left", torch.checkpoint_bytes({"weight": matrix(1000)}))
    opened = hub_room.open_left_files(token_secret="not a resource name")
    with pytest.raises(SettingsError, match="is not a resource name"):
        convert(pull("org/secret-left", bucket_uri), bucket_uri, open_left=opened)
    hub.model("org/nothing-left")
    assert not convert(pull("org/nothing-left", bucket_uri), bucket_uri, open_left=opened).converted


def test_a_record_that_names_another_hub_gets_no_token(
    hub: Any, bucket_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(hub, "org/elsewhere", torch.checkpoint_bytes(large_model()))
    pulled = pull("org/elsewhere", bucket_uri)
    hub.begin_anew()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"is not at http://127\.0\.0\.1:9, which is the Hub here"):
        convert(pulled, bucket_uri)
    assert hub.bytes_out() == 0


def test_without_a_way_to_the_hub_it_is_said_what_to_do(hub: Any, bucket_uri: str) -> None:
    push(hub, "org/nobody", torch.checkpoint_bytes({"weight": matrix(1000)}))
    with pytest.raises(StorageError, match="was left at the Hub") as caught:
        convert(pull("org/nobody", bucket_uri), bucket_uri, open_left=None)
    assert "open_left_files" in str(caught.value.next_step)


def test_the_same_conversion_again_moves_nothing(hub: Any, cloud: Any, bucket_uri: str) -> None:
    push(hub, "org/again-left", torch.checkpoint_bytes(large_model()))
    convert(pull("org/again-left", bucket_uri), bucket_uri)
    hub.begin_anew()
    cloud.begin_anew()
    assert convert(pull("org/again-left", bucket_uri), bucket_uri).moved_bytes == 0
    assert hub.bytes_out() + cloud.bytes_in() < BESIDE


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "status", "status": 429, "headers": {"Retry-After": "1"}},
        {"kind": "status", "status": 503},
        {"kind": "reset", "after_bytes": 100_000},
        {"kind": "stall", "after_bytes": 100_000},
        {"kind": "truncate", "after_bytes": 100_000},
    ],
    ids=["busy", "unavailable", "reset", "stall", "truncated"],
)
def test_a_conversion_survives_faults_of_the_hub(hub: Any, root_uri: str, hurried: Patience, fault: Any) -> None:
    state = large_model()
    push(hub, "org/faulty-left", torch.checkpoint_bytes(state))
    pulled = pull("org/faulty-left", root_uri)
    hub.arm(**fault, path="*/resolve/*")
    hub.arm(**fault, path="/cdn/*", times=2)
    converted = convert(pulled, root_uri, open_left=hub_room.open_left_files(patience=hurried))
    assert stored(converted) == contents(state)
    assert not hub.armed()


def test_addresses_that_expire_under_way_are_asked_for_anew(hub: Any, bucket_uri: str, hurried: Patience) -> None:
    state = {f"layers.{number}.weight": matrix(2 * MIB) for number in range(12)}
    push(hub, "org/expiring-left", torch.checkpoint_bytes(state))
    pulled = pull("org/expiring-left", bucket_uri)
    opened = hub_room.open_left_files(patience=hurried)

    def open_then_expire(file: LeftFile) -> ByteReader:
        reader = opened(file)
        reader.read(0, 1)  # the address is known now, and refused when the next byte is asked for
        hub.expire_links()
        return reader

    assert stored(convert(pulled, bucket_uri, open_left=open_then_expire)) == contents(state)
    assert hub.count("HEAD", "resolve") >= 2


def serve(hub: Any, model_id: str, root_uri: str, files: dict[str, bytes]) -> storage.Release:
    """Push a commit and bring it to a release, as a pipeline does."""
    hub.push(model_id, {"config.json": b"{}", **files}, keep_other_files=False)
    hub.begin_anew()
    converted = convert(pull(model_id, root_uri), root_uri, release_root=root_uri)
    return storage.upload_model(weights_uri=converted.uri, release_root=root_uri)


def weights_of(release: storage.Release) -> dict[str, str]:
    return {file.path: file.sha256 for file in release.files if file.path.endswith(".safetensors")}


def unaligned_file() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [MIB], "data_offsets": [0, 4 * MIB]}}).encode() + b" "
    header += b" " * (len(header) % 2 == 0)  # an odd length leaves what follows unaligned
    return len(header).to_bytes(8, "little") + header + os.urandom(4 * MIB)


@pytest.mark.parametrize("form", ["pickled", "unaligned"])
def test_a_commit_that_leaves_the_weights_makes_nothing_anew(hub: Any, cloud: Any, bucket_uri: str, form: str) -> None:
    if form == "pickled":
        files = {"pytorch_model.bin": torch.checkpoint_bytes(large_model())}
    else:
        files = {"model.safetensors": unaligned_file()}
    first = serve(hub, f"org/kept-{form}", bucket_uri, files)
    cloud.begin_anew()
    second = serve(hub, f"org/kept-{form}", bucket_uri, {**files, "README.md": b"# Better words"})
    assert second.uri != first.uri
    assert weights_of(second) == weights_of(first)
    moved = 0 if form == "pickled" else 4 * MIB  # safetensors are pulled before they are looked at
    assert hub.bytes_out() <= moved + 4 * BESIDE
    assert cloud.bytes_in() <= moved + BESIDE
    proof = second.manifest.conversion["proof"]
    assert proof["tensors"] == first.manifest.conversion["proof"]["tensors"]
    storage.verify_release(second.uri, deep=True)


def test_of_several_checkpoints_only_the_changed_one_is_made(hub: Any, cloud: Any, bucket_uri: str) -> None:
    states = [{f"layers.{part}.weight": matrix(4 * MIB)} for part in range(3)]

    def files() -> dict[str, bytes]:
        names = [f"pytorch_model-0000{part + 1}-of-00003.bin" for part in range(3)]
        index = {name: file for state, file in zip(states, names, strict=True) for name in state}
        checkpoints = {name: torch.checkpoint_bytes(state) for name, state in zip(names, states, strict=True)}
        return {**checkpoints, "pytorch_model.bin.index.json": json.dumps({"weight_map": index}).encode()}

    serve(hub, "org/one-of-three", bucket_uri, files())
    states[1] = {"layers.1.weight": matrix(4 * MIB)}
    cloud.begin_anew()
    release = serve(hub, "org/one-of-three", bucket_uri, files())
    assert 4 * MIB < hub.bytes_out() < 4 * MIB + 4 * BESIDE
    assert 4 * MIB < cloud.bytes_in() < 4 * MIB + BESIDE
    assert len(release.manifest.conversion["reused"]) == 2
    storage.verify_release(release.uri, deep=True)


def test_another_decision_about_tied_names_makes_the_file_anew(hub: Any, bucket_uri: str) -> None:
    shared = torch.Storage(os.urandom(200_000), "float16")
    tied = {
        "model.embed_tokens.weight": torch.Tensor(shared, (100, 1000)),
        "lm_head.weight": torch.Tensor(shared, (100, 1000)),
    }
    checkpoint = {"pytorch_model.bin": torch.checkpoint_bytes(tied)}
    first = serve(hub, "org/ties", bucket_uri, checkpoint)
    second = serve(hub, "org/ties", bucket_uri, {**checkpoint, "config.json": b'{"tie_word_embeddings": false}'})
    assert first.manifest.conversion["tensors"] == 1
    assert second.manifest.conversion["tensors"] == 2
    assert second.manifest.conversion["reused"] == []


def test_what_was_found_elsewhere_and_is_gone_is_made_after_all(hub: Any, bucket_uri: str) -> None:
    state = large_model()
    files = {"pytorch_model.bin": torch.checkpoint_bytes(state)}
    first = serve(hub, "org/vanishing", bucket_uri, files)
    hub.push("org/vanishing", {"config.json": b"{}", "README.md": b"#", **files}, keep_other_files=False)
    pulled = pull("org/vanishing", bucket_uri)
    found = convert(pulled, bucket_uri, release_root=bucket_uri)
    assert found.moved_bytes == 0
    storage.delete_files([file.uri for file in first.recorded_files])
    made = convert(pulled, bucket_uri, release_root=bucket_uri)
    assert made.moved_bytes > 16 * MIB
    assert stored(made) == contents(state)


def tied_model() -> State:
    shared = torch.Storage(os.urandom(4 * MIB), "float16")
    named = torch.Tensor(shared, (1024, 2048))
    return {"model.embed_tokens.weight": named, "lm_head.weight": named, "layers.0.scale": matrix(64, "float32")}


def two_checkpoints() -> dict[str, bytes]:
    names = [f"pytorch_model-0000{part}-of-00002.bin" for part in (1, 2)]
    files = {name: torch.checkpoint_bytes({f"layers.{name}": matrix(3 * MIB)}) for name in names}
    index = {f"layers.{name}": name for name in names}
    return {**files, "pytorch_model.bin.index.json": json.dumps({"weight_map": index}).encode()}


@pytest.mark.parametrize(
    "files",
    [
        lambda: {"pytorch_model.bin": torch.checkpoint_bytes(tied_model()), "tokenizer.json": b"{}"},
        lambda: {"pytorch_model.bin": torch.legacy_bytes(tied_model())},
        two_checkpoints,
        lambda: {"model.safetensors": unaligned_file()},
    ],
    ids=["zip", "legacy", "two checkpoints", "unaligned"],
)
def test_the_size_of_a_release_is_known_before_a_tensor_moves(
    hub: Any, cloud: Any, bucket_uri: str, files: Callable[[], dict[str, bytes]]
) -> None:
    content = files()
    commit = hub.push("org/foreseen", {"config.json": b"{}", **content}, keep_other_files=False)
    hub.begin_anew()
    found = hub_room.find_at_hub(model_id="org/foreseen", commit_sha=commit)
    planned = weights.planned_bytes(found.snapshot, open_left=found.open)
    moved = hub.bytes_out()

    release = serve(hub, "org/foreseen", bucket_uri, content)

    assert planned == release.size_bytes
    assert planned != sum(file.size_bytes for file in found.snapshot.files)
    assert moved < 5 * BESIDE
