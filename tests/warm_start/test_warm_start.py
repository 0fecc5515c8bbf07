"""Kits on a real bucket and a cluster that runs pods: kept, offered, restored, and refused where they are wrong."""

import hashlib
import io
import json
import logging
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from streamway import server, storage, warm_start
from streamway.cli.endpoint import status
from streamway.server.kit import Kit
from streamway.server.kit_offer import offer_kit
from streamway.storage.kits import read_kits

ROLE = Path(__file__).parents[2] / "docs" / "warm-start-role.yaml"
WRITTEN = {
    "modelinfos/llama.json": hashlib.sha256(b"{}").hexdigest(),
    "torch_compile_cache/ab12/rank_0_0/graph.py": hashlib.sha256(b"def run():\n    return 42\n").hexdigest(),
}


def kit_files(data: bytes) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as kit:
        found = {}
        for member in kit:
            source = kit.extractfile(member)
            assert source is not None
            found[member.name] = hashlib.sha256(source.read()).hexdigest()
        return found


def test_what_an_engine_that_passed_had_in_its_cache_lies_beside_its_release(house: Any) -> None:
    house.serve()

    ((key, kit),) = read_kits(house.release_uri).items()
    data = storage.read_file(kit.uri)
    assert kit.uri.startswith(f"{house.release_uri.rstrip('/')}.kits/{key}-")
    assert (kit.sha256, kit.size_bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    assert kit_files(data) == WRITTEN
    assert kit.first_start.engine_seconds == 30.0
    assert [file.path for file in storage.list_files(house.release_uri)] == ["model.safetensors"]
    assert storage.verify_release(house.release_uri)


def test_a_first_start_has_no_kit_and_says_so(house: Any) -> None:
    house.deploy()

    (pod,) = house.pods()
    assert house.found_in_cache(pod["metadata"]["name"]) == {}
    assert "no warm-start kit" in house.said_about_kit(pod)


def test_a_pod_that_comes_later_finds_the_cache_in_place_before_its_engine_starts(house: Any) -> None:
    house.serve()

    pod = house.replace_pod()

    assert house.found_in_cache(pod["metadata"]["name"]) == WRITTEN
    assert house.said_about_kit(pod).startswith("Restored warm-start kit")


def test_a_new_server_of_the_same_release_starts_warm_and_the_index_tells_what_it_saved(house: Any) -> None:
    house.serve()
    server.retire_server(name="tiny", namespace=house.namespace)
    assert not any(name.startswith("configmaps/tiny") for name in house.versions())

    house.serve()

    (pod,) = house.pods()
    assert house.found_in_cache(pod["metadata"]["name"]) == WRITTEN
    (status,) = warm_start.read_kit_status([house.release_uri])
    assert [start.pod for start in status.later] == [pod["metadata"]["name"]]
    assert status.saved_seconds == 25.0
    assert "5.0 s of engine initialisation instead of 30.0 s" in status.line()
    assert "saved 25.0 s" in status.line()


@pytest.mark.parametrize("replaced", [False, True])
def test_running_again_changes_nothing_in_the_cluster_and_nothing_in_the_bucket(house: Any, replaced: bool) -> None:
    """Neither after the first start, nor after one that has used the kit and was noted in the index."""
    house.serve()
    if replaced:
        house.replace_pod()
        house.serve()
    folder = house.release_uri.rstrip("/").rpartition("/")[0]
    before = house.versions(), storage.list_files(folder)
    assert {name.partition("/")[0] for name in before[0]} >= {"deployments", "services", "configmaps", "pods"}

    again = house.serve()

    assert not again.changed
    assert (house.versions(), storage.list_files(folder)) == before


def test_a_kit_that_was_swapped_in_the_bucket_is_refused_and_the_pod_starts(house: Any) -> None:
    house.serve()
    (kit,) = read_kits(house.release_uri).values()
    swapped = storage.read_file(kit.uri).replace(b"return 42", b"return 66")
    storage.write_file(kit.uri, swapped)

    pod = house.replace_pod()

    assert house.found_in_cache(pod["metadata"]["name"]) == {}
    assert "is refused: its SHA-256 is" in house.said_about_kit(pod)
    assert kit.sha256 in house.said_about_kit(pod)


def test_a_kit_that_was_swapped_is_captured_anew_by_the_next_run(house: Any) -> None:
    house.serve()
    (kit,) = read_kits(house.release_uri).values()
    storage.write_file(kit.uri, b"something else")

    house.serve()

    (now,) = read_kits(house.release_uri).values()
    assert kit_files(storage.read_file(now.uri)) == WRITTEN
    assert house.said_about_kit(house.replace_pod()).startswith("Restored")


def test_a_kit_that_is_gone_costs_only_time(house: Any) -> None:
    house.serve()
    storage.delete_files([kit.uri for kit in read_kits(house.release_uri).values()])

    pod = house.replace_pod()

    assert "cannot be used: HTTP Error 404" in house.said_about_kit(pod)
    assert house.found_in_cache(pod["metadata"]["name"]) == {}


def test_other_arguments_are_another_kit(house: Any) -> None:
    house.serve()

    house.serve(engine_arguments=["--enforce-eager"], strategy="surge")

    kits = read_kits(house.release_uri)
    assert [kit.made_for["arguments"][-1] for kit in kits.values()].count("--enforce-eager") == 1
    assert len(kits) == 2
    assert all(kit.later_starts == () for kit in kits.values())


def test_a_cache_that_is_too_large_is_no_kit_and_the_log_says_so(house: Any, caplog: pytest.LogCaptureFixture) -> None:
    deployed = house.serve(WARM_FILES='{"big": "' + "x" * 100_000 + '"}', warm_start=True)
    storage.delete_files([f"{house.release_uri.rstrip('/')}.kits.json"])

    with caplog.at_level(logging.WARNING):
        kept = warm_start.keep_kit(
            name="tiny", namespace=house.namespace, revision=deployed.revision, max_bytes=64 * 1024
        )

    assert kept is None
    assert "larger than 0 MiB, the most that a kit may have" in caplog.text
    assert read_kits(house.release_uri) == {}


def test_an_engine_that_keeps_nothing_gives_no_kit_and_the_log_says_so(
    house: Any, caplog: pytest.LogCaptureFixture
) -> None:
    house.serve(WARM_FILES="{}")

    assert "has left nothing in its cache" in caplog.text
    assert read_kits(house.release_uri) == {}


def test_a_cache_with_a_link_in_it_is_no_kit_and_the_run_passes(house: Any, caplog: pytest.LogCaptureFixture) -> None:
    house.serve(WARM_LINK="1")

    assert "'./link', which is a symbolic link" in caplog.text
    assert read_kits(house.release_uri) == {}


def test_a_revision_that_does_not_serve_gives_no_kit(house: Any, caplog: pytest.LogCaptureFixture) -> None:
    held = house.deploy()

    assert warm_start.keep_kit(name="tiny", namespace=house.namespace, revision=held.revision) is None
    assert "only what serves gives a kit" in caplog.text


def test_a_pod_that_only_has_our_labels_gives_no_kit(house: Any, until_ready: Callable[[int], None]) -> None:
    deployed = house.deploy()
    (pod,) = house.pods()
    labels = {name: value for name, value in pod["metadata"]["labels"].items() if name != "pod-template-hash"}
    stranger = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "a-stranger", "labels": labels},
        "spec": {
            "tolerations": pod["spec"]["tolerations"],
            "containers": [
                {
                    "name": "engine",
                    "image": pod["spec"]["containers"][0]["image"],
                    "command": ["sleep", "600"],
                    "env": [{"name": "VLLM_CACHE_ROOT", "value": "/tmp"}],
                }
            ],
        },
    }
    house.prove(deployed)
    storage.delete_files([f"{house.release_uri.rstrip('/')}.kits.json"])
    house.connection.request("POST", f"/api/v1/namespaces/{house.namespace}/pods", body=stranger)
    until_ready(2)
    assert house.pods()[0]["metadata"]["name"] == "a-stranger"

    kit = warm_start.keep_kit(name="tiny", namespace=house.namespace, revision=deployed.revision)

    assert kit is not None
    assert kit.first_start.pod == pod["metadata"]["name"]


