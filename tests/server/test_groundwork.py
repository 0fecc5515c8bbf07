"""What must be there before the first run, as a script that may be run again."""

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from streamway.errors import SettingsError
from streamway.server import ServerSpec
from streamway.server.groundwork import Ground, render_groundwork

Spec = Callable[..., ServerSpec]
CLUSTER = "projects/acme/locations/us-central1/clusters/prod"
# Notes what it is asked for; what it describes is there where a file says so.
GCLOUD = """#!/bin/bash
printf '%q ' "$@" >> "$CALLS"; echo >> "$CALLS"
case "$*" in
  *billingEnabled*) cat "$STATE/billing" ;;
  *projectNumber*) echo 4711 ;;
  *get-value*) echo ada@example.com ;;
  *print-access-token*) echo token ;;
  *describe*) [ -e "$STATE/there" ] ;;
esac
"""


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., list[list[str]]]:
    """Runs a script with a gcloud that only notes what it is asked for."""
    (tmp_path / "gcloud").write_text(GCLOUD)
    (tmp_path / "gcloud").chmod(0o700)
    (tmp_path / "billing").write_text("True\n")

    def act(script: str, *, code: int = 0, there: bool = False) -> list[list[str]]:
        calls = tmp_path / "calls"
        calls.write_text("")
        (tmp_path / "there").touch() if there else (tmp_path / "there").unlink(missing_ok=True)
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "CALLS": str(calls), "STATE": str(tmp_path)}
        done = subprocess.run(
            ["bash"], input=script, env=environment, capture_output=True, text=True, check=False, timeout=30
        )
        assert done.returncode == code, done.stderr
        return [shlex.split(line) for line in calls.read_text().splitlines()]

    return act


def changing(calls: list[list[str]]) -> list[str]:
    looking = ("describe", "get-value", "print-access-token")
    return [" ".join(call) for call in calls if not set(call) & set(looking)]


def test_an_autopilot_cluster_a_bucket_and_rights_are_made(spec: Spec, run: Callable[..., list[list[str]]]) -> None:
    script = render_groundwork(Ground(cluster=CLUSTER, bucket="models"), spec())

    member = "principal://iam.googleapis.com/projects/4711/locations/global/workloadIdentityPools/acme.svc.id.goog"
    reader = f"--member={member}/subject/ns/models/sa/tiny"
    services = " ".join(
        f"{name}.googleapis.com"
        for name in ("cloudresourcemanager", "compute", "container", "iam", "storage", "aiplatform")
    )
    bind = "projects add-iam-policy-binding acme"
    assert changing(run(script)) == [
        f"services enable {services} --project=acme",
        f"{bind} --role=roles/container.admin --condition=None --member=user:ada@example.com",
        f"{bind} --role=roles/storage.admin --condition=None --member=user:ada@example.com",
        "container clusters create-auto prod --location=us-central1 --project=acme",
        "storage buckets create gs://models --location=us-central1 --uniform-bucket-level-access --project=acme",
        f"storage buckets add-iam-policy-binding gs://models --role=roles/storage.bucketViewer {reader}",
        f"storage buckets add-iam-policy-binding gs://models --role=roles/storage.objectViewer {reader}",
    ]


def test_a_standard_cluster_has_identities_and_nodes_from_zero(spec: Spec, run: Callable[..., list[list[str]]]) -> None:
    ground = Ground(cluster=CLUSTER.replace("us-central1", "us-central1-a"), bucket="models", standard=True)
    made = changing(run(render_groundwork(ground, spec(spot=True, replicas=2))))
    place = "--location=us-central1-a --project=acme"

    assert f"container clusters create prod {place} --workload-pool=acme.svc.id.goog --num-nodes=1" in made
    assert (
        f"container node-pools create l4-x1 --cluster=prod {place} --machine-type=g2-standard-8 "
        "--accelerator=type=nvidia-l4,count=1,gpu-driver-version=default --enable-autoscaling --num-nodes=0 "
        "--min-nodes=0 --max-nodes=3 --spot"
    ) in made
    assert (
        "storage buckets create gs://models --location=us-central1 --uniform-bucket-level-access --project=acme" in made
    )


def test_nodes_of_a_regional_cluster_are_in_the_servers_zone(spec: Spec, run: Callable[..., list[list[str]]]) -> None:
    ground = Ground(cluster=CLUSTER, bucket="models", standard=True)
    (pool,) = [line for line in changing(run(render_groundwork(ground, spec(zone="us-central1-b")))) if "pools" in line]

    assert "--location=us-central1 " in pool
    assert "--node-locations=us-central1-b" in pool


def test_what_is_there_is_left_as_it_is(spec: Spec, run: Callable[..., list[list[str]]]) -> None:
    ground = Ground(cluster=CLUSTER, bucket="models", standard=True)

    assert [line for line in changing(run(render_groundwork(ground, spec()), there=True)) if "create" in line] == []


def test_nothing_is_made_where_billing_is_off(spec: Spec, run: Callable[..., list[list[str]]], tmp_path: Path) -> None:
    (tmp_path / "billing").write_text("False\n")

    assert changing(run(render_groundwork(Ground(cluster=CLUSTER, bucket="models"), spec()), code=1)) == []


def test_services_are_those_that_are_used(spec: Spec, run: Callable[..., list[list[str]]]) -> None:
    ground = Ground(cluster=CLUSTER, bucket="models", vertex=False, secrets=True)
    (services,) = [line for line in changing(run(render_groundwork(ground, spec()))) if "services" in line]

    assert "secretmanager.googleapis.com" in services
    assert "aiplatform" not in services


def test_no_name_is_more_than_a_name(spec: Spec, run: Callable[..., list[list[str]]], tmp_path: Path) -> None:
    stray = tmp_path / "stray"
    ground = Ground(cluster=CLUSTER.replace("prod", f"$(touch {str(stray).replace('/', '')});x"), bucket="a b;c")
    made = changing(run(render_groundwork(ground, spec())))

    assert any("$(touch" in line for line in made)
    assert any("gs://a b;c" in line for line in made)


@pytest.mark.parametrize("cluster", ["", "context:mine", "projects/acme/locations/us-central1/memberships/prod"])
def test_a_cluster_without_a_project_cannot_be_prepared(spec: Spec, cluster: str) -> None:
    with pytest.raises(SettingsError) as caught:
        render_groundwork(Ground(cluster=cluster, bucket="models"), spec())

    assert "expected projects/P/locations/L/clusters/C" in caught.value.problem
