"""One run has an endpoint from its rollout until its verdict, though the two are steps on different machines."""

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from streamway import gate
from streamway.cluster import ClusterConnection
from streamway.errors import ApiServerError, ClusterError, SmokeTestError, WrongAnswerError
from streamway.server import DeployedServer, read_status
from streamway.server.lease import CLAIM_SECONDS, hold_endpoint

Deploy = Callable[..., DeployedServer]
pytestmark = pytest.mark.slow
SHA = "0123456789abcdef0123456789abcdef01234567"
NEW_SHA = "f" * 40
NEW = {"commit_sha": NEW_SHA, "release_uri": f"gs://models/prefix/org/tiny/{NEW_SHA}/"}
FIRST, SECOND = "gs://models/.runs/first", "gs://models/.runs/second"
# A deploy step in a process of its own, which says when it is over, and dies.
DEPLOY = """
import json, os, sys
from streamway.server import Resources, deploy_server
settings = json.loads(sys.argv[1])
settings["resources"] = Resources(**settings["resources"])
deploy_server(**settings, hold=True)
os.kill(os.getpid(), 9)
"""


@pytest.fixture
def prove(namespace: str) -> Callable[..., Any]:
    """Proves what was deployed, as the next step of a run."""

    def run(deployed: DeployedServer, run: str, expect: str = "Paris", allowed_regression: float = 0.0) -> Any:
        return gate.smoke_test(
            name="tiny",
            namespace=namespace,
            revision=deployed.revision,
            service=deployed.service,
            port=deployed.port,
            served_model_name=deployed.served_model_name,
            commit_sha=deployed.commit_sha,
            run=run,
            expected=gate.Expectations(
                questions=[{"prompt": "What is the capital of France?", "expect": expect}],
                allowed_regression=allowed_regression,
            ),
        )

    return run


