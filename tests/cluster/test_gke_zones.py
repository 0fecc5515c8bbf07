"""Where GKE's own description says that a cluster may have nodes, and where it never will."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

GKE_NAME = "projects/acme/locations/us-central1/clusters/prod"
# A process of its own, because gRPC reads the roots that it trusts once.
ASK = """
import json, sys
from streamway.cluster import check_zone, resolve_zones
from streamway.errors import SettingsError
answers = {}
for zone in json.loads(sys.argv[2]):
    try:
        check_zone(zone, sys.argv[1])
        answers[zone] = ""
    except SettingsError as error:
        answers[zone] = error.problem
print(json.dumps([answers, resolve_zones(["cluster"], sys.argv[1])]))
"""


def ask(google: Any, *zones: str) -> tuple[dict[str, str], list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", ASK, GKE_NAME, json.dumps(zones)],
        env={**os.environ, **google.environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    answers, every = json.loads(done.stdout)
    return answers, every


def test_zones_of_the_cluster_and_of_its_pools_are_possible(google: Any) -> None:
    google.described.node_pools = [{"name": "gpus", "locations": ["us-central1-f"]}]

    answers, every = ask(google, "us-central1-a", "us-central1-f", "us-central1-c", "europe-west4-a")

    assert (answers["us-central1-a"], answers["us-central1-f"]) == ("", "")
    for zone in ("us-central1-c", "europe-west4-a"):
        assert f"zone is '{zone}', where the cluster {GKE_NAME} can have no node" in answers[zone]
        assert "us-central1-a, us-central1-b, us-central1-f" in answers[zone]
    assert every == ["us-central1-a", "us-central1-b"]


def test_zones_where_nodes_are_provisioned_by_themselves_are_possible(google: Any) -> None:
    google.described.autoscaling.autoprovisioning_locations = ["us-central1-c"]
    assert ask(google, "us-central1-c")[0]["us-central1-c"]

    google.described.autoscaling.enable_node_autoprovisioning = True
    assert ask(google, "us-central1-c")[0] == {"us-central1-c": ""}


@pytest.mark.parametrize(("zone", "possible"), [("us-central1-f", True), ("europe-west4-a", False)])
def test_autopilot_takes_any_zone_of_its_region(google: Any, zone: str, possible: bool) -> None:
    google.described.autopilot.enabled = True

    assert (not ask(google, zone)[0][zone]) is possible
