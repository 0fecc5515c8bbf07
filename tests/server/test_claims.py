"""How long a run waits for another one that may have been killed between its rollout and its verdict."""

import logging
import time
from collections.abc import Callable
from typing import Any

import pytest

from streamway.cluster import ClusterConnection
from streamway.server.lease import hold_endpoint

pytestmark = pytest.mark.slow
WAITS = "seeing for up to"


@pytest.fixture
def waited(connection: ClusterConnection, namespace: str, caplog: pytest.LogCaptureFixture) -> Callable[[], int]:
    """Takes the endpoint for another run, and returns how long that said that it would wait at most, in seconds."""

    def take() -> int:
        caplog.clear()
        caplog.set_level(logging.INFO)
        with hold_endpoint(connection, namespace, "tiny", run="second", revision="b"):
            (said,) = [record for record in caplog.records if WAITS in record.getMessage()]
        return int(said.args[2])  # type: ignore[index, arg-type, call-overload]

    return take


def leave_claim(connection: ClusterConnection, namespace: str, seconds: float) -> Any:
    with hold_endpoint(connection, namespace, "tiny", run="first", revision="a") as holding:
        holding.leave_claim(seconds)
    return connection.get(f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/tiny-deploy")


def test_a_claim_is_waited_for_from_when_it_was_left_and_not_from_when_somebody_comes(
    connection: ClusterConnection, namespace: str, waited: Callable[[], int], caplog: pytest.LogCaptureFixture
) -> None:
    leave_claim(connection, namespace, 4)
    fresh = waited()
    leave_claim(connection, namespace, 4)
    over = time.monotonic() + 11  # longer than the claim, and what the clocks of servers may differ by
    while time.monotonic() < over:
        time.sleep(0.1)

    assert fresh == 4
    assert waited() == 0
    assert "taking over" in caplog.text


def test_whoever_comes_is_told_why_it_waits_and_how_to_end_that(
    connection: ClusterConnection, namespace: str, waited: Callable[[], int], caplog: pytest.LogCaptureFixture
) -> None:
    leave_claim(connection, namespace, 1)

    waited()

    assert "held by claimed for the next step of first" in caplog.text
    assert "its next step may come from another machine" in caplog.text
    assert f"kubectl delete lease --namespace={namespace} tiny-deploy" in caplog.text


def test_a_clock_that_is_asked_for_leaves_nothing_behind(
    connection: ClusterConnection, namespace: str, waited: Callable[[], int]
) -> None:
    leave_claim(connection, namespace, 1)

    waited()

    assert connection.get(f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases")["items"] == []


def test_a_claim_whose_writers_clock_is_wrong_is_waited_for_all_the_same(
    connection: ClusterConnection, namespace: str, waited: Callable[[], int]
) -> None:
    claim = leave_claim(connection, namespace, 3)
    claim["spec"]["renewTime"] = claim["spec"]["renewTime"].replace(claim["spec"]["renewTime"][:4], "2099")
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/tiny-deploy"
    connection.request("PUT", path, body=claim)

    assert waited() == 3
