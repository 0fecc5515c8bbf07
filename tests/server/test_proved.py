"""The whole gate: a real smoke test between a rollout and the Service, and the pod's own check before it."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from streamway import gate
from streamway.cluster import ClusterConnection
from streamway.errors import ClusterPermissionError, RolloutError
from streamway.server import Candidate, DeployedServer, read_status
from streamway.smoke import Question, SmokeReport, WrongAnswerError, smoke_test

Deploy = Callable[..., DeployedServer]
SHA = "0123456789abcdef0123456789abcdef01234567"
NEW_SHA = "f" * 40
FRANCE = Question(prompt="What is the capital of France?", expect=r"\bParis\b")


def prove(commit_sha: str) -> Callable[[Candidate], SmokeReport]:
    return lambda candidate: smoke_test(
        namespace=candidate.namespace,
        service=candidate.service,
        port=candidate.port,
        served_model_name="org/tiny",
        commit_sha=commit_sha,
        questions=(FRANCE,),
        load_requests=2,
        timeout_seconds=30,
    )


def test_a_release_serves_once_it_has_answered(deploy: Deploy, namespace: str) -> None:
    deployed = deploy(verify=prove(SHA))

    assert read_status(name="tiny", namespace=namespace).active == deployed.revision
    report = smoke_test(
        namespace=namespace,
        service=deployed.service,
        port=deployed.port,
        served_model_name=deployed.served_model_name,
        commit_sha=SHA,
        questions=(FRANCE,),
        load_requests=0,
        timeout_seconds=30,
    )
    assert report.passed
    assert "every pod carries the release" in [check.name for check in report.checks]


def test_a_release_that_answers_wrongly_is_taken_back_with_its_report(deploy: Deploy, namespace: str) -> None:
    first = deploy(verify=prove(SHA))

    with pytest.raises(WrongAnswerError) as caught:
        deploy(
            commit_sha=NEW_SHA,
            release_uri=f"gs://models/prefix/org/tiny/{NEW_SHA}/",
            strategy="recreate",
            ANSWERS=json.dumps({"": "It is Berlin."}),
            verify=prove(NEW_SHA),
        )

    assert caught.value.report.answers[0].text == "It is Berlin."
    assert read_status(name="tiny", namespace=namespace).active == first.revision


def test_what_the_api_server_refuses_makes_no_gap(
    deploy: Deploy, cluster: Any, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="streamway.server")
    first = deploy()
    denial = {"resource": "deployments.apps", "namespace": namespace, "operations": ["CREATE"]}
    cluster.misfortunes.cause("denials", message="no such image", **denial)

    with pytest.raises(ClusterPermissionError) as caught:
        deploy(commit_sha=NEW_SHA, strategy="recreate")

    assert "no such image" in caught.value.problem
    assert f"Revision {first.revision} serves on." in caught.value.problem
    assert "scaled to 0" not in caplog.text
    assert read_status(name="tiny", namespace=namespace).revisions[0].ready == 1


def test_a_webhook_that_judges_no_dry_run_stops_nothing(deploy: Deploy, cluster: Any, namespace: str) -> None:
    first = deploy()
    denial = {"resource": "deployments.apps", "namespace": namespace, "operations": ["CREATE"]}
    message = 'admission webhook "x" does not support dry run'
    cluster.misfortunes.cause("denials", message=message, **denial)

    with pytest.raises(ClusterPermissionError) as caught:
        deploy(commit_sha=NEW_SHA, strategy="recreate")

    # It was tried in earnest.
    assert f"Revision {first.revision} serves again" in caught.value.problem


class Mistaken(gate.Expectations):
    """Expectations with a mistake in them."""

    def ask(self, **_place: Any) -> SmokeReport:
        raise ZeroDivisionError


def test_a_mistake_of_ours_in_a_proof_leaves_the_old_revision_serving(deploy: Deploy, namespace: str) -> None:
    def serving() -> list[tuple[str, int]]:
        return [(row.name, row.ready) for row in read_status(name="tiny", namespace=namespace).revisions]

    first = deploy()
    new = {"commit_sha": NEW_SHA, "strategy": "recreate"}

    with pytest.raises(ZeroDivisionError):
        deploy(**new, verify=lambda _candidate: Mistaken().ask())
    assert serving() == [(first.revision, 1)]

    held = deploy(**new, hold=True)
    with pytest.raises(ZeroDivisionError):
        gate.smoke_test(
            name="tiny",
            namespace=namespace,
            revision=held.revision,
            service=held.service,
            port=held.port,
            served_model_name=held.served_model_name,
            commit_sha=NEW_SHA,
            expected=Mistaken(),
        )
    assert serving() == [(first.revision, 1)]


def test_pods_of_another_release_do_not_pass_for_this_one(deploy: Deploy, namespace: str) -> None:
    deploy()

    with pytest.raises(WrongAnswerError) as caught:
        prove(NEW_SHA)(Candidate(namespace=namespace, service="tiny", port=8000, revision=""))

    assert f"expected {NEW_SHA}, found {SHA}" in caught.value.problem


@pytest.fixture
def bucket(cluster: Any) -> Iterator[Callable[..., str]]:
    """A bucket that answers with one status, once it may, at an address that pods can reach."""
    if not cluster.misfortunes.url:
        pytest.skip("pods of this cluster do not reach a server of this machine")
    servers: list[ThreadingHTTPServer] = []

    def start(status: int, wait: Callable[[], object] = lambda: None) -> str:
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_arguments: Any) -> None:
                pass

            def do_GET(self) -> None:
                wait()
                self.send_response(status)
                self.end_headers()
                self.wfile.write(b'{"items": [{"name": "a/model.safetensors", "size": "8"}]}')

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_pod_whose_account_can_read_the_release_starts(deploy: Deploy, bucket: Callable[..., str]) -> None:
    deployed = deploy(check_release=True, environment={"STORAGE_EMULATOR_HOST": bucket(200)})

    assert deployed.changed


def test_the_check_of_a_release_is_not_told_as_pulling_the_image(
    deploy: Deploy, bucket: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[bool] = []

    def wait() -> None:
        deadline = time.monotonic() + 8
        while not (told := "image pulled, the pod is prepared" in caplog.text) and time.monotonic() < deadline:
            time.sleep(0.05)
        asked.append(told and "the engine's container runs" not in caplog.text)

    with caplog.at_level(logging.INFO, logger="streamway.server"):
        deployed = deploy(check_release=True, environment={"STORAGE_EMULATOR_HOST": bucket(200, wait)})

    assert asked
    assert all(asked), "the image was said to be pulled only once the release had been checked"
    assert [phase.name for phase in deployed.phases][:4] == ["schedule", "pull image", "prepare pod", "start engine"]
    assert "the engine's container runs" in caplog.text


@pytest.mark.parametrize(
    ("status", "words"),
    [(404, "does not exist"), (403, "The service account tiny may not list gs://models/prefix/org/tiny/")],
)
def test_a_release_that_the_pod_cannot_read_is_told_before_the_engine_starts(
    deploy: Deploy, bucket: Callable[..., str], connection: ClusterConnection, status: int, words: str
) -> None:
    with pytest.raises(RolloutError) as caught:
        deploy(check_release=True, environment={"STORAGE_EMULATOR_HOST": bucket(status)})

    assert caught.value.reason == "release_access"
    assert words in caught.value.problem
