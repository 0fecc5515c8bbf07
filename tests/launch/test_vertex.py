"""What is submitted to Vertex AI runs once, as asked, and its state comes back in one vocabulary."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from streamway.errors import AlreadyThereError, LaunchError, ServiceUnreachableError
from streamway.launch.service import RunRequest, RunStatus, submit, wait_for_run
from streamway.launch.vertex import VertexService

PARAMETERS = {"name": "you", "count": 2, "more": ["a", 1.5], "options": {"deep": {"x": True}}}
ACCOUNT = "runner@project.iam.gserviceaccount.com"


def request(compiled: Path, **changed: Any) -> RunRequest:
    given = {
        "pipeline_path": compiled,
        "parameters": PARAMETERS,
        "name": "My Endpoint",
        "pipeline_root": "gs://bucket/models/.pipelines",
        "service_account": ACCOUNT,
        "network": "projects/1/global/networks/n",
        "labels": {"Team": "Red_1"},
    }
    return RunRequest(**{**given, **changed})


@pytest.fixture
def service(queueing: Any) -> VertexService:
    return VertexService(location="us-central1")


def test_a_run_is_what_was_asked_for(queueing: Any, service: VertexService, compiled: Path) -> None:
    run = submit(service, request(compiled))
    job = queueing.call(f"{queueing.place}/pipelineJobs/{run.id}")
    assert job["runtimeConfig"] == {
        "gcsOutputDirectory": "gs://bucket/models/.pipelines",
        "parameterValues": PARAMETERS,
    }
    assert (job["serviceAccount"], job["network"]) == (ACCOUNT, "projects/1/global/networks/n")
    assert job["labels"] == {"team": "red-1", "streamway-request": request(compiled).digest}
    assert job["pipelineSpec"]["pipelineInfo"]["name"] == "small-talk"
    assert (run.state, run.joined, run.display_name) == ("queued", False, "My Endpoint")
    assert run.id == f"my-endpoint-{request(compiled).digest}-1"


def test_the_page_is_the_console_or_whatever_is_there(queueing: Any, service: VertexService, compiled: Path) -> None:
    run = submit(service, request(compiled))
    assert run.page == f"{queueing.url}{queueing.place}/pipelineJobs/{run.id}"
    assert queueing.call(run.page.removeprefix(queueing.url))["displayName"] == "My Endpoint"


def test_the_same_submission_joins_the_run_that_goes_on(service: VertexService, compiled: Path) -> None:
    first, second = submit(service, request(compiled)), submit(service, request(compiled))
    assert (second.id, second.joined) == (first.id, True)
    other = submit(service, request(compiled, parameters={**PARAMETERS, "count": 3}))
    assert other.id != first.id
    assert len(service.list_runs(limit=10)) == 2


def test_concurrent_submissions_start_one_run(service: VertexService, compiled: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: submit(service, request(compiled)), range(8)))
    assert len({run.id for run in runs}) == 1
    assert [run.joined for run in runs].count(False) == 1
    assert len(service.list_runs(limit=10)) == 1


def test_a_submission_whose_run_is_over_starts_another(service: VertexService, compiled: Path) -> None:
    first = submit(service, request(compiled))
    service.cancel_run(first.id)
    wait_for_run(service, first.id, timeout_seconds=20, poll_seconds=0.1)
    second = submit(service, request(compiled))
    assert (second.id, second.joined) == (first.id.removesuffix("1") + "2", False)
    assert [run.state for run in service.list_runs(limit=10, digest=request(compiled).digest)] == [
        "queued",
        "cancelled",
    ]


def test_waiting_tells_each_state_and_ends_with_the_run(start_part: Callable[..., Any], compiled: Path) -> None:
    start_part("vertex")
    service = VertexService(location="us-central1")
    run = submit(service, request(compiled, parameters={"name": "you", "fail": True}))
    seen: list[RunStatus] = []
    found = wait_for_run(service, run.id, timeout_seconds=60, poll_seconds=0.1, on_status=seen.append)
    assert found.state == "failed"
    assert "[greet]" in found.error
    assert [(task.name, task.state) for task in found.tasks] == [("greet", "failed")]
    assert seen[-1] == found
    assert found.ended > found.started >= found.created


def test_waiting_survives_a_service_that_is_away_for_a_moment(
    queueing: Any, service: VertexService, compiled: Path
) -> None:
    run = submit(service, request(compiled))
    service.cancel_run(run.id)
    queueing.fail_next("GET", f"{queueing.place}/pipelineJobs/{run.id}", status=503)
    assert wait_for_run(service, run.id, timeout_seconds=30, poll_seconds=0.1).state == "cancelled"


def test_waiting_ends_at_its_deadline_and_says_that_the_run_goes_on(service: VertexService, compiled: Path) -> None:
    run = submit(service, request(compiled))
    with pytest.raises(LaunchError, match="still queued after 0 s; it goes on"):
        wait_for_run(service, run.id, timeout_seconds=0.3, poll_seconds=0.1)
    with pytest.raises(LaunchError, match="is gone from projects/project-"):
        wait_for_run(service, "never-was", timeout_seconds=5, poll_seconds=0.1)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"parameters": {"name": "you", "nam": 1}}, "Unknown input parameter: nam"),
        ({"parameters": {}}, "input parameter name is required"),
        ({"parameters": {"name": "you", "count": 1.5}}, "count is not of type NUMBER_INTEGER"),
        ({"pipeline_root": "/tmp/root"}, "must be a Cloud Storage path"),
    ],
)
def test_a_refusal_carries_the_services_own_words(
    service: VertexService, compiled: Path, changed: dict[str, Any], problem: str
) -> None:
    with pytest.raises(LaunchError, match=problem) as caught:
        submit(service, request(compiled, **changed))
    assert caught.value.next_step


@pytest.mark.parametrize(
    ("status", "error", "problem"),
    [
        (403, LaunchError, "refuses you"),
        (503, ServiceUnreachableError, "does not answer"),
        (429, ServiceUnreachableError, "does not answer"),
        (404, LaunchError, "does not exist"),
    ],
)
def test_every_kind_of_failure_has_its_own_message(
    queueing: Any, service: VertexService, compiled: Path, status: int, error: type[LaunchError], problem: str
) -> None:
    queueing.fail_next("POST", f"{queueing.place}/pipelineJobs", status=status)
    with pytest.raises(error, match=problem):
        service.create_run(request(compiled), "my-run")


def test_a_taken_id_is_told_apart(service: VertexService, compiled: Path) -> None:
    service.create_run(request(compiled), "my-run")
    with pytest.raises(AlreadyThereError):
        service.create_run(request(compiled), "my-run")


def test_nothing_that_answers_is_said_so(start_part: Callable[..., Any], compiled: Path) -> None:
    part = start_part("vertex")
    service = VertexService(location="us-central1")
    part.stop()
    with pytest.raises(ServiceUnreachableError, match="does not answer"):
        submit(service, request(compiled))


def test_without_credentials_the_way_to_them_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    with pytest.raises(LaunchError, match="no Google credentials") as caught:
        VertexService(location="us-central1", project="p")
    assert "gcloud auth application-default login" in caught.value.next_step


def test_without_a_project_it_is_asked_for(queueing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT")
    with pytest.raises(LaunchError, match="No Google Cloud project"):
        VertexService(location="us-central1")