def test_switched_off_nothing_of_it_is_in_the_pod(house: Any) -> None:
    house.serve(warm_start=False)

    (pod,) = house.pods()
    assert [container["name"] for container in pod["spec"]["initContainers"]] == ["check-release"]
    assert [volume["name"] for volume in pod["spec"]["volumes"]] == ["shm"]
    assert read_kits(house.release_uri) == {}


def needed_rules(*, exec_too: bool) -> list[dict[str, Any]]:
    rules = yaml.safe_load(ROLE.read_text())["rules"]
    basic = [
        {"apiGroups": [""], "resources": ["services", "pods"], "verbs": ["get", "list"]},
        {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
        {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get", "list"]},
    ]
    return basic + [rule for rule in rules if exec_too or rule["resources"] != ["pods/exec"]]


@pytest.mark.parametrize("exec_too", [True, False])
def test_the_documented_role_is_enough_and_each_of_it_is_needed(
    house: Any, as_account: Callable[..., None], caplog: pytest.LogCaptureFixture, exec_too: bool
) -> None:
    deployed = house.serve()
    storage.delete_files([f"{house.release_uri.rstrip('/')}.kits.json"])
    as_account(needed_rules(exec_too=exec_too))

    kit = warm_start.keep_kit(name="tiny", namespace=house.namespace, revision=deployed.revision)

    assert (kit is not None) == exec_too
    assert ('cannot get resource "pods/exec"' in caplog.text) != exec_too
    assert "offered" not in caplog.text


def test_an_offer_that_an_interrupted_run_left_is_removed_by_the_next(house: Any) -> None:
    kit = Kit(uri="gs://kits/none.tar", sha256="0" * 64, size_bytes=1)
    offer_kit(house.connection, kit, namespace=house.namespace, endpoint="tiny", revision="0000000-00000")

    deployed = house.serve()

    offers = [name for name in house.versions() if name.startswith("configmaps/tiny")]
    assert offers == [f"configmaps/tiny-{deployed.revision}-kit"]


def test_status_tells_of_kits_on_the_command_line(house: Any) -> None:
    house.serve()

    told = CliRunner().invoke(status, ["tiny", "--namespace", house.namespace, "--json"])

    (kit,) = json.loads(told.stdout)["kits"]
    assert (kit["first"]["engine_seconds"], kit["saved_seconds"]) == (30.0, None)
    shown = CliRunner().invoke(status, ["tiny", "--namespace", house.namespace])
    assert "made by a start of 30.0 s of engine initialisation; no start has used it yet" in shown.stdout
