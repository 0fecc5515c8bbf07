"""`streamway check` says what is known of cluster, bucket and zone before anything is moved."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
RUN = [sys.executable, "-c", "from streamway.cli import main; main()"]


@pytest.fixture
def check(house: Any, parts: Any, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """What is said about the cluster."""

    def run(bucket: str, **server: Any) -> dict[str, Any]:
        settings = {
            "model": {"id": "org/tiny"},
            "storage": {"release_root": f"gs://{bucket}/models"},
            "server": {"name": "tiny", "namespace": house.namespace, **server},
        }
        config = tmp_path / "config.json"
        config.write_text(json.dumps(settings))
        done = subprocess.run(
            [*RUN, "check", str(config), "--json"],
            # Of the Hub nothing is asked here.
            env=os.environ | parts.environment | {"HF_ENDPOINT": "http://127.0.0.1:9"},
            capture_output=True,
            text=True,
            check=False,
            timeout=150,
        )
        rows = {row["name"]: row for row in json.loads(done.stdout)}
        return dict(rows["cluster"])

    return run


def test_pods_that_would_read_from_another_region_are_told(check: Callable[..., dict[str, Any]], parts: Any) -> None:
    near, far = check("kits"), check("far-away")

    assert near["ok"] and "another region" not in near["found"]
    assert far["ok"]
    assert (
        "pods in us-central1-a would read gs://far-away, which is in EUROPE-WEST4, from another region" in far["found"]
    )


def test_a_zone_where_the_cluster_can_have_no_node_is_refused(check: Callable[..., dict[str, Any]]) -> None:
    found = check("kits", zone="europe-west4-a")

    assert not found["ok"]
    assert "zone is 'europe-west4-a', where the cluster of the kubeconfig can have no node" in found["found"]
    assert "it can have them in us-central1-a" in found["found"]
