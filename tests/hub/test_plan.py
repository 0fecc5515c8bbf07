"""A plan says what a pull would do, and the pull then does it."""

import json
from typing import Any

import pytest

from streamway import hub as hub_room
from streamway import storage
from streamway.errors import NoWeightsError

PART = 5 * 1024 * 1024


def plan(root_uri: str, model_id: str, **more: Any) -> hub_room.PullPlan:
    return hub_room.plan_pull(model_id=model_id, release_root=root_uri, memory_bytes=2 * PART, workers=2, **more)


def test_a_plan_names_files_bytes_and_requests(hub: Any, bucket_uri: str) -> None:
    sha = hub.model("org/planned", size_bytes=2 * PART, **{"tokenizer.json": b"{}", "pytorch_model.bin": b"x"})
    planned = plan(bucket_uri, "org/planned")
    assert (planned.model_id, planned.commit_sha, planned.licence) == ("org/planned", sha, "apache-2.0")
    assert [(f.path, f.state) for f in planned.files] == [
        ("config.json", "to be moved"),
        ("model.safetensors", "to be moved"),
        ("tokenizer.json", "to be moved"),
    ]
    assert planned.size_bytes == planned.move_bytes == sum(file.size_bytes for file in planned.files)
    assert planned.transfer.parts == 5
    assert planned.bytes_per_second > 0 and planned.seconds > 0
    assert not planned.pickled and not planned.already_published and planned.refused == ""
    assert planned.scan == "no complaint" and not planned.gated and planned.remote_code == ()
    pulled = hub_room.pull_model(model_id="org/planned", release_root=bucket_uri)
    assert (pulled.uri, pulled.moved_bytes) == (planned.staging_uri, planned.move_bytes)


def test_a_plan_moves_no_weights(hub: Any, cloud: Any, bucket_uri: str) -> None:
    hub.model("org/only-planned", size_bytes=40_000_000)
    plan(bucket_uri, "org/only-planned")
    assert hub.bytes_out() < 9_000_000 and cloud.bytes_in() == 0
    assert storage.list_files(bucket_uri) == ()


def test_a_plan_knows_what_is_there_already(hub: Any, root_uri: str) -> None:
    hub.model("org/partly")
    hub_room.pull_model(model_id="org/partly", release_root=root_uri)
    planned = plan(root_uri, "org/partly")
    assert {file.state for file in planned.files} == {"in staging"}
    assert (planned.move_bytes, planned.transfer.parts) == (0, 0)


def test_a_plan_says_what_policies_would_refuse(hub: Any, bucket_uri: str) -> None:
    hub.model("org/doubtful", **{"config.json": b'{"auto_map": {"AutoModel": "m.M"}}'})
    hub.settle("org/doubtful", unsafe_files=("model.safetensors",))
    planned = plan(bucket_uri, "org/doubtful", allowed_licences=["mit"])
    assert "licence is 'apache-2.0'" in planned.refused
    assert planned.remote_code == ('config.json: {"AutoModel": "m.M"}',)
    assert planned.scan == "complaints about model.safetensors (unsafe)"


def test_a_configuration_that_is_nested_without_end_asks_for_no_code(hub: Any, bucket_uri: str) -> None:
    hub.model("org/deep", **{"config.json": b"[" * 100_000})
    assert plan(bucket_uri, "org/deep").remote_code == ()


def test_a_plan_for_pickles_says_so(hub: Any, bucket_uri: str) -> None:
    hub.push("org/pickled", {"config.json": b"{}", "pytorch_model.bin": b"\x80\x02."})
    planned = plan(bucket_uri, "org/pickled")
    assert planned.pickled and planned.licence == "unknown"


def test_a_plan_is_there_for_programs(hub: Any, bucket_uri: str) -> None:
    hub.model("org/as-json")
    fields = json.loads(plan(bucket_uri, "org/as-json").as_json())
    assert fields["model_id"] == "org/as-json" and fields["files"][0]["path"] == "config.json"


def test_no_plan_without_weights(hub: Any, bucket_uri: str) -> None:
    hub.push("org/empty", {"config.json": b"{}"})
    with pytest.raises(NoWeightsError):
        plan(bucket_uri, "org/empty")
