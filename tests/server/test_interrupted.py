"""Runs that are killed, runs that meet, and what is left of them."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from streamway.cluster import ClusterConnection
from streamway.errors import ClusterError, RolloutError
from streamway.server import DeployedServer, deploy_server, read_status

pytestmark = pytest.mark.slow

Deploy = Callable[..., DeployedServer]
NEW_SHA = "f" * 40
# A run of its own, as the pipeline's step is; it tells every step on stderr, and goes no further than some words.
RUN = """
import json, logging, sys, threading
from streamway.server import Resources, deploy_server

class Halt(logging.StreamHandler):
    def emit(self, record):
        super().emit(record)
        if sys.argv[2] in record.getMessage():
            threading.Event().wait()

logging.basicConfig(level=logging.DEBUG, handlers=[Halt()], format="%(message)s")
logging.getLogger("urllib3").setLevel(logging.WARNING)
settings = json.loads(sys.argv[1])
settings["resources"] = Resources(**settings["resources"])
if settings.pop("prove"):
    settings["verify"] = lambda candidate: logging.info("proving %s", candidate.revision)
deploy_server(**settings)
"""


@pytest.fixture
def run_until(settings: dict[str, Any]) -> Iterator[Callable[..., None]]:
    """Starts a run in a process of its own, and kills it when it says something."""
    processes: list[subprocess.Popen[str]] = []

    def run(words: str, **changes: Any) -> None:
        given = {**settings, "prove": False, **changes}
        given["resources"] = vars(given["resources"])
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, json.dumps(given), words],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        processes.append(process)
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if words in line:
                process.kill()
                process.wait()
                return
        pytest.fail(f"it never said {words!r}, but:\n{''.join(said)}")

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def left(connection: ClusterConnection, namespace: str) -> dict[str, list[str]]:
    """Names of what there is, by kind."""
    base, apps = f"/api/v1/namespaces/{namespace}", f"/apis/apps/v1/namespaces/{namespace}"
    paths = {
        "Deployment": f"{apps}/deployments",
        "Service": f"{base}/services",
        "Lease": f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases",
    }
    return {
        kind: sorted(item["metadata"]["name"] for item in connection.get(path)["items"]) for kind, path in paths.items()
    }


@pytest.mark.parametrize(
    ("words", "prove"),
    [
        ("Deployment tiny-", False),
        ("was scheduled on node", False),
        ("weights streamed", False),
        ("proving", True),
        ("now selects revision", True),
    ],
    ids=["applied", "scheduled", "streamed", "proving", "switched"],
)
def test_a_first_rollout_that_is_killed_is_completed_by_the_next(
    deploy: Deploy,
    run_until: Callable[..., None],
    connection: ClusterConnection,
    namespace: str,
    words: str,
    prove: bool,
) -> None:
    run_until(words, prove=prove, environment={"DOUBLE_START_SECONDS": "1"})

    deployed = deploy(START_SECONDS="1")

    assert left(connection, namespace) == {
        "Deployment": [f"tiny-{deployed.revision}"],
        "Service": ["tiny"],
        "Lease": [],
    }
    assert read_status(name="tiny", namespace=namespace).active == deployed.revision


@pytest.mark.parametrize("words", ["will not answer from now", "scaled to 0", "was scheduled on node", "now selects"])
def test_a_change_that_is_killed_is_completed_by_the_next(
    deploy: Deploy, run_until: Callable[..., None], connection: ClusterConnection, namespace: str, words: str
) -> None:
    first = deploy()
    run_until(words, commit_sha=NEW_SHA, strategy="recreate")

    second = deploy(commit_sha=NEW_SHA, strategy="recreate")

    assert left(connection, namespace) == {
        "Deployment": sorted([f"tiny-{first.revision}", f"tiny-{second.revision}"]),
        "Service": ["tiny"],
        "Lease": [],
    }
    status = read_status(name="tiny", namespace=namespace)
    assert (status.active, status.previous) == (second.revision, first.revision)
    assert [row.replicas for row in status.revisions] == [1, 0]


@pytest.mark.parametrize(("strategy", "running"), [("surge", [1, 0]), ("blue_green", [1, 1])])
@pytest.mark.parametrize("hold", [False, True])
def test_a_takeover_that_is_killed_once_the_service_has_moved_is_completed_by_the_next(
    deploy: Deploy,
    run_until: Callable[..., None],
    cluster: Any,
    connection: ClusterConnection,
    namespace: str,
    strategy: str,
    running: list[int],
    hold: bool,
) -> None:
    cluster.misfortunes.cause("nodes", count=1, gpus=2)
    first = deploy()
    run_until("now selects", commit_sha=NEW_SHA, strategy=strategy, prove=True)

    second = deploy(commit_sha=NEW_SHA, strategy=strategy, hold=hold)

    status = read_status(name="tiny", namespace=namespace)
    assert (status.active, status.previous) == (second.revision, first.revision)
    assert [row.replicas for row in status.revisions] == running
    assert bool(status.keep_previous_until) == (strategy == "blue_green")
    assert left(connection, namespace) == {
        "Deployment": sorted([f"tiny-{first.revision}", f"tiny-{second.revision}"]),
        "Service": ["tiny"],
        "Lease": [],
    }


def test_a_change_that_is_killed_can_be_taken_back(
    deploy: Deploy, run_until: Callable[..., None], connection: ClusterConnection, namespace: str
) -> None:
    first = deploy()
    run_until("was scheduled on node", commit_sha=NEW_SHA, strategy="recreate", environment={"DOUBLE_UNHEALTHY": "1"})

    again = deploy()

    assert again.revision == first.revision
    assert left(connection, namespace)["Deployment"] == [f"tiny-{first.revision}"]


@pytest.mark.parametrize("strategy", ["auto", "surge"])
def test_a_change_that_is_killed_and_then_fails_returns_by_whatever_strategy(
    deploy: Deploy, run_until: Callable[..., None], namespace: str, strategy: str
) -> None:
    first = deploy()
    run_until("scaled to 0", commit_sha=NEW_SHA, strategy="recreate")

    with pytest.raises(RolloutError) as caught:
        deploy(commit_sha=NEW_SHA, strategy=strategy, CRASH="RuntimeError: oh no")

    assert f"Revision {first.revision} serves again" in caught.value.problem
    (row,) = read_status(name="tiny", namespace=namespace).revisions
    assert (row.name, row.ready) == (first.revision, 1)


def test_a_return_that_is_killed_is_completed_by_the_next(
    deploy: Deploy, run_until: Callable[..., None], connection: ClusterConnection, namespace: str
) -> None:
    first = deploy()
    run_until("returning to revision", commit_sha=NEW_SHA, strategy="recreate", environment={"DOUBLE_CRASH": "oh no"})

    again = deploy()

    assert again.revision == first.revision
    assert left(connection, namespace) == {
        "Deployment": [f"tiny-{first.revision}"],
        "Service": ["tiny"],
        "Lease": [],
    }
    (row,) = read_status(name="tiny", namespace=namespace).revisions
    assert (row.role, row.ready) == ("active", 1)


def test_what_another_release_left_unfinished_is_removed(
    deploy: Deploy, run_until: Callable[..., None], connection: ClusterConnection, namespace: str
) -> None:
    run_until("was scheduled on node", environment={"DOUBLE_UNHEALTHY": "1"})

    deployed = deploy(commit_sha=NEW_SHA)

    assert left(connection, namespace)["Deployment"] == [f"tiny-{deployed.revision}"]


def test_two_runs_of_one_endpoint_do_not_meet(
    deploy: Deploy, settings: dict[str, Any], cluster: Any, connection: ClusterConnection, namespace: str
) -> None:
    results: list[DeployedServer] = []
    slow = threading.Thread(target=lambda: results.append(deploy(START_SECONDS="5")))
    slow.start()
    lease = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/tiny-deploy"
    deadline = time.monotonic() + 10
    while connection.find(lease) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    holder = connection.get(lease)["spec"]["holderIdentity"]

    with pytest.raises(ClusterError) as caught:
        deploy_server(**{**settings, "commit_sha": NEW_SHA})
    slow.join(30)

    assert f"Another run is changing endpoint tiny: {holder}" in caught.value.problem
    assert [done.changed for done in results] == [True]
    assert connection.find(lease) is None


@pytest.mark.parametrize("renews", [False, True])
def test_a_holder_elsewhere_is_judged_by_whether_it_renews(
    deploy: Deploy, connection: ClusterConnection, namespace: str, renews: bool
) -> None:
    leases = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
    spec = {"holderIdentity": "elsewhere/1/7/abc", "leaseDurationSeconds": 3}
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "tiny-deploy"}, "spec": spec}
    connection.request("POST", leases, body=lease)
    done = threading.Event()

    def renew() -> None:
        number = 0
        while renews and not done.wait(0.5):
            number += 1
            body = {"spec": {"leaseTransitions": number}}
            connection.request("PATCH", f"{leases}/tiny-deploy", body=body, content_type="application/merge-patch+json")

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        if renews:
            with pytest.raises(ClusterError, match="elsewhere/1/7/abc"):
                deploy()
        else:
            assert deploy().changed
    finally:
        done.set()
        thread.join()


def test_a_run_that_lost_its_lease_does_not_move_the_service(
    deploy: Deploy, connection: ClusterConnection, namespace: str
) -> None:
    first = deploy()
    lease = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/tiny-deploy"

    def lose(_candidate: Any) -> None:
        patch = {"spec": {"holderIdentity": "someone else"}}
        connection.request("PATCH", lease, body=patch, content_type="application/merge-patch+json")
        time.sleep(3)

    with pytest.raises(ClusterError) as caught:
        deploy(commit_sha=NEW_SHA, strategy="recreate", verify=lose)

    assert "lost endpoint" in caught.value.problem
    assert read_status(name="tiny", namespace=namespace).active == first.revision
    assert connection.get(lease)["spec"]["holderIdentity"] == "someone else"


@pytest.mark.parametrize("strategy", ["recreate", "surge"])
def test_ctrl_c_during_a_change_lets_the_old_revision_serve(
    deploy: Deploy, cluster: Any, connection: ClusterConnection, namespace: str, strategy: str
) -> None:
    cluster.misfortunes.cause("nodes", count=1, gpus=2)
    first = deploy()

    def interrupt(_candidate: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deploy(commit_sha=NEW_SHA, strategy=strategy, verify=interrupt)

    assert deploy().revision == first.revision
    assert left(connection, namespace) == {
        "Deployment": [f"tiny-{first.revision}"],
        "Service": ["tiny"],
        "Lease": [],
    }
