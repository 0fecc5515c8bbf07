"""What of a warm start is in the manifests, and what is deliberately not."""

from collections.abc import Callable
from typing import Any

import kubernetes_validate
import pytest

from streamway.server import ServerSpec, derive, render
from streamway.server.kit import Kit, kit_key
from streamway.server.kit_offer import offer_manifest
from streamway.server.spec import Resources

SHA = "0123456789abcdef0123456789abcdef01234567"
KIT = Kit(uri="gs://models/org/tiny/x.kits/abcdef012345-0000.tar", sha256="0" * 64, size_bytes=5)


@pytest.fixture
def spec() -> Callable[..., ServerSpec]:
    settings: dict[str, Any] = {
        "release_uri": f"gs://models/prefix/org/tiny/{SHA}/",
        "model_id": "org/tiny",
        "commit_sha": SHA,
        "size_bytes": 16 * 1024**3,
        "name": "tiny",
        "namespace": "models",
        "image": "vllm/vllm-openai:v0.32.0",
    }
    return lambda **changes: ServerSpec(**{**settings, **changes})


def deployment(spec: ServerSpec) -> dict[str, Any]:
    return next(manifest for manifest in render(spec) if manifest["kind"] == "Deployment")


def pod(spec: ServerSpec) -> dict[str, Any]:
    return dict(deployment(spec)["spec"]["template"]["spec"])


def variables(container: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry.get("value", "") for entry in container["env"]}


def key(spec: ServerSpec) -> str:
    return kit_key(spec, derive(spec))


def test_the_cache_is_a_volume_of_the_pods_own_with_a_limit(spec: Callable[..., ServerSpec]) -> None:
    rendered = pod(spec(resources=Resources(ephemeral_bytes=8 * 1024**3)))

    (volume,) = (volume for volume in rendered["volumes"] if volume["name"] == "engine-cache")
    assert volume["emptyDir"] == {"sizeLimit": "4096Mi"}
    (container,) = rendered["containers"]
    (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == "engine-cache")
    assert variables(container)["VLLM_CACHE_ROOT"].startswith(mount["mountPath"] + "/")


def test_the_release_is_checked_before_a_kit_is_fetched(spec: Callable[..., ServerSpec]) -> None:
    assert [one["name"] for one in pod(spec())["initContainers"]] == ["check-release", "restore-kit"]


def test_the_template_names_where_a_kit_would_be_told_and_no_kit(spec: Callable[..., ServerSpec]) -> None:
    restoring = pod(spec())["initContainers"][-1]
    references = [entry["valueFrom"]["configMapKeyRef"] for entry in restoring["env"] if "valueFrom" in entry]
    revision = deployment(spec())["metadata"]["labels"]["streamway/revision"]
    offer = offer_manifest(KIT, namespace="models", endpoint="tiny", revision=revision)

    assert {reference["name"] for reference in references} == {offer["metadata"]["name"]}
    assert {reference["key"] for reference in references} == set(offer["data"])
    assert all(reference["optional"] for reference in references)


@pytest.mark.parametrize("version", ["1.30", "1.36"])
def test_an_offer_follows_the_schema(spec: Callable[..., ServerSpec], version: str) -> None:
    found = {**deployment(spec()), "metadata": {**deployment(spec())["metadata"], "uid": "u"}}
    offer = offer_manifest(KIT, namespace="models", endpoint="tiny", revision="a-b", deployment=found)

    kubernetes_validate.validate(offer, version, strict=True)
    (owner,) = offer["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("Deployment", "u")


@pytest.mark.parametrize(
    "change",
    [
        {"accelerator": "nvidia-h100-80gb"},
        {"gpu_count": 2},
        {"image": "vllm/vllm-openai:v0.31.0"},
        {"engine_arguments": ["--max-model-len=4096"]},
        {"environment": {"VLLM_USE_V2": "1"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_the_cache_depends_on_is_another_key(spec: Callable[..., ServerSpec], change: dict[str, Any]) -> None:
    assert key(spec(**change)) != key(spec())


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"namespace": "production"},
        {"replicas": 3},
        {"served_model_name": "best"},
        {"zone": "us-central1-a"},
        {"spot": True},
        {"drain_seconds": 60},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_the_cache_does_not_depend_on_is_the_same_key(
    spec: Callable[..., ServerSpec], change: dict[str, Any]
) -> None:
    assert key(spec(**change)) == key(spec())


@pytest.mark.parametrize(
    "change",
    [
        {"warm_start": False},
        {"environment": {"VLLM_CACHE_ROOT": "/mine"}},
        {"image": "lmsysorg/sglang:v0.5.12"},
    ],
    ids=["switched off", "a place of one's own", "another engine"],
)
def test_a_server_without_warm_starts_has_nothing_of_them(
    spec: Callable[..., ServerSpec], change: dict[str, Any]
) -> None:
    rendered = deployment(spec(**change))

    assert "engine-cache" not in str(rendered)
    assert "restore-kit" not in str(rendered)
    assert "streamway/kit-key" not in rendered["metadata"]["annotations"]


def test_what_the_engine_is_made_of_caches_beside_it_and_so_in_the_kit(spec: Callable[..., ServerSpec]) -> None:
    found = variables(pod(spec())["containers"][0])

    for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "FLASHINFER_WORKSPACE_BASE"):
        assert found[name].startswith(found["VLLM_CACHE_ROOT"] + "/"), name


def test_older_engines_are_not_asked_for_a_startup_plan(spec: Callable[..., ServerSpec]) -> None:
    def plan(image: str) -> str | None:
        return variables(pod(spec(image=image))["containers"][0]).get("VLLM_ENABLE_STARTUP_PLAN")

    assert plan("vllm/vllm-openai:v0.32.0") == "1"
    assert plan("vllm/vllm-openai:v0.26.0") == "1"
    assert plan("vllm/vllm-openai:v0.25.1") is None
