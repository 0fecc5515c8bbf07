"""Changing the model under a client that keeps asking, and going back."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from streamway.cluster import ClusterConnection
from streamway.errors import ClusterError, ClusterUnreachableError, RolloutError, WrongAnswerError
from streamway.server import (
    Candidate,
    DeployedServer,
    Proof,
    promote_revision,
    read_status,
    reject_revision,
    retire_server,
    rollback,
)

SHA = "0123456789abcdef0123456789abcdef01234567"
NEW_SHA = "f" * 40
pytestmark = pytest.mark.slow

Deploy = Callable[..., DeployedServer]
OLD = {"commit_sha": SHA, "ANSWERS": json.dumps({"": "old"})}
NEW = {"commit_sha": NEW_SHA, "ANSWERS": json.dumps({"": "new"})}
# Time for everyone to learn that a pod is going, while it still answers.
DRAIN = {"drain_seconds": 2}
QUESTION = {"model": "org/tiny", "messages": [{"role": "user", "content": "who?"}]}


@dataclass
class Client:
    """Asks an endpoint over and over, and keeps what came back when."""

    connection: ClusterConnection
    namespace: str
    answers: list[tuple[float, str]] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def ask(self) -> str:
        proxy = self.connection.service_proxy(self.namespace, "tiny", 8000)
        try:
            response = proxy.request("POST", "/v1/chat/completions", body=QUESTION, timeout_seconds=5)
        except ClusterUnreachableError as error:
            return f"FAILED {error.problem}"
        if response.status != 200:
            return f"FAILED {response.status} {response.text}"
        return str(response.json()["choices"][0]["message"]["content"])

    def keep_asking(self) -> None:
        while not self._stop.is_set():
            self.answers.append((time.monotonic(), self.ask()))
            self._stop.wait(0.03)

    def stop(self) -> list[str]:
        self._stop.set()
        return [answer for _when, answer in self.answers]

    @property
    def failures(self) -> list[tuple[float, str]]:
        return [(when, answer) for when, answer in self.answers if answer.startswith("FAILED")]


@pytest.fixture
def client(connection: ClusterConnection, namespace: str) -> Iterator[Client]:
    client = Client(connection, namespace)
    yield client
    client.stop()


@pytest.fixture
def asking(client: Client) -> Iterator[Callable[[], Client]]:
    """Starts the client, once there is something to ask."""
    threads: list[threading.Thread] = []

    def start() -> Client:
        threads.append(threading.Thread(target=client.keep_asking, daemon=True))
        threads[0].start()
        return client

    yield start
    client.stop()
    for thread in threads:
        thread.join(10)


@pytest.fixture
def two_gpus(cluster: Any) -> None:
    cluster.misfortunes.cause("nodes", count=1, gpus=2)


@pytest.fixture
def status(namespace: str) -> Callable[[], Any]:
    return lambda: read_status(name="tiny", namespace=namespace)


def selected(connection: ClusterConnection, namespace: str) -> str:
    service = connection.get(f"/api/v1/namespaces/{namespace}/services/tiny")
    return str(service["spec"]["selector"]["streamway/revision"])


def pods(connection: ClusterConnection, namespace: str) -> list[str]:
    found = connection.get(f"/api/v1/namespaces/{namespace}/pods")["items"]
    return [
        pod["metadata"]["labels"]["streamway/revision"] for pod in found if "deletionTimestamp" not in pod["metadata"]
    ]


def wrong(_candidate: Candidate) -> None:
    raise WrongAnswerError("the capital of France is Berlin", report="the report")


def test_surge_never_stops_answering(deploy: Deploy, two_gpus: None, asking: Callable[[], Client]) -> None:
    deploy(**OLD, **DRAIN)
    client = asking()

    deployed = deploy(**NEW, **DRAIN, strategy="surge")
    time.sleep(0.5)
    answers = client.stop()

    assert client.failures == []
    assert answers[0] == "old"
    assert answers[-1] == "new"
    assert answers == sorted(answers, key=("old", "new").index), "an answer of the old model after the new one's"
    assert not deployed.gap


def test_surge_gives_the_old_gpus_back(
    deploy: Deploy, two_gpus: None, connection: ClusterConnection, namespace: str
) -> None:
    deploy(**OLD)
    deployed = deploy(**NEW, strategy="surge")

    deadline = time.monotonic() + 20
    while pods(connection, namespace) != [deployed.revision] and time.monotonic() < deadline:
        time.sleep(0.1)
    assert pods(connection, namespace) == [deployed.revision]


def test_blue_green_keeps_the_old_one_running_for_a_set_time(
    deploy: Deploy,
    two_gpus: None,
    asking: Callable[[], Client],
    connection: ClusterConnection,
    namespace: str,
    status: Callable[[], Any],
) -> None:
    first = deploy(**OLD, **DRAIN)
    client = asking()

    second = deploy(**NEW, **DRAIN, strategy="blue_green", keep_seconds=3600)
    time.sleep(0.3)

    assert client.stop()[-1] == "new"
    assert client.failures == []
    assert sorted(pods(connection, namespace)) == sorted([first.revision, second.revision])
    until = datetime.strptime(status().keep_previous_until, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    assert timedelta(minutes=55) < until - datetime.now(UTC) < timedelta(minutes=61)


def test_a_kept_revision_takes_over_at_once_and_without_a_gap(
    deploy: Deploy, two_gpus: None, asking: Callable[[], Client], namespace: str
) -> None:
    deploy(**OLD, **DRAIN)
    deploy(**NEW, **DRAIN, strategy="blue_green")
    client = asking()

    rollback(name="tiny", namespace=namespace)
    time.sleep(0.3)

    assert client.stop()[-1] == "old"
    assert client.failures == []


def test_a_kept_revision_is_stopped_by_the_next_run_after_its_time(
    deploy: Deploy, two_gpus: None, connection: ClusterConnection, namespace: str
) -> None:
    deploy(**OLD)
    second = deploy(**NEW, strategy="blue_green", keep_seconds=1)
    time.sleep(2)

    deploy(**NEW)

    deadline = time.monotonic() + 20
    while pods(connection, namespace) != [second.revision] and time.monotonic() < deadline:
        time.sleep(0.1)
    assert pods(connection, namespace) == [second.revision]


def test_a_kept_revision_whose_time_is_over_can_still_be_gone_back_to(
    deploy: Deploy, two_gpus: None, asking: Callable[[], Client], namespace: str
) -> None:
    deploy(**OLD, **DRAIN)
    deploy(**NEW, **DRAIN, strategy="blue_green", keep_seconds=1)
    time.sleep(2)
    client = asking()

    rollback(name="tiny", namespace=namespace, timeout_seconds=60)
    time.sleep(0.3)

    assert client.stop()[-1] == "old"
    assert client.failures == []


def test_recreate_fails_only_between_the_announcement_and_ready(
    deploy: Deploy, asking: Callable[[], Client], caplog: pytest.LogCaptureFixture
) -> None:
    deploy(**OLD)
    client = asking()
    clock = time.monotonic() - time.time()

    with caplog.at_level(logging.INFO, logger="streamway.server"):
        deployed = deploy(**NEW, strategy="recreate")
    ended = time.monotonic()
    time.sleep(0.3)
    answers = client.stop()

    announced = next(record for record in caplog.records if "will not answer from now" in record.getMessage())
    assert client.failures, "one GPU cannot serve two models"
    assert all(announced.created + clock <= when <= ended for when, _answer in client.failures)
    assert (answers[0], answers[-1]) == ("old", "new")
    assert deployed.gap
    assert deployed.phases[0].name == "stop old revision"


def test_recreate_returns_to_the_old_revision_when_the_new_one_fails(
    deploy: Deploy, client: Client, connection: ClusterConnection, namespace: str
) -> None:
    first = deploy(**OLD)

    with pytest.raises(RolloutError) as caught:
        deploy(**{**NEW, "CRASH": "ValueError: upside down"}, strategy="recreate")

    assert "ValueError: upside down" in caught.value.problem
    assert f"Revision {first.revision} serves again" in caught.value.problem
    assert selected(connection, namespace) == first.revision
    assert client.ask() == "old"
    assert pods(connection, namespace) == [first.revision]


def test_auto_gives_way_to_recreate_where_there_is_no_second_gpu(
    deploy: Deploy, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    deploy(**OLD)

    with caplog.at_level(logging.WARNING, logger="streamway.server"):
        deployed = deploy(**NEW)

    assert deployed.gap
    assert "no room for a second server beside the old one" in caplog.text
    assert client.ask() == "new"


def test_auto_leaves_no_gap_where_there_is_a_second_gpu(deploy: Deploy, two_gpus: None) -> None:
    deploy(**OLD)

    assert not deploy(**NEW).gap


@pytest.mark.parametrize("strategy", ["surge", "blue_green", "recreate"])
def test_a_model_that_answers_wrongly_never_becomes_the_services_target(
    deploy: Deploy,
    two_gpus: None,
    asking: Callable[[], Client],
    connection: ClusterConnection,
    namespace: str,
    strategy: str,
) -> None:
    first = deploy(**OLD)
    client = asking()

    with pytest.raises(WrongAnswerError) as caught:
        deploy(**NEW, **DRAIN, strategy=strategy, verify=wrong)
    time.sleep(0.3)
    answers = client.stop()

    assert caught.value.report == "the report"
    assert "new" not in answers
    assert answers[-1] == "old"
    assert selected(connection, namespace) == first.revision
    if strategy != "recreate":
        assert client.failures == []


def test_the_candidate_is_proved_through_a_service_of_its_own(
    deploy: Deploy, two_gpus: None, connection: ClusterConnection, namespace: str
) -> None:
    deploy(**OLD)
    asked: list[Candidate] = []

    def verify(candidate: Candidate) -> None:
        asked.append(candidate)
        proxy = connection.service_proxy(namespace, candidate.service, candidate.port)
        answer = proxy.request("POST", "/v1/chat/completions", body=QUESTION).json()
        assert answer["choices"][0]["message"]["content"] == "new"
        assert selected(connection, namespace) != candidate.revision

    deployed = deploy(**NEW, strategy="surge", verify=verify)

    assert [candidate.revision for candidate in asked] == [deployed.revision]
    assert connection.find(f"/api/v1/namespaces/{namespace}/services/{asked[0].service}") is None


def test_a_first_revision_that_is_held_gets_the_service_when_it_is_promoted(
    deploy: Deploy, connection: ClusterConnection, namespace: str, status: Callable[[], Any]
) -> None:
    held = deploy(**OLD, hold=True)

    assert held.service == f"tiny-{held.revision}"
    assert connection.find(f"/api/v1/namespaces/{namespace}/services/tiny") is None
    assert deploy(**OLD, hold=True).service == held.service

    promote_revision(name="tiny", namespace=namespace, revision=held.revision, proof="passed", figures={"x": 1.5})

    assert status().last_figures == {"x": 1.5}
    assert selected(connection, namespace) == held.revision
    assert status().last_smoke_test == "passed"
    assert deploy(**OLD, hold=True).service == "tiny"
    assert status().last_smoke_test == "passed"


def test_a_held_revision_that_is_rejected_leaves_the_old_one(
    deploy: Deploy, two_gpus: None, client: Client, connection: ClusterConnection, namespace: str
) -> None:
    first = deploy(**OLD)
    held = deploy(**NEW, strategy="blue_green", hold=True)
    assert client.ask() == "old"

    outcome = reject_revision(name="tiny", namespace=namespace, revision=held.revision)

    assert outcome == f"Revision {first.revision} serves on; revision {held.revision} was removed."
    assert client.ask() == "old"
    assert list(read_status(name="tiny", namespace=namespace).revisions[0].commit_sha) == list(SHA)


def test_a_held_revision_that_took_the_only_gpu_gives_it_back_when_rejected(
    deploy: Deploy, client: Client, namespace: str
) -> None:
    first = deploy(**OLD)
    held = deploy(**NEW, strategy="recreate", hold=True)

    outcome = reject_revision(name="tiny", namespace=namespace, revision=held.revision)

    assert f"Revision {first.revision} serves again" in outcome
    assert client.ask() == "old"


def test_a_held_revision_takes_over_as_its_strategy_says(
    deploy: Deploy, two_gpus: None, client: Client, namespace: str
) -> None:
    first = deploy(**OLD)
    held = deploy(**NEW, strategy="blue_green", hold=True)

    status = promote_revision(name="tiny", namespace=namespace, revision=held.revision)

    assert client.ask() == "new"
    assert (status.active, status.previous) == (held.revision, first.revision)
    assert status.keep_previous_until


def test_a_serving_revision_that_is_rejected_is_left_for_the_one_before(
    deploy: Deploy, client: Client, namespace: str, status: Callable[[], Any]
) -> None:
    first = deploy(**OLD)
    second = deploy(**NEW, strategy="recreate")

    outcome = reject_revision(name="tiny", namespace=namespace, revision=second.revision, unschedulable_seconds=1)

    assert outcome == f"Revision {first.revision} serves again; revision {second.revision} was removed."
    assert client.ask() == "old"
    assert (status().active, status().previous) == (first.revision, "")


def test_a_serving_revision_without_a_predecessor_goes_on(deploy: Deploy, client: Client, namespace: str) -> None:
    only = deploy(**OLD)

    assert "none to go back to" in reject_revision(name="tiny", namespace=namespace, revision=only.revision)
    assert client.ask() == "old"


def test_rollback_by_hand_and_back_again(
    deploy: Deploy, client: Client, namespace: str, status: Callable[[], Any]
) -> None:
    first = deploy(**OLD)
    second = deploy(**NEW, strategy="recreate")

    rollback(name="tiny", namespace=namespace, unschedulable_seconds=1)
    assert client.ask() == "old"
    assert (status().active, status().previous) == (first.revision, second.revision)

    rollback(name="tiny", namespace=namespace, revision=second.revision, strategy="recreate")
    assert client.ask() == "new"


def test_what_a_revision_has_proved_is_known_again_when_it_is_gone_back_to(
    deploy: Deploy, namespace: str, status: Callable[[], Any]
) -> None:
    def proof(said: str, speed: float) -> Callable[[Candidate], Proof]:
        return lambda _candidate: Proof(said=said, figures={"tokens_per_second": speed})

    deploy(**OLD, verify=proof("old passed", 10))
    tested = status().tested_at
    deploy(**NEW, strategy="recreate", verify=proof("new passed", 20))
    assert (status().last_smoke_test, status().last_figures) == ("new passed", {"tokens_per_second": 20})

    rollback(name="tiny", namespace=namespace, strategy="recreate")
    found = status()
    assert (found.last_smoke_test, found.tested_at) == ("old passed", tested)
    assert found.last_figures == {"tokens_per_second": 10}

    rollback(name="tiny", namespace=namespace, strategy="recreate")
    assert status().last_smoke_test == "new passed"


def test_a_rollback_that_answers_wrongly_is_no_rollback(
    deploy: Deploy, two_gpus: None, client: Client, namespace: str, status: Callable[[], Any]
) -> None:
    deploy(**OLD)
    second = deploy(**NEW, strategy="surge")

    with pytest.raises(WrongAnswerError):
        rollback(name="tiny", namespace=namespace, verify=wrong)

    assert client.ask() == "new"
    assert status().active == second.revision
    assert len(status().revisions) == 2, "the revision that served before is kept to be tried again"


def test_there_must_be_something_to_go_back_to(deploy: Deploy, namespace: str) -> None:
    only = deploy(**OLD)

    with pytest.raises(ClusterError) as caught:
        rollback(name="tiny", namespace=namespace)
    assert f"no revision to go back to; {only.revision} serves" in caught.value.problem

    with pytest.raises(ClusterError) as caught:
        rollback(name="tiny", namespace=namespace, revision="abc")
    assert f"no revision 'abc', it has {only.revision}" in caught.value.problem


def test_the_status_tells_revisions_and_since_when(deploy: Deploy, namespace: str, status: Callable[[], Any]) -> None:
    first = deploy(**OLD)
    second = deploy(**NEW, strategy="recreate")
    found = status()

    assert [(row.name, row.role, row.commit_sha) for row in found.revisions] == [
        (second.revision, "active", NEW_SHA),
        (first.revision, "previous", SHA),
    ]
    assert (found.revisions[0].ready, found.revisions[1].replicas) == (1, 0)
    since = datetime.strptime(found.active_since, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    assert datetime.now(UTC) - since < timedelta(minutes=2)


def test_an_endpoint_that_is_not_there_is_told(namespace: str, cluster: Any) -> None:
    with pytest.raises(ClusterError) as caught:
        read_status(name="nothing", namespace=namespace)

    assert f"no endpoint nothing in namespace {namespace}" in caught.value.problem


def test_a_third_release_removes_what_is_older_than_the_one_before(deploy: Deploy, status: Callable[[], Any]) -> None:
    deploy(**OLD)
    second = deploy(**NEW, strategy="recreate")
    third = deploy(**{**NEW, "commit_sha": "e" * 40}, strategy="recreate")

    deploy(**{**NEW, "commit_sha": "e" * 40})

    assert {row.name for row in status().revisions} == {second.revision, third.revision}


def test_retiring_leaves_nothing(deploy: Deploy, connection: ClusterConnection, namespace: str) -> None:
    deploy(**OLD)
    gone = retire_server(name="tiny", namespace=namespace)

    assert "Service tiny" in gone
    base = f"/api/v1/namespaces/{namespace}"
    for path in (
        f"{base}/pods",
        f"{base}/services",
        f"/apis/apps/v1/namespaces/{namespace}/deployments",
        f"/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets",
        f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases",
    ):
        assert connection.get(path)["items"] == [], path
    assert retire_server(name="tiny", namespace=namespace) == ()
