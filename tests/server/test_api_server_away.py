"""An API server that goes away and comes back, as when a control plane is upgraded, while a release is rolled out."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from streamway.cluster import ClusterConnection
from streamway.server import DeployedServer, read_status

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(another_cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A cluster of the test's own, because everyone's is not to be stopped."""
    monkeypatch.setenv("KUBECONFIG", another_cluster.kubeconfig)
    return another_cluster


def test_a_rollout_goes_on_when_the_api_server_is_back(
    deploy: Callable[..., DeployedServer],
    cluster: Any,
    connection: ClusterConnection,
    namespace: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def await_words(words: str) -> None:
        deadline = time.monotonic() + 30
        while words not in caplog.text:
            assert time.monotonic() < deadline, f"never said {words!r}, but:\n{caplog.text}"
            time.sleep(0.05)

    with caplog.at_level(logging.INFO, logger="streamway.server"), ThreadPoolExecutor(1) as pool:
        rolled_out = pool.submit(deploy, START_SECONDS="3")
        await_words("the engine's container runs")
        cluster.process.stop()
        await_words("the API server is gone for the moment")
        cluster.process.start()
        deployed = rolled_out.result(60)

    assert deployed.restarts == 1, "its node went away too, so the engine had to begin anew"
    found = read_status(name="tiny", namespace=namespace)
    assert (found.active, found.revisions[0].ready) == (deployed.revision, 1)
    models = connection.service_proxy(namespace, "tiny", 8000).request("GET", "/v1/models").json()
    assert [entry["id"] for entry in models["data"]] == ["org/tiny"]
