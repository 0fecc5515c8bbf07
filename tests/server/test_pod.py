"""What a pod gets can be said, follows through to what depends on it, and is refused where it cannot be."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamway.errors import SettingsError
from streamway.sandbox.cluster.api.quantities import parse_quantity
from streamway.server import ServerSpec, derive, read_pod, render
from streamway.server.pod import check_pod

GIB = 1024**3
Spec = Callable[..., ServerSpec]


def specified(spec: Spec, pod: dict[str, Any], **changes: Any) -> ServerSpec:
    found = read_pod(pod)
    return spec(**{"resources": found.resources, "startup_seconds": found.startup_seconds, **changes})


def deployment(server: ServerSpec) -> dict[str, Any]:
    return next(manifest for manifest in render(server) if manifest["kind"] == "Deployment")


def container(server: ServerSpec) -> dict[str, Any]:
    return deployment(server)["spec"]["template"]["spec"]["containers"][0]


def variable(server: ServerSpec, name: str) -> int:
    return next(int(entry["value"]) for entry in container(server)["env"] if entry["name"] == name)


def test_the_engine_asks_for_what_was_written(spec: Spec) -> None:
    server = specified(spec, {"cpu": "7500m", "memory": "20Gi", "ephemeral_storage": "30Gi", "startup_seconds": 900})
    resources = container(server)["resources"]

    assert resources["requests"]["cpu"] == "7500m"
    assert resources["requests"]["memory"] == resources["limits"]["memory"] == "20Gi"
    assert resources["requests"]["ephemeral-storage"] == resources["limits"]["ephemeral-storage"] == "30Gi"
    probe = container(server)["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 900
    assert deployment(server)["spec"]["progressDeadlineSeconds"] > 900


def test_the_streamer_follows_what_the_pod_has(spec: Spec) -> None:
    pods = [
        specified(spec, {"memory": memory, "cpu": cpu}, size_bytes=16 * GIB)
        for memory, cpu in (("6Gi", 1), ("15Gi", 4), ("24Gi", 7))
    ]

    limits = [variable(server, "RUNAI_STREAMER_MEMORY_LIMIT") for server in pods]
    assert limits == [6 * GIB * 4 // 15, 4 * GIB, 24 * GIB * 4 // 15]
    assert [variable(server, "RUNAI_STREAMER_CONCURRENCY") for server in pods] == [4, 8, 14]


def test_shared_memory_leaves_room_in_a_small_pod(spec: Spec) -> None:
    resources = derive(specified(spec, {"memory": "1Gi"}, gpu_count=1)).resources

    assert resources.shm_bytes == GIB // 2


@pytest.mark.parametrize("gpu_count", [1, 2, 4, 8])
@pytest.mark.parametrize("size_bytes", [GIB // 10, 3 * GIB, 15 * GIB])
def test_asking_for_what_is_derived_changes_nothing(spec: Spec, size_bytes: int, gpu_count: int) -> None:
    server = spec(size_bytes=size_bytes, gpu_count=gpu_count)
    derived = derive(server)
    pod = {
        "cpu": derived.resources.cpus,
        "memory": derived.resources.memory_bytes,
        "ephemeral_storage": derived.resources.ephemeral_bytes,
        "startup_seconds": derived.budgets.startup_seconds,
    }

    assert render(specified(spec, pod, size_bytes=size_bytes, gpu_count=gpu_count)) == render(server)


def test_a_pod_that_needs_a_larger_machine_gets_it(spec: Spec) -> None:
    assert derive(specified(spec, {"memory": "40Gi"})).machine_types[0] == "g2-standard-16"
    assert derive(specified(spec, {"cpu": 8})).machine_types[0] == "g2-standard-16"


@given(
    number=st.decimals("0.001", 999, places=3), suffix=st.sampled_from(["", "K", "k", "M", "G", "Ki", "Mi", "Gi", "e9"])
)
@settings(deadline=None, max_examples=60)
def test_quantities_are_read_as_kubernetes_reads_them(number: Any, suffix: str) -> None:
    text = f"{number}{suffix}"
    try:
        read = read_pod({"memory": text}).resources.memory_bytes
    except SettingsError:
        assert suffix == "K" or not GIB // 2 <= parse_quantity(text) <= 64 * 1024 * GIB
    else:
        assert read == int(parse_quantity(text))


@pytest.mark.parametrize(
    ("pod", "words"),
    [
        ({"memory": "64"}, "pod has memory '64', expected 512Mi to 64Ti"),
        ({"memory": 64}, "pod has memory 64, expected 512Mi"),
        ({"memory": "64 GB"}, "pod has memory '64 GB', expected a quantity as Kubernetes writes it, such as 64Gi"),
        ({"memory": "-1Gi"}, "pod has memory '-1Gi', expected a quantity"),
        ({"memory": True}, "pod has memory True, expected a quantity"),
        ({"cpu": "8Gi"}, "pod has cpu '8Gi', expected 0.1 to 1024 cores"),
        ({"cpu": ["8"]}, "pod has cpu ['8'], expected a quantity"),
        ({"ephemeral_storage": "lots"}, "pod has ephemeral_storage 'lots', expected a quantity"),
        ({"startup_seconds": -5}, "pod has startup_seconds -5, expected a whole number of seconds, 1 to 86400"),
        ({"startup_seconds": "900"}, "pod has startup_seconds '900', expected a whole number"),
        ({"startup_seconds": 0.5}, "pod has startup_seconds 0.5, expected a whole number"),
        ({"startup_seconds": float("nan")}, "pod has startup_seconds nan, expected a whole number"),
        ({"gpus": 1}, "pod has 'gpus', expected cpu, memory, ephemeral_storage, startup_seconds"),
        ({"memory": "400Gi"}, "pod has memory 400.0 GiB, expected at most 95.5 cores and 326.4 GiB"),
        ({"cpu": 96}, "pod has cpu 96, expected at most 95.5 cores"),
        ({"startup_seconds": 560}, "pod has startup_seconds 560, expected at most 540 with timeout_seconds 600"),
    ],
)
def test_what_cannot_be_had_is_refused_with_what_can(pod: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        check_pod(pod, accelerator="nvidia-l4", timeout_seconds=600)

    assert words in str(caught.value)
    assert caught.value.next_step


def test_a_startup_fits_as_long_as_it_ends_before_the_rollout_does(spec: Spec) -> None:
    longest = derive(specified(spec, {"startup_seconds": 540.0}, timeout_seconds=600)).budgets
    alone = derive(specified(spec, {"startup_seconds": 86_400})).budgets

    assert longest.startup_seconds == 540 <= longest.progress_seconds < longest.step_seconds == 600
    assert alone.startup_seconds == 86_400 < alone.progress_seconds < alone.step_seconds


def test_a_server_is_held_to_the_same(spec: Spec) -> None:
    with pytest.raises(SettingsError, match="the largest machine with nvidia-l4"):
        specified(spec, {"memory": "400Gi"})
    with pytest.raises(SettingsError, match="the wait for the rollout would end before"):
        specified(spec, {"startup_seconds": 900}, timeout_seconds=600)
