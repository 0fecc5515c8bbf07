"""Pods that a node has evicted stay as a record of it, and must not stand in the way of what comes after."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from streamway.cluster import ClusterConnection
from streamway.errors import RolloutError
from streamway.server import DeployedServer, read_status, rollback

pytestmark = pytest.mark.slow

Deploy = Callable[..., DeployedServer]
NEW_SHA = "f" * 40


@pytest.fixture
def evicted(
    deploy: Deploy, cluster: Any, connection: ClusterConnection, namespace: str
) -> Callable[..., DeployedServer]:
    """Deploys a first revision whose pod is then evicted, and so is left as a record beside its replacement."""

    def begin(*, gpus: int = 1, await_replacement: bool = True, **changes: Any) -> DeployedServer:
        cluster.misfortunes.cause("nodes", count=1, gpus=gpus)
        first = deploy(**changes)
        cluster.misfortunes.cause(f"pods/{namespace}/{first.pod}/evict", message="The node was low on memory.")
        deadline = time.monotonic() + 20
        while not _is_left(connection, namespace, first.pod) or (await_replacement and not _serves(namespace)):
            assert time.monotonic() < deadline, "the pod was not evicted, or not replaced"
            time.sleep(0.1)
        return first

    return begin


def _is_left(connection: ClusterConnection, namespace: str, pod: str) -> bool:
    found = connection.get(f"/api/v1/namespaces/{namespace}/pods")["items"]
    failed = [item["metadata"]["name"] for item in found if item["status"].get("phase") == "Failed"]
    return failed == [pod] and len(found) == 2


def _serves(namespace: str) -> bool:
    return all(row.ready for row in read_status(name="tiny", namespace=namespace).revisions)


@pytest.mark.parametrize(("strategy", "gpus"), [("recreate", 1), ("surge", 2)])
def test_a_release_takes_over_and_is_rolled_back_beside_an_evicted_pod(
    deploy: Deploy, evicted: Callable[..., DeployedServer], namespace: str, strategy: str, gpus: int
) -> None:
    first = evicted(gpus=gpus)

    second = deploy(commit_sha=NEW_SHA, strategy=strategy)
    assert read_status(name="tiny", namespace=namespace).active == second.revision

    status = rollback(name="tiny", namespace=namespace, strategy=strategy, timeout_seconds=60)
    assert status.active == first.revision
    assert [row.ready for row in status.revisions if row.role == "active"] == [1]


def test_a_failed_change_returns_to_a_revision_with_an_evicted_pod(
    deploy: Deploy, evicted: Callable[..., DeployedServer]
) -> None:
    first = evicted()

    with pytest.raises(RolloutError) as caught:
        deploy(commit_sha=NEW_SHA, strategy="recreate", CRASH="ValueError: upside down")

    assert caught.value.reason == "crash_loop"
    assert f"Revision {first.revision} serves again" in caught.value.problem


def test_a_run_waits_for_what_replaces_an_evicted_pod(deploy: Deploy, evicted: Callable[..., DeployedServer]) -> None:
    first = evicted(await_replacement=False, START_SECONDS="3")

    again = deploy(START_SECONDS="3")

    assert again.revision == first.revision
    assert again.pod != first.pod
    assert again.phases, "it was ready before anyone could wait for it"