@pytest.fixture
def lease(connection: ClusterConnection, namespace: str) -> Callable[[], Any]:
    return lambda: connection.find(f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/tiny-deploy")


@pytest.fixture
def in_background() -> Iterator[Callable[[Callable[[], Any]], list[Any]]]:
    """Runs something in a thread; what it returned or raised is put in the list."""
    threads: list[threading.Thread] = []

    def start(act: Callable[[], Any]) -> list[Any]:
        outcome: list[Any] = []

        def run() -> None:
            try:
                outcome.append(act())
            except ClusterError as error:
                outcome.append(error)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return outcome

    yield start
    for thread in threads:
        thread.join(60)


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def test_a_second_run_cannot_slip_in_between_a_rollout_and_its_verdict(
    deploy: Deploy,
    prove: Callable[..., Any],
    in_background: Callable[..., list[Any]],
    caplog: pytest.LogCaptureFixture,
    namespace: str,
) -> None:
    caplog.set_level(logging.INFO)
    first = deploy(hold=True, run=FIRST)
    second = in_background(lambda: deploy(**NEW, hold=True, run=SECOND, strategy="recreate"))
    until(lambda: f"claimed for the next step of {FIRST}; seeing" in caplog.text)

    assert prove(first, FIRST).passed

    # Whether it comes while the first is at work or just after it is all the same: never before its verdict.
    until(lambda: second)
    said = [record.getMessage() for record in caplog.records]
    verdict = said.index(f"Service tiny now selects revision {first.revision}")
    assert [line for line in said[:verdict] if NEW_SHA[:7] in line and "Deployment" in line] == []
    assert read_status(name="tiny", namespace=namespace).active == first.revision


def test_a_second_run_that_waits_is_refused_once_the_first_goes_on(
    deploy: Deploy,
    connection: ClusterConnection,
    in_background: Callable[..., list[Any]],
    caplog: pytest.LogCaptureFixture,
    namespace: str,
) -> None:
    caplog.set_level(logging.INFO)
    first = deploy(hold=True, run=FIRST)
    second = in_background(lambda: deploy(**NEW, hold=True, run=SECOND))
    until(lambda: f"claimed for the next step of {FIRST}; seeing" in caplog.text)

    with hold_endpoint(connection, namespace, "tiny", run=FIRST):
        until(lambda: second)

    assert isinstance(second[0], ClusterError)
    assert "Another run is changing endpoint" in second[0].problem
    assert FIRST in second[0].problem
    status = read_status(name="tiny", namespace=namespace)
    assert [(row.name, row.role) for row in status.revisions] == [(first.revision, "candidate")]


def test_the_verdict_gives_the_endpoint_back(
    deploy: Deploy, prove: Callable[..., Any], lease: Callable[[], Any]
) -> None:
    first = deploy(hold=True, run=FIRST)
    claimed = lease()
    prove(first, FIRST)

    assert (claimed["spec"]["leaseDurationSeconds"], CLAIM_SECONDS) == (600, 600)
    assert lease() is None
    with pytest.raises(WrongAnswerError):
        second = deploy(**NEW, hold=True, run=SECOND, strategy="recreate")
        prove(second, SECOND, expect="Rome")
    assert lease() is None


class _CtrlC(logging.Handler):
    """Stops whoever says that the endpoint does not answer yet."""

    def emit(self, record: logging.LogRecord) -> None:
        if "not answering yet" in record.getMessage():
            raise KeyboardInterrupt


@pytest.mark.parametrize("served_before", [True, False])
def test_a_verdict_that_is_stopped_lets_the_one_before_serve_again(
    deploy: Deploy, prove: Callable[..., Any], lease: Callable[[], Any], namespace: str, served_before: bool
) -> None:
    old = deploy() if served_before else None
    held = deploy(**NEW, BUSY="1000", hold=True, run=FIRST, strategy="recreate")
    stop, logger = _CtrlC(), logging.getLogger("streamway.smoke")
    level = logger.level
    logger.addHandler(stop)
    logger.setLevel(logging.INFO)
    try:
        with pytest.raises(KeyboardInterrupt):
            prove(held, FIRST)
    finally:
        logger.removeHandler(stop)
        logger.setLevel(level)

    assert lease() is None
    if old is None:
        with pytest.raises(ClusterError):
            read_status(name="tiny", namespace=namespace)
        return
    until(lambda: [row.ready for row in read_status(name="tiny", namespace=namespace).revisions] == [1])
    assert read_status(name="tiny", namespace=namespace).active == old.revision


def test_a_rollout_that_fails_claims_nothing(deploy: Deploy, lease: Callable[[], Any]) -> None:
    with pytest.raises(ClusterError):
        deploy(hold=True, run=FIRST, CRASH="no such option")

    assert lease() is None


def test_a_step_that_is_tried_again_takes_up_its_own_claim(
    deploy: Deploy, prove: Callable[..., Any], lease: Callable[[], Any]
) -> None:
    deploy(hold=True, run=FIRST)
    again = deploy(hold=True, run=FIRST)

    assert not again.changed
    assert prove(again, FIRST).passed
    assert lease() is None


def test_a_run_that_was_killed_before_its_verdict_locks_nobody_out_for_longer_than_its_claim(
    settings: dict[str, Any], deploy: Deploy, prove: Callable[..., Any], namespace: str
) -> None:
    given = {**settings, "run": FIRST, "claim_seconds": 3, "resources": vars(settings["resources"])}
    killed = subprocess.run([sys.executable, "-c", DEPLOY, json.dumps(given)], check=False, timeout=60)
    assert killed.returncode == -9

    second = deploy(**NEW, hold=True, run=SECOND)

    assert prove(second, SECOND).passed
    status = read_status(name="tiny", namespace=namespace)
    assert [(row.name, row.role) for row in status.revisions] == [(second.revision, "active")]


def test_a_claim_that_ended_long_ago_is_not_waited_for(
    deploy: Deploy, connection: ClusterConnection, lease: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    deploy(hold=True, run=FIRST)
    found = lease()
    found["spec"]["renewTime"] = (datetime.now(UTC) - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    path = f"/apis/coordination.k8s.io/v1/namespaces/{found['metadata']['namespace']}/leases/tiny-deploy"
    connection.request("PUT", path, body=found)

    assert deploy(**NEW, run=SECOND).changed
    assert "which ended long ago" in caplog.text


def test_a_late_verdict_of_a_run_that_lost_the_endpoint_touches_nothing(
    deploy: Deploy, prove: Callable[..., Any], connection: ClusterConnection, namespace: str
) -> None:
    first = deploy(hold=True, run=FIRST, claim_seconds=1)
    second = deploy(**NEW, hold=True, run=SECOND, claim_seconds=60)

    with hold_endpoint(connection, namespace, "tiny", run=SECOND) as holding:
        with pytest.raises(ClusterError, match=SECOND):
            prove(first, FIRST)
        holding.leave_claim(60)

    assert prove(second, SECOND).passed
    status = read_status(name="tiny", namespace=namespace)
    assert [(row.name, row.role) for row in status.revisions] == [(second.revision, "active")]


def test_a_run_that_comes_for_the_same_revision_goes_on_at_once_where_a_killed_one_stopped(
    settings: dict[str, Any],
    deploy: Deploy,
    prove: Callable[..., Any],
    lease: Callable[[], Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    given = {**settings, "run": FIRST, "resources": vars(settings["resources"])}
    killed = subprocess.run([sys.executable, "-c", DEPLOY, json.dumps(given)], check=False, timeout=60)
    assert killed.returncode == -9
    assert lease()["spec"]["leaseDurationSeconds"] == CLAIM_SECONDS

    second = deploy(hold=True, run=SECOND)

    assert "going on in its place" in caplog.text
    assert "seeing for up to" not in caplog.text
    assert not second.changed
    assert prove(second, SECOND).passed
    assert lease() is None


def test_two_runs_of_the_same_revision_both_pass(
    deploy: Deploy, prove: Callable[..., Any], lease: Callable[[], Any], namespace: str
) -> None:
    first = deploy(hold=True, run=FIRST)
    second = deploy(hold=True, run=SECOND)

    assert prove(second, SECOND).passed
    assert prove(first, FIRST).passed

    status = read_status(name="tiny", namespace=namespace)
    assert [(row.name, row.role) for row in status.revisions] == [(first.revision, "active")]
    assert lease() is None


def test_a_verdict_waits_for_another_runs_on_the_same_revision(
    deploy: Deploy,
    prove: Callable[..., Any],
    connection: ClusterConnection,
    in_background: Callable[..., list[Any]],
    caplog: pytest.LogCaptureFixture,
    namespace: str,
) -> None:
    caplog.set_level(logging.INFO)
    first = deploy(hold=True, run=FIRST)

    with hold_endpoint(connection, namespace, "tiny", run=SECOND, revision=first.revision):
        outcome = in_background(lambda: prove(first, FIRST))
        until(lambda: "about the same revision; letting it finish first" in caplog.text)
        assert not outcome

    until(lambda: outcome)
    assert outcome[0].passed


def test_a_verdict_that_is_asked_for_again_leaves_what_serves(
    deploy: Deploy, prove: Callable[..., Any], namespace: str
) -> None:
    before = deploy()
    first = deploy(**NEW, hold=True, run=FIRST, strategy="recreate")
    prove(first, FIRST)
    version = read_status(name="tiny", namespace=namespace)

    assert prove(first, FIRST).passed

    assert read_status(name="tiny", namespace=namespace) == version
    assert (version.active, version.previous) == (first.revision, before.revision)


def test_another_verdict_on_what_serves_never_takes_it_down(
    deploy: Deploy, prove: Callable[..., Any], namespace: str
) -> None:
    before = deploy()
    first = deploy(**NEW, hold=True, run=FIRST, strategy="recreate")
    prove(first, FIRST)
    version = read_status(name="tiny", namespace=namespace)

    with pytest.raises(WrongAnswerError) as caught:
        prove(first, SECOND, expect="Rome")

    assert f"Revision {first.revision} serves on: it passed at {version.tested_at}" in caught.value.problem
    assert f"streamway rollback tiny --namespace {namespace}" in caught.value.problem
    assert before.revision in caught.value.problem
    assert read_status(name="tiny", namespace=namespace) == version


def test_what_serves_is_not_compared_with_its_own_figures(
    deploy: Deploy, prove: Callable[..., Any], namespace: str
) -> None:
    first = deploy(hold=True, run=FIRST)
    prove(first, FIRST)
    again = prove(first, SECOND, allowed_regression=1e-9)
    assert not [check for check in again.checks if "worse than before" in check.name]
    assert read_status(name="tiny", namespace=namespace).active == first.revision


def test_a_lease_that_is_newer_than_its_holder_knows_is_still_held(
    connection: ClusterConnection, namespace: str, deploy: Deploy, lease: Callable[[], Any]
) -> None:
    """As after a renewal that took effect, whose answer was lost."""
    deploy()
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/tiny-deploy"

    def renew_behind_its_back() -> Any:
        now = lease()
        now["metadata"]["annotations"] = {"example.com/noted": "meanwhile"}
        try:
            return connection.request("PUT", path, body=now)
        except ApiServerError:  # it was renewed just now
            return None

    with hold_endpoint(connection, namespace, "tiny") as holding:
        newer = lease()
        until(renew_behind_its_back)
        until(lambda: lease()["spec"]["renewTime"] > newer["spec"]["renewTime"])
        newer = lease()
        until(lambda: lease()["spec"]["renewTime"] > newer["spec"]["renewTime"])
        holding.check()
    assert lease() is None


def test_a_verdict_on_a_revision_that_another_run_has_rejected_touches_nothing(
    deploy: Deploy, prove: Callable[..., Any], namespace: str
) -> None:
    before = deploy()
    first = deploy(**NEW, hold=True, run=FIRST, strategy="recreate")
    with pytest.raises(WrongAnswerError):
        prove(first, FIRST, expect="Rome")

    with pytest.raises(SmokeTestError) as caught:
        prove(first, FIRST)

    assert f"has no revision {first.revision} any more" in caught.value.problem
    assert f"Revision {before.revision} serves" in caught.value.problem
    assert read_status(name="tiny", namespace=namespace).active == before.revision
