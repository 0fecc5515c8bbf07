"""`streamway check` looks at everything a run needs, and asks for each thing once."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

STREAMWAY = str(Path(sys.executable).with_name("streamway"))
Check = Callable[[str], dict[str, dict[str, Any]]]


@pytest.fixture
def check(bucket_uri: str, tmp_path: Path) -> Check:
    """What is said of each thing that a model needs; there is no cluster."""

    def run(model_id: str) -> dict[str, dict[str, Any]]:
        config = tmp_path / "config.yaml"
        config.write_text(
            f"model: {{id: {model_id}}}\nstorage: {{release_root: {bucket_uri}/models}}\nserver: {{name: tiny}}\n"
        )
        done = subprocess.run(
            [STREAMWAY, "check", str(config), "--json"],
            env=os.environ | {"KUBECONFIG": str(tmp_path / "none")},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.stdout, done.stderr
        return {row["name"]: row for row in json.loads(done.stdout)}

    return run


def test_the_hub_is_asked_once_what_the_revision_means(hub: Any, check: Check) -> None:
    commit = hub.model("org/tiny")
    hub.begin_anew()

    rows = check("org/tiny")

    assert rows["model"]["ok"] and commit[:12] in rows["model"]["found"]
    assert rows["server"]["ok"] and f"Deployment tiny-{commit[:7]}-" in rows["server"]["found"]
    assert hub.count("GET", "/api/models/org/tiny/revision/main") == 1


def test_a_model_that_is_not_there_is_asked_for_once_and_told_wherever_it_is_needed(hub: Any, check: Check) -> None:
    hub.begin_anew()

    rows = check("org/absent")

    assert not rows["model"]["ok"] and not rows["server"]["ok"]
    assert rows["model"]["found"] == rows["server"]["found"]
    assert hub.count("GET", "/api/models/org/absent/revision/main") == 1
