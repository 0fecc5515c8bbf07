"""The zones of a cluster are asked of the cluster."""

import logging
from collections.abc import Callable
from typing import Any

import pytest

from streamway.cluster import ClusterConnection, check_zone, resolve_zones
from streamway.errors import ClusterPermissionError, RolloutError, SettingsError
from streamway.server import DeployedServer, read_status


def test_every_zone_of_the_cluster_is_every_zone_that_has_a_node(cluster: Any, connection: ClusterConnection) -> None:
    nodes = connection.get("/api/v1/nodes")["items"]
    expected = {node["metadata"]["labels"]["topology.kubernetes.io/zone"] for node in nodes}

    assert resolve_zones(["cluster"]) == tuple(sorted(expected))
    assert resolve_zones(["us-east1-b", "cluster"]) == ("us-east1-b", *sorted(expected))


def test_zones_that_are_named_need_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere")

    assert resolve_zones(["us-central1-a"]) == ("us-central1-a",)


def test_whoever_may_not_list_nodes_is_told_to_name_the_zones(as_account: Callable[..., None], namespace: str) -> None:
    as_account()

    with pytest.raises(ClusterPermissionError) as caught:
        resolve_zones(["cluster"])

    assert "nodes" in caught.value.problem
    assert "cache.zones" in caught.value.next_step


Deploy = Callable[..., DeployedServer]


def test_a_zone_of_another_region_is_refused_before_anything_is_applied(
    deploy: Deploy, connection: ClusterConnection, namespace: str
) -> None:
    first = deploy()
    zones = resolve_zones(["cluster"])

    with pytest.raises(SettingsError) as caught:
        deploy(zone="antarctica-south1-a", strategy="recreate")

    assert "zone is 'antarctica-south1-a'" in caught.value.problem
    assert f"it can have them in {', '.join(zones)}." in caught.value.problem
    status = read_status(name="tiny", namespace=namespace)
    assert [(row.name, row.ready) for row in status.revisions] == [(first.revision, 1)]


def test_a_region_is_no_zone(cluster: Any) -> None:
    region = resolve_zones(["cluster"])[0].rpartition("-")[0]

    with pytest.raises(SettingsError) as caught:
        check_zone(region)

    assert f"zone is {region!r}, where the cluster" in caught.value.problem


def test_a_zone_without_a_node_yet_is_waited_for_and_costs_no_gap(
    deploy: Deploy, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first = deploy()
    zones = resolve_zones(["cluster"])
    elsewhere = zones[0][:-1] + "z"

    with pytest.raises(RolloutError) as caught:
        deploy(zone=elsewhere)

    assert f"no node in {elsewhere} yet, only in {', '.join(zones)}" in caplog.text
    assert caught.value.reason == "unschedulable"
    assert f"Revision {first.revision} serves on" in caught.value.problem
    assert "will not answer from now" not in caplog.text
    assert read_status(name="tiny", namespace=namespace).active == first.revision


@pytest.mark.parametrize(("zone", "said"), [("", ""), ("on-premises-1", "has no node in on-premises-1 yet")])
def test_what_cannot_be_judged_is_not_refused(
    cluster: Any, zone: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    check_zone(zone)

    assert said in caplog.text
    assert bool(said) is bool(caplog.text)


def test_whoever_may_not_list_nodes_is_not_stopped(
    as_account: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    as_account()

    check_zone("europe-west4-a")

    assert "whether the cluster has nodes in europe-west4-a is not known" in caplog.text
