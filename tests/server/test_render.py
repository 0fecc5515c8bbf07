"""Manifests that a reviewer would sign."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import kubernetes_validate
import pytest
import yaml

from streamway.errors import SettingsError
from streamway.server import ServerSpec, derive, render, to_yaml
from streamway.server.engine import read_image
from streamway.server.spec import Resources
from streamway.server.vllm_flags import FLAGS

GIB = 1024**3
Spec = Callable[..., ServerSpec]
# One older and one newer than the client this is written against.
KUBERNETES_VERSIONS = ("1.30", "1.36")


def deployment(spec: ServerSpec) -> dict[str, Any]:
    return next(manifest for manifest in render(spec) if manifest["kind"] == "Deployment")


def pod(spec: ServerSpec) -> dict[str, Any]:
    return deployment(spec)["spec"]["template"]["spec"]


def container(spec: ServerSpec) -> dict[str, Any]:
    return pod(spec)["containers"][0]


def variables(spec: ServerSpec) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container(spec)["env"]}


def complaint(manifest: dict[str, Any], version: str) -> str:
    """What is wrong with a manifest by the schemas of a Kubernetes version; "" for nothing."""
    try:
        kubernetes_validate.validate(manifest, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{manifest['kind']}: {error.message}"
    return ""


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize(
    "changes", [{}, {"zone": "us-central1-a", "spot": True, "replicas": 3, "gpu_count": 2}, {"max_replicas": 4}]
)
def test_manifests_follow_the_schemas(spec: Spec, changes: dict[str, Any], version: str) -> None:
    manifests = render(spec(**changes))

    assert [complaint(manifest, version) for manifest in manifests] == [""] * len(manifests)


def test_the_printed_stream_is_the_same_manifests(spec: Spec) -> None:
    manifests = render(spec())

    assert list(yaml.safe_load_all(to_yaml(manifests))) == manifests


def test_every_object_says_whose_it_is(spec: Spec) -> None:
    for manifest in render(spec()):
        assert manifest["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "streamway"
    labels = deployment(spec())["metadata"]["labels"]
    assert labels["streamway/release"] == spec().commit_sha


def test_rendering_twice_gives_the_same_bytes(spec: Spec) -> None:
    assert to_yaml(render(spec())) == to_yaml(render(spec()))


def test_a_change_of_the_pod_is_another_revision(spec: Spec) -> None:
    names = {
        deployment(spec(**changes))["metadata"]["name"]
        for changes in ({}, {"engine_arguments": ["--dtype=bfloat16"]}, {"commit_sha": "f" * 40}, {"zone": "a-b"})
    }

    assert len(names) == 4


def test_what_is_not_the_pod_is_no_other_revision(spec: Spec) -> None:
    first = deployment(spec())["metadata"]["name"]

    assert deployment(spec(replicas=3))["metadata"]["name"] == first
    assert deployment(spec(timeout_seconds=60))["metadata"]["name"] == first


def test_the_service_selects_one_revision(spec: Spec) -> None:
    service = render(spec())[-1]
    labels = deployment(spec())["spec"]["template"]["metadata"]["labels"]

    assert service["kind"] == "Service"
    assert service["spec"]["selector"].items() <= labels.items()
    assert "streamway/revision" in service["spec"]["selector"]


def test_the_engine_streams_the_release(spec: Spec) -> None:
    found = container(spec())

    assert found["command"] == ["vllm", "serve", spec().release_uri]
    assert "--load-format=runai_streamer" in found["args"]
    assert "--served-model-name=org/tiny" in found["args"]
    assert "--host=0.0.0.0" in found["args"]
    assert "--disable-log-requests" not in found["args"]
    assert not [argument for argument in found["args"] if "distributed" in argument or "parallel" in argument]


def test_several_gpus_stream_together(spec: Spec) -> None:
    found = container(spec(gpu_count=4))

    assert "--tensor-parallel-size=4" in found["args"]
    assert '--model-loader-extra-config={"distributed": true}' in found["args"]
    assert found["resources"]["limits"]["nvidia.com/gpu"] == "4"


def test_the_streamer_stays_within_the_pod(spec: Spec) -> None:
    for size in (GIB // 10, 16 * GIB, 400 * GIB):
        server = spec(size_bytes=size, accelerator="nvidia-h100-80gb")
        limit = int(variables(server)["RUNAI_STREAMER_MEMORY_LIMIT"])
        derived = derive(server)
        assert limit + derived.resources.shm_bytes < derived.resources.memory_bytes
    assert variables(spec())["RUNAI_STREAMER_LOG_TO_STDERR"] == "1"
    assert int(variables(spec())["RUNAI_STREAMER_CONCURRENCY"]) > 1


def test_the_callers_environment_has_the_last_word(spec: Spec) -> None:
    found = variables(spec(environment={"RUNAI_STREAMER_CONCURRENCY": "32", "VLLM_CPU_KVCACHE_SPACE": "1"}))

    assert found["RUNAI_STREAMER_CONCURRENCY"] == "32"
    assert found["VLLM_CPU_KVCACHE_SPACE"] == "1"


def test_the_pod_has_all_that_autopilot_would_not_give_it(spec: Spec) -> None:
    requests = container(spec())["resources"]["requests"]

    assert set(requests) == {"cpu", "memory", "ephemeral-storage", "nvidia.com/gpu"}
    assert container(spec(resources=Resources(cpus=0.5, memory_bytes=GIB)))["resources"]["requests"]["cpu"] == "500m"


def test_shared_memory_is_limited(spec: Spec) -> None:
    (volume,) = [volume for volume in pod(spec())["volumes"] if volume["name"] == "shm"]

    assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": "2Gi"}


def test_the_pod_gets_no_more_rights_than_it_needs(spec: Spec) -> None:
    found = pod(spec())

    assert found["automountServiceAccountToken"] is False
    assert found["enableServiceLinks"] is False
    assert found["securityContext"]["runAsNonRoot"] is True
    assert container(spec())["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }


def test_an_image_without_a_user_of_its_own_runs_as_it_must(spec: Spec) -> None:
    assert "runAsNonRoot" not in pod(spec(image="vllm/vllm-openai:v0.14.1"))["securityContext"]
    assert "runAsNonRoot" not in pod(spec(image="example.com/engine:1"))["securityContext"]


def test_a_pod_that_is_told_to_stop_answers_on_for_a_while(spec: Spec) -> None:
    found = container(spec(drain_seconds=25))

    assert found["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "25"]
    assert pod(spec(drain_seconds=25))["terminationGracePeriodSeconds"] > 25


def test_limits_of_time_nest_and_grow_with_the_model(spec: Spec) -> None:
    waits = []
    for size in (GIB, 20 * GIB, 140 * GIB, 500 * GIB):
        server = spec(size_bytes=size, accelerator="nvidia-h100-80gb")
        probe = container(server)["startupProbe"]
        startup = probe["periodSeconds"] * probe["failureThreshold"]
        progress = deployment(server)["spec"]["progressDeadlineSeconds"]
        assert startup < progress < derive(server).budgets.step_seconds
        waits.append(startup)
    assert waits == sorted(set(waits))


def test_health_is_asked_at_the_start_before_traffic_and_for_life(spec: Spec) -> None:
    found = container(spec())
    probes = {name: found[f"{name}Probe"] for name in ("startup", "readiness", "liveness")}

    assert all(probe["httpGet"] == {"path": "/health", "port": "api"} for probe in probes.values())
    assert found["ports"] == [{"name": "api", "containerPort": 8000, "protocol": "TCP"}]
    # A busy engine leaves the Service first, and is restarted only when it has been silent for longer.
    silent = {name: probe["periodSeconds"] * probe["failureThreshold"] for name, probe in probes.items()}
    assert silent["readiness"] <= 30 < silent["liveness"]


def test_a_zone_pins_the_pod(spec: Spec) -> None:
    assert pod(spec(zone="us-central1-a"))["nodeSelector"]["topology.kubernetes.io/zone"] == "us-central1-a"
    assert "topology.kubernetes.io/zone" not in pod(spec())["nodeSelector"]


def test_spot_nodes_are_tolerated_only_when_asked_for(spec: Spec) -> None:
    assert pod(spec(spot=True))["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert "cloud.google.com/gke-spot" not in pod(spec())["nodeSelector"]


@pytest.mark.parametrize(
    ("accelerator", "gibibytes", "count"),
    [
        ("nvidia-l4", 0.25, 1),
        ("nvidia-l4", 17.2, 1),
        ("nvidia-l4", 30, 2),
        ("nvidia-l4", 65, 4),
        ("nvidia-tesla-a100", 60, 2),
        ("nvidia-h100-80gb", 65, 1),
        ("nvidia-h100-80gb", 131, 2),
        ("nvidia-h200-141gb", 65, 8),
        ("nvidia-b200", 640, 8),
    ],
)
def test_gpus_follow_from_the_models_size(spec: Spec, accelerator: str, gibibytes: float, count: int) -> None:
    assert derive(spec(accelerator=accelerator, size_bytes=int(gibibytes * GIB))).gpu_count == count


def test_part_of_a_large_node_can_be_asked_for(spec: Spec) -> None:
    assert derive(spec(accelerator="nvidia-h200-141gb", gpu_count=2)).machine_types == ("a3-ultragpu-8g",)


def test_machine_types_hold_the_pod(spec: Spec) -> None:
    assert derive(spec()).machine_types[0] == "g2-standard-8"
    assert derive(spec(gpu_count=8)).machine_types == ("g2-standard-96",)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size_bytes": 400 * GIB}, "more than one node with nvidia-l4 can hold: 8 x 22.5 GiB"),
        ({"gpu_count": 1, "size_bytes": 30 * GIB}, "gpu_count is 1, but 30.0 GiB of weights need at least 2"),
        ({"gpu_count": 3}, "gpu_count is 3, expected 1, 2, 4, 8"),
        ({"gpu_count": 16}, "gpu_count is 16, expected 1, 2, 4, 8"),
        ({"accelerator": "nvidia-l5"}, "accelerator is 'nvidia-l5', expected one of"),
        ({"name": "vllm"}, "VLLM_PORT"),
        ({"name": "Tiny"}, "name is 'Tiny'"),
        ({"name": "a" * 41}, "at most 40"),
        ({"namespace": "no_underscores"}, "namespace is 'no_underscores'"),
        ({"release_uri": "/tmp/model"}, "expected gs://BUCKET/PREFIX/"),
        ({"size_bytes": 0}, "size_bytes is 0"),
        ({"commit_sha": "main"}, "commit_sha is 'main', expected lower-case hex"),
        ({"replicas": 0}, "replicas is 0"),
        ({"replicas": 2, "max_replicas": 2}, "max_replicas is 2, expected more than the 2 of replicas"),
        ({"image": ""}, "no image's name"),
        ({"image": "Example.com//Engine:1"}, "no image's name"),
        ({"image": "vllm/vllm-openai:latest"}, "another engine tomorrow"),
        ({"image": "vllm/vllm-openai"}, "another engine tomorrow"),
        ({"image": "vllm/vllm-openai:v0.14.0"}, "CVE-2026-22807"),
        ({"image": "vllm/vllm-openai:v0.11.0"}, "cannot stream from gs://"),
        ({"engine_arguments": ["--disable-log-requests"]}, "was removed from vLLM"),
        ({"engine_arguments": ["--port=9000"]}, "is not yours to set"),
        ({"engine_arguments": ["--served_model_name", "x"]}, "use served_model_name"),
        ({"engine_arguments": ["--pipeline-parallel-size=2"]}, "over several nodes"),
        ({"environment": {"HF_TOKEN": "hf_x"}}, "looks like a secret"),
        ({"environment": {"DEBUG": 1}}, "expected a name and a text"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_reason(spec: Spec, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        render(spec(**changes))

    assert words in str(caught.value)
    assert caught.value.next_step


def test_emulators_names_are_no_secrets(spec: Spec) -> None:
    environment = {"RUNAI_STREAMER_GCS_USE_ANONYMOUS_CREDENTIALS": "true", "STORAGE_EMULATOR_HOST": "http://x"}

    assert variables(spec(environment=environment)).items() >= environment.items()


@pytest.mark.parametrize("image", ["engine:1", "localhost:5000/a/b-c:v1.2", "us-docker.pkg.dev/p/r/vllm_x:V1"])
def test_images_of_any_registry_are_taken(spec: Spec, image: str) -> None:
    assert container(spec(image=image))["image"] == image


def test_an_image_pinned_by_digest_is_taken(spec: Spec) -> None:
    assert container(spec(image="vllm/vllm-openai@sha256:" + "a" * 64))["image"].endswith("a" * 64)


def test_rendering_needs_neither_cluster_nor_cloud() -> None:
    code = "import sys; import streamway.server.manifests; print(json.dumps(sorted(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", f"import json; {code}"], capture_output=True, check=True, text=True
    ).stdout
    assert not {name for name in json.loads(found) if name.startswith(("kfp", "pydantic", "google.cloud.storage"))}


def test_a_misspelt_option_is_found_before_a_node_is(spec: Spec) -> None:
    with pytest.raises(SettingsError) as caught:
        spec(engine_arguments=["--max-modell-len=2048"])

    assert "Perhaps you meant --max-model-len?" in caught.value.problem


@pytest.mark.parametrize(
    ("version", "option", "told"),
    [
        ("0.14.1", "--watermark", "Versions 0."),
        ("0.26.0", "--swap-space=4", "Versions 0.14.1 to 0.17.1 do"),
        ("0.26.0", "--no-async-schedulin", "Perhaps you meant --async-scheduling"),
        ("0.20.2", "--enforce-eagr", "Perhaps you meant --enforce-eager"),
    ],
)
def test_each_version_has_options_of_its_own(spec: Spec, version: str, option: str, told: str) -> None:
    with pytest.raises(SettingsError, match=f"which vLLM {re.escape(version)} does not know") as caught:
        spec(image=f"vllm/vllm-openai:v{version}", engine_arguments=[option])

    assert told in caught.value.problem


@pytest.mark.parametrize("version", ["0.14.1", "0.16.0", "0.20.2", "0.26.0", "0.32.0"])
def test_every_version_knows_what_it_is_told_by_us(spec: Spec, version: str) -> None:
    args = container(spec(image=f"vllm/vllm-openai:v{version}", gpu_count=2))["args"]

    flags = {argument.partition("=")[0] for argument in args if argument.startswith("--")}
    assert flags and flags <= FLAGS.known(read_image(f"vllm/vllm-openai:v{version}").version)


@pytest.mark.parametrize(
    ("version", "known"), [("0.14.1", True), ("0.15.1", True), ("0.16.0", True), ("0.17.0", False)]
)
def test_an_option_that_is_gone_is_refused_only_where_it_is_gone(spec: Spec, version: str, known: bool) -> None:
    def render_it() -> dict[str, Any]:
        asked = spec(image=f"vllm/vllm-openai:v{version}", engine_arguments=["--disable-log-requests"])
        return container(asked)

    if known:
        assert "--disable-log-requests" in render_it()["args"]
        return
    with pytest.raises(SettingsError, match="was removed from vLLM"):
        render_it()


def test_options_of_other_versions_are_theirs_to_judge(spec: Spec) -> None:
    of_tomorrow = spec(image="vllm/vllm-openai:v0.40.0", engine_arguments=["--an-option-of-tomorrow"])

    assert "--an-option-of-tomorrow" in container(of_tomorrow)["args"]


@pytest.mark.parametrize(
    "option",
    ["--enforce-eager", "--no-enable-prefix-caching", "--compilation-config.mode=3", "-O3", "--max_model_len=9"],
)
def test_options_in_all_their_forms_are_known(spec: Spec, option: str) -> None:
    assert option in container(spec(engine_arguments=[option]))["args"]


def test_an_autoscaler_owns_the_number_of_pods(spec: Spec) -> None:
    manifests = render(spec(replicas=2, max_replicas=5))
    (autoscaler,) = [manifest for manifest in manifests if manifest["kind"] == "HorizontalPodAutoscaler"]

    assert "replicas" not in deployment(spec(replicas=2, max_replicas=5))["spec"]
    assert (autoscaler["spec"]["minReplicas"], autoscaler["spec"]["maxReplicas"]) == (2, 5)
    assert autoscaler["spec"]["scaleTargetRef"]["name"] == deployment(spec())["metadata"]["name"]
    assert not [manifest for manifest in render(spec()) if manifest["kind"] == "HorizontalPodAutoscaler"]


def test_compute_classes_and_taints_of_ones_own(spec: Spec) -> None:
    taint = {"key": "team", "operator": "Equal", "value": "ml", "effect": "NoSchedule"}
    found = pod(spec(node_selector={"cloud.google.com/compute-class": "gpus"}, tolerations=[taint]))

    assert found["nodeSelector"]["cloud.google.com/compute-class"] == "gpus"
    assert found["nodeSelector"]["cloud.google.com/gke-accelerator"] == "nvidia-l4"
    assert taint in found["tolerations"]
