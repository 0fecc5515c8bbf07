"""These tests run on whatever cluster a kubeconfig names, and what would spoil one that is not ours is skipped."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from streamway.cluster import connect

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
RUN = [
    "test_deploy.py::test_a_release_is_served_behind_the_endpoints_service",
    "test_failures.py::test_an_engine_that_dies_at_start_shows_its_last_lines",
    "test_strategies.py::test_recreate_returns_to_the_old_revision_when_the_new_one_fails",
    # These need two GPUs, which that cluster has.
    "test_strategies.py::test_surge_gives_the_old_gpus_back",
    "test_strategies.py::test_blue_green_keeps_the_old_one_running_for_a_set_time",
]
SPOIL = [
    "test_failures.py::test_an_eviction_is_told",
    "test_failures.py::test_an_admission_webhook_that_refuses_is_quoted",
]


@pytest.fixture
def kubeconfig(another_cluster: Any, tmp_path: Path) -> Path:
    """A plain file with an address, an authority and a token, and nothing else."""
    known = yaml.safe_load(Path(another_cluster.kubeconfig).read_text())
    plain = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "theirs",
        "clusters": [{"name": "theirs", "cluster": known["clusters"][0]["cluster"]}],
        "users": [{"name": "theirs", "user": {"token": known["users"][0]["user"]["token"]}}],
        "contexts": [{"name": "theirs", "context": {"cluster": "theirs", "user": "theirs"}}],
    }
    path = tmp_path / "theirs.yaml"
    path.write_text(json.dumps(plain))
    return path


def run(kubeconfig: Path, image: str, tests: list[str]) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cluster", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, *(str(HERE / test) for test in tests)],
        env=os.environ | {"KUBECONFIG": str(kubeconfig), "STREAMWAY_TEST_IMAGE": image},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout.splitlines()[-1]


def test_the_tests_of_this_room_run_on_the_cluster_that_a_kubeconfig_names(
    another_cluster: Any, kubeconfig: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    another_cluster.misfortunes.cause("nodes", count=1, gpus=2)
    before = versions()

    summary = run(kubeconfig, another_cluster.image, [*RUN, *SPOIL])

    assert f"{len(RUN)} passed, {len(SPOIL)} skipped" in summary
    assert versions() != before, "nothing has happened on that cluster"


def versions() -> str:
    return str(connect().get("/api/v1/namespaces")["metadata"]["resourceVersion"])
