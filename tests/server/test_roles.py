"""What each revision of an endpoint is called: what served earlier is told from what never served."""

from collections.abc import Callable
from typing import Any

import pytest

from streamway.cluster import ClusterConnection
from streamway.server import DeployedServer, read_status, rollback

pytestmark = pytest.mark.slow

Deploy = Callable[..., DeployedServer]
FIRST, SECOND, THIRD, FOURTH = ({"commit_sha": digit * 40} for digit in "cdef")


@pytest.fixture
def status(namespace: str) -> Callable[[], Any]:
    return lambda: read_status(name="tiny", namespace=namespace)


def test_what_served_earlier_is_told_from_what_never_served(
    deploy: Deploy, connection: ClusterConnection, namespace: str, status: Callable[[], Any], cluster: Any
) -> None:
    cluster.misfortunes.cause("nodes", count=1, gpus=4)
    first = deploy(**FIRST)
    second = deploy(**SECOND, strategy="blue_green")
    third = deploy(**THIRD, strategy="blue_green")
    served = status().revisions

    held = deploy(**FOURTH, strategy="surge", hold=True)
    holding = status().revisions
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments/tiny-{held.revision}"
    stopped = {"spec": {"replicas": 0}}
    connection.request("PATCH", path, body=stopped, content_type="application/merge-patch+json")

    now = [(third.revision, "active", 1), (second.revision, "previous", 1)]
    assert [(row.name, row.role, row.replicas) for row in served] == [*now, (first.revision, "earlier", 0)]
    assert [(row.name, row.role) for row in holding][1] == (held.revision, "candidate")
    after = [(row.name, row.role, row.replicas) for row in status().revisions]
    assert after == [*now, (held.revision, "stray", 0)]


def test_a_revision_that_is_gone_back_to_is_no_earlier_one(
    deploy: Deploy, namespace: str, status: Callable[[], Any]
) -> None:
    first = deploy(**FIRST)
    second = deploy(**SECOND, strategy="recreate")
    third = deploy(**THIRD, strategy="recreate")

    rollback(name="tiny", namespace=namespace, revision=first.revision, strategy="recreate")

    roles = {row.name: row.role for row in status().revisions}
    assert roles == {first.revision: "active", third.revision: "previous", second.revision: "earlier"}
