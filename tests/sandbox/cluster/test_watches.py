"""Watches: every change once and in order, resumed, selected, ended."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import urllib3
from kubernetes import watch

from tests.sandbox.cluster.conftest import RunningCluster, wait_until


def lines(cluster: RunningCluster, path: str) -> Iterator[dict[str, Any]]:
    with cluster.request("GET", path, stream=True) as response:
        for line in response.iter_lines():
            yield json.loads(line)


def names(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(one["type"], one["object"]["metadata"]["name"]) for one in events]


def test_changes_from_a_revision_come_in_order(cluster: RunningCluster, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    start = cluster.get(path)["metadata"]["resourceVersion"]
    cluster.create(path, {"metadata": {"name": "a"}})
    headers = {"Content-Type": "application/merge-patch+json"}
    cluster.request("PATCH", f"{path}/a", {"data": {"x": "y"}}, headers=headers)
    cluster.request("DELETE", f"{path}/a")
    events = list(lines(cluster, f"{path}?watch=1&resourceVersion={start}&timeoutSeconds=1"))
    assert names(events) == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]
    versions = [int(one["object"]["metadata"]["resourceVersion"]) for one in events]
    assert versions == sorted(set(versions))


def test_without_a_revision_what_is_there_comes_first(cluster: RunningCluster, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    cluster.create(path, {"metadata": {"name": "a"}})
    events = lines(cluster, f"{path}?watch=1&timeoutSeconds=5&fieldSelector=metadata.name!=kube-root-ca.crt")
    assert names([next(events)]) == [("ADDED", "a")]
    cluster.create(path, {"metadata": {"name": "b"}})
    assert names([next(events)]) == [("ADDED", "b")]


def test_selector_makes_objects_come_and_go(cluster: RunningCluster, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    start = cluster.create(path, {"metadata": {"name": "a"}})["metadata"]["resourceVersion"]
    headers = {"Content-Type": "application/merge-patch+json"}
    for value in ("1", "2", None):
        cluster.request("PATCH", f"{path}/a", {"metadata": {"labels": {"on": value}}}, headers=headers)
    query = f"watch=1&resourceVersion={start}&labelSelector=on&timeoutSeconds=1"
    events = list(lines(cluster, f"{path}?{query}"))
    assert names(events) == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]


def test_too_old_revision_is_expired(cluster: RunningCluster, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    start = cluster.get(path)["metadata"]["resourceVersion"]
    cluster.create(path, {"metadata": {"name": "a"}})
    cluster.knob("watches/expire")
    (event,) = lines(cluster, f"{path}?watch=1&resourceVersion={start}&timeoutSeconds=5")
    assert event["type"] == "ERROR"
    assert (event["object"]["code"], event["object"]["reason"]) == (410, "Expired")
    assert event["object"]["message"].startswith(f"too old resource version: {start} (")


def test_streamed_list_ends_with_a_marked_bookmark(cluster: RunningCluster, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    events = lines(cluster, f"{path}?{query}&timeoutSeconds=5")
    assert names([next(events)]) == [("ADDED", "kube-root-ca.crt")]
    bookmark = next(events)
    assert bookmark["type"] == "BOOKMARK"
    assert bookmark["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


def test_broken_connection_can_be_resumed(cluster: RunningCluster, namespace: str) -> None:
    """The typed client's watch goes on where it was when a connection is lost."""
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    seen: list[str] = []
    cut: list[int] = []
    stream = watch.Watch()

    def follow() -> None:
        while "end" not in seen:
            try:
                listed = cluster.core.list_namespaced_config_map
                start = {"resource_version": stream.resource_version} if stream.resource_version else {}
                for event in stream.stream(listed, namespace, timeout_seconds=10, **start):
                    seen.append(event["object"].metadata.name)
                    if seen[-1] == "end":
                        return
            except urllib3.exceptions.ProtocolError:
                cut.append(len(seen))

    follower = threading.Thread(target=follow)
    follower.start()
    wait_until(lambda: seen == ["kube-root-ca.crt"])
    cluster.create(path, {"metadata": {"name": "a"}})
    wait_until(lambda: "a" in seen)
    wait_until(lambda: cluster.knob("watches/drop")["ended"] >= 1)
    cluster.create(path, {"metadata": {"name": "b"}})
    cluster.create(path, {"metadata": {"name": "end"}})
    follower.join(20)
    assert cut, "no connection was lost"
    assert seen == ["kube-root-ca.crt", "a", "b", "end"]


def test_dropped_watch_breaks_off(cluster: RunningCluster, namespace: str) -> None:
    events = lines(cluster, f"/api/v1/namespaces/{namespace}/configmaps?watch=1&timeoutSeconds=20")
    assert next(events)["type"] == "ADDED"
    cluster.knob("watches/drop")
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        next(events)


def test_open_watch_can_be_expired(cluster: RunningCluster, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    events = lines(cluster, f"{path}?watch=1&timeoutSeconds=10")
    assert next(events)["type"] == "ADDED"
    cluster.knob("watches/expire")
    assert next(events)["object"]["code"] == 410


def test_table_watch_gives_rows(cluster: RunningCluster, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps?watch=1&timeoutSeconds=1"
    headers = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"}
    with cluster.request("GET", path, headers=headers, stream=True) as response:
        table = json.loads(next(response.iter_lines()))["object"]
    assert table["kind"] == "Table"
    assert table["rows"][0]["cells"][:2] == ["kube-root-ca.crt", 1]
