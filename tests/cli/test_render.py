"""`streamway render` prints what a run would apply, for a reviewer and for plain kubectl."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from kubernetes_validate import validate

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
