"""The zones of a cluster are asked of the cluster."""

from collections.abc import Callable
from typing import Any

import pytest

from streamway.cluster import ClusterConnection, resolve_zones
from streamway.errors import ClusterPermissionError


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
