"""SGLang behind the same contract: what it is told, which versions may serve, and which options each of them has."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from streamway.errors import SettingsError
from streamway.server import ServerSpec, render
from streamway.server.engine import read_image
from streamway.server.sglang_flags import FLAGS

Spec = Callable[..., ServerSpec]
NEWEST = "lmsysorg/sglang:v0.5.23"


def manifest(kind: str, spec: ServerSpec) -> dict[str, Any]:
    return next(manifest for manifest in render(spec) if manifest["kind"] == kind)


def container(spec: ServerSpec) -> dict[str, Any]:
    return dict(manifest("Deployment", spec)["spec"]["template"]["spec"]["containers"][0])


def extra_config(spec: ServerSpec) -> dict[str, Any]:
    (found,) = [one for one in container(spec)["args"] if one.startswith("--model-loader-extra-config=")]
    return dict(json.loads(found.partition("=")[2]))


def test_the_same_release_is_served_under_its_own_names(spec: Spec) -> None:
    found = container(spec(image=NEWEST, gpu_count=2))

    assert found["command"] == ["python3", "-m", "sglang.launch_server", f"--model-path={spec().release_uri}"]
    assert {"--load-format=runai_streamer", "--tp-size=2", "--port=8000", "--host=0.0.0.0"} <= set(found["args"])
    assert manifest("Deployment", spec(image=NEWEST))["metadata"]["labels"]["app.kubernetes.io/name"] == "sglang"


def test_one_gpu_has_nobody_to_share_the_reading_with(spec: Spec) -> None:
    assert extra_config(spec(image=NEWEST)) == {"distributed": False}
    assert extra_config(spec(image=NEWEST, gpu_count=2)) == {"distributed": True}


def test_its_health_costs_no_token_and_does_not_fail_while_it_is_busy(spec: Spec) -> None:
    found = container(spec(image=NEWEST))

    assert {"name": "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION", "value": "false"} in found["env"]
    assert found["livenessProbe"]["httpGet"]["path"] == "/health"
    assert not [entry for entry in container(spec())["env"] if entry["name"].startswith("SGLANG_")]


def test_an_autoscaler_finds_the_figure_that_it_asks_for(spec: Spec) -> None:
    scaled = spec(image=NEWEST, max_replicas=3)

    (metric,) = manifest("HorizontalPodAutoscaler", scaled)["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == "prometheus.googleapis.com|sglang:num_queue_reqs|gauge"
    assert "--enable-metrics" in container(scaled)["args"]


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("0.5.9", "before 0.5.10 it cannot stream from gs:// at all"),
        ("0.5.10.post1", "before 0.5.11 it streams quantised models into layers that are not"),
        ("0.5.10.post1-cu129", "CVE-2026-5760"),
        ("0.5.11", "SGLang before 0.5.12 cannot read the processor of a multimodal model from gs://"),
    ],
)
def test_versions_that_cannot_serve_every_release_are_refused(spec: Spec, version: str, reason: str) -> None:
    with pytest.raises(SettingsError) as caught:
        spec(image=f"lmsysorg/sglang:v{version}")

    assert reason in caught.value.problem
    assert caught.value.next_step == "Use lmsysorg/sglang:v0.5.12 or newer."


def test_an_image_that_is_not_pinned_is_pointed_to_one_of_the_same_engine(spec: Spec) -> None:
    with pytest.raises(SettingsError) as caught:
        spec(image="lmsysorg/sglang:latest")

    assert "lmsysorg/sglang:v0." in str(caught.value.next_step)


@pytest.mark.parametrize(
    ("reference", "engine"),
    [
        ("lmsysorg/sglang@sha256:" + "a" * 64, "sglang"),
        ("localhost:5000/team/sglang-server:v1.0.0", "sglang"),
        ("vllm/vllm-openai:v0.32.0-sglang", "vllm"),
        ("vllm/vllm-openai@sha256:" + "a" * 64, "vllm"),
    ],
)
def test_the_engine_is_what_the_repository_is_called(reference: str, engine: str) -> None:
    assert read_image(reference).engine == engine


@pytest.mark.parametrize(
    ("version", "option", "told"),
    [
        ("0.5.12", "--grpc-port=9", "Versions 0.5.16 to 0.5.23 do"),
        ("0.5.12.post1", "--grpc-port=9", "Versions 0.5.16 to 0.5.23 do"),
        ("0.5.23", "--cuda-graph-max-bs=8", "Versions 0.5.12 to 0.5.19 do"),
        ("0.5.23", "--mem-fraction-statik=0.8", "Perhaps you meant --mem-fraction-static?"),
        ("0.5.21", "--mem_fraction_static=0.8", "Perhaps you meant --mem-fraction-static?"),
        ("0.5.21", "--no-disable-radix-cache", "Perhaps you meant --disable-radix-cache?"),
        ("0.5.21", "--max-model-len=2048", "It has --context-length for that"),
    ],
)
def test_each_version_has_options_of_its_own(spec: Spec, version: str, option: str, told: str) -> None:
    number = re.escape(version.partition(".post")[0])
    with pytest.raises(SettingsError, match=f"which SGLang {number} does not know") as caught:
        spec(image=f"lmsysorg/sglang:v{version}", engine_arguments=[option])

    assert told in caught.value.problem
    assert "sglang.launch_server --help" in str(caught.value.next_step)


def test_vllm_is_not_told_in_sglangs_words(spec: Spec) -> None:
    with pytest.raises(SettingsError, match="It has --max-model-len for that"):
        spec(engine_arguments=["--context-length=2048"])


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("--tp=2", "use gpu_count"),
        ("--tp-size=2", "use gpu_count"),
        ("--model-path=org/other", "the release is the model"),
        ("--load_format=auto", "weights are streamed"),
        ("--api-key=x", "SGLang takes its key nowhere else"),
        ("--nnodes=2", "over several nodes"),
        ("--pp-size=2", "over several nodes"),
    ],
)
def test_what_follows_from_the_spec_is_not_taken_twice(spec: Spec, option: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        spec(image=NEWEST, engine_arguments=[option])


@pytest.mark.parametrize("option", ["--device=cpu", "--context-length=2048", "--no-lora-strict-loading"])
def test_its_own_options_are_taken_whatever_vllm_thinks_of_them(spec: Spec, option: str) -> None:
    assert option in container(spec(image=NEWEST, engine_arguments=[option]))["args"]


@pytest.mark.parametrize("version", ["0.5.12", "0.5.14", "0.5.19", "0.5.21", "0.5.23"])
def test_every_version_knows_what_it_is_told_by_us(spec: Spec, version: str) -> None:
    found = container(spec(image=f"lmsysorg/sglang:v{version}", gpu_count=2))

    flags = {one.partition("=")[0] for one in [*found["command"], *found["args"]] if one.startswith("--")}
    assert len(flags) == 8
    assert flags <= FLAGS.known(read_image(f"lmsysorg/sglang:v{version}").version)


def test_options_of_other_versions_are_theirs_to_judge(spec: Spec) -> None:
    of_tomorrow = spec(image="lmsysorg/sglang:v0.6.0", engine_arguments=["--an-option-of-tomorrow"])

    assert "--an-option-of-tomorrow" in container(of_tomorrow)["args"]


def test_a_name_that_would_be_read_as_an_adapters_is_refused(spec: Spec) -> None:
    with pytest.raises(SettingsError, match="served_model_name is 'tiny:latest'"):
        spec(image=NEWEST, served_model_name="tiny:latest")
