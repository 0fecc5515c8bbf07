"""`streamway render` prints what a run would apply, for a reviewer and for plain kubectl."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from kubernetes_validate import validate

from streamway import hub as hub_room
from streamway import server, storage, weights
from streamway.cli.choices import plan_model, planned_server
from streamway.settings import Settings

STREAMWAY = str(Path(sys.executable).with_name("streamway"))


def test_a_configuration_alone_is_rendered_as_a_run_would_apply_it(hub: Any, bucket_uri: str, tmp_path: Path) -> None:
    commit = hub.model("org/tiny")
    config = tmp_path / "config.yaml"
    config.write_text(
        f"model: {{id: org/tiny}}\nstorage: {{release_root: {bucket_uri}/models}}\nserver: {{name: tiny, spot: true}}\n"
    )

    done = subprocess.run([STREAMWAY, "render", str(config)], capture_output=True, text=True, check=False, timeout=120)

    assert done.returncode == 0, done.stderr
    manifests = {manifest["kind"]: manifest for manifest in yaml.safe_load_all(done.stdout)}
    for manifest in manifests.values():
        validate(manifest, "1.34", strict=True)
    assert {"Namespace", "ServiceAccount", "Service", "PodDisruptionBudget", "Deployment"} == set(manifests)
    (engine,) = manifests["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert f"{bucket_uri}/models/org/tiny/{commit}/" in " ".join(engine["command"] + engine["args"])
    assert manifests["Deployment"]["metadata"]["annotations"]["streamway/release"] == commit


def test_what_was_derived_is_told_beside_the_manifests(hub: Any, bucket_uri: str, tmp_path: Path) -> None:
    long_context = {
        "model_type": "llama",
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 1048576,
    }
    hub.model("org/long", **{"config.json": json.dumps(long_context).encode()})
    config = tmp_path / "config.yaml"
    config.write_text(
        f"model: {{id: org/long}}\nstorage: {{release_root: {bucket_uri}/models}}\nserver: {{name: long}}\n"
    )

    render = [STREAMWAY, "render", str(config), "--json"]
    done = subprocess.run(render, capture_output=True, text=True, check=False, timeout=120)
    own = subprocess.run(
        [*render, "--set", "server.engine_arguments=[--max-model-len=4096]"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    context = found["derived"]["context"]
    assert context["model_tokens"] == 1048576
    assert 0 < context["fitting_tokens"] < 1048576
    assert context["said"] in " ".join(done.stderr.split())
    assert "1 x nvidia-l4, such as g2-standard-8" in done.stderr
    assert "--max-model-len=auto" in json.dumps(found["manifests"])
    assert json.loads(own.stdout)["derived"]["context"]["said"].startswith("the context is --max-model-len=4096")
    assert "--max-model-len=auto" not in own.stdout


def test_what_a_pod_gets_is_shown_and_taken_from_the_configuration(hub: Any, bucket_uri: str, tmp_path: Path) -> None:
    hub.model("org/tiny")
    config = tmp_path / "config.yaml"
    config.write_text(
        f"model: {{id: org/tiny}}\nstorage: {{release_root: {bucket_uri}/models}}\nserver:\n  name: tiny\n"
        "  pod: {cpu: 7500m, memory: 24Gi, ephemeral_storage: 30Gi, startup_seconds: 900}\n"
    )

    done = subprocess.run([STREAMWAY, "render", str(config)], capture_output=True, text=True, check=False, timeout=120)

    assert done.returncode == 0, done.stderr
    (deployment,) = [one for one in yaml.safe_load_all(done.stdout) if one["kind"] == "Deployment"]
    (engine,) = deployment["spec"]["template"]["spec"]["containers"]
    asked = {"memory": "24Gi", "ephemeral-storage": "30Gi", "nvidia.com/gpu": "1"}
    assert engine["resources"] == {"requests": {"cpu": "7500m", **asked}, "limits": asked}
    assert engine["startupProbe"]["failureThreshold"] == 900
    said = " ".join(done.stderr.split())
    assert "each pod: 7.5 CPU, 24.0 GiB of memory, of which the streamer takes at most 256.0 MiB, 30.0 GiB" in said
    assert "15 min 00 s to start" in said


def test_what_must_be_there_first_is_printed_as_a_script(hub: Any, bucket_uri: str, tmp_path: Path) -> None:
    hub.model("org/tiny")
    config = tmp_path / "config.yaml"
    config.write_text(
        f"model: {{id: org/tiny}}\nstorage: {{release_root: {bucket_uri}/models}}\n"
        "server: {name: tiny, cluster: projects/acme/locations/us-central1/clusters/prod}\n"
    )

    prepare = [STREAMWAY, "prepare", str(config)]
    done = subprocess.run([*prepare, "--standard"], capture_output=True, text=True, check=False, timeout=120)
    nowhere = [*prepare, "--set", "server.cluster=context:mine"]
    refused = subprocess.run(nowhere, capture_output=True, text=True, check=False, timeout=120)

    assert done.returncode == 0, done.stderr
    read = subprocess.run(["bash", "-n"], input=done.stdout, capture_output=True, text=True, check=False, timeout=30)
    assert read.returncode == 0, read.stderr
    assert "node-pools create l4-x1 --cluster=prod" in done.stdout
    assert f"gcloud storage buckets add-iam-policy-binding gs://{bucket_uri.split('/')[2]} " in done.stdout
    assert refused.returncode != 0
    assert "expected projects/P/locations/L/clusters/C" in " ".join(refused.stderr.split())


def test_a_revision_has_the_same_name_before_its_model_is_converted_and_after(hub: Any, bucket_uri: str) -> None:
    # A header of an odd length: the file will be written again, aligned, and so with another size.
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    header += b" " * (1 - len(header) % 2)
    hub.model("org/odd", **{"model.safetensors": len(header).to_bytes(8, "little") + header + b"1234"})
    root = f"{bucket_uri}/models"
    settings = Settings.model_validate(
        {"model": {"id": "org/odd"}, "storage": {"release_root": root}, "server": {"name": "odd"}}
    )
    pulled = hub_room.pull_model(model_id="org/odd", release_root=root)
    before = planned_server(settings, plan_model(settings))
    converted = weights.convert_weights(
        snapshot_uri=pulled.uri, weights_uri=pulled.uri.replace("/source", "/weights"), release_root=root
    )

    release = storage.upload_model(weights_uri=converted.uri, release_root=root)

    after = planned_server(settings, plan_model(settings))
    assert before.size_bytes == after.size_bytes == release.size_bytes != pulled.size_bytes
    assert server.render(before) == server.render(after)
