"""The same verbs on Kubeflow: one run for one request, schedules read back, and its own limits said plainly."""

import contextlib
import io
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from streamway.cron import Cron
from streamway.errors import LaunchError, ServiceUnreachableError
from streamway.launch.kfp_api import KubeflowService
from streamway.launch.schedules import create_schedule, find_by_name
from streamway.launch.service import RunRequest, ScheduleRequest, submit, wait_for_run

PARAMETERS = {"name": "you", "count": 2, "options": {"deep": {"x": True}}}


def request(compiled: Path, **changed: Any) -> RunRequest:
    given = {"pipeline_path": compiled, "parameters": PARAMETERS, "name": "endpoint", "service_account": "runner"}
    return RunRequest(**{**given, **changed})


@pytest.fixture
def service(queueing: Any) -> KubeflowService:
    # Experiments of their own keep tests apart on one part.
    return KubeflowService(queueing.url, experiment=queueing.project)


def test_a_run_is_what_was_asked_for_and_is_joined_by_the_same(service: KubeflowService, compiled: Path) -> None:
    run = submit(service, request(compiled))
    assert run.parameters == PARAMETERS
    assert (run.state, run.service_account, run.display_name) == ("queued", "runner", f"{request(compiled).stem}-1")
    assert run.page.endswith(f"/#/runs/details/{run.id}")
    again = submit(service, request(compiled))
    assert (again.id, again.joined) == (run.id, True)
    assert len(service.list_runs(limit=10)) == 1


def test_concurrent_submissions_leave_one_run(queueing: Any, service: KubeflowService, compiled: Path) -> None:
    services = [KubeflowService(queueing.url, experiment=queueing.project) for _ in range(6)]
    together = threading.Barrier(len(services))

    def start(one: KubeflowService) -> str:
        together.wait()
        return submit(one, request(compiled)).id

    for _ in range(3):
        with ThreadPoolExecutor(len(services)) as pool:
            (run_id,) = set(pool.map(start, services))
        assert [run.id for run in service.list_runs(limit=100) if not run.is_over] == [run_id]
        service.cancel_run(run_id)


def test_a_submission_joins_the_run_that_stays(queueing: Any, service: KubeflowService, compiled: Path) -> None:
    wanted = request(compiled)
    first = submit(service, wanted)
    # Somebody else was as fast, and is about to find out: Kubeflow has two runs of one name for a moment.
    body = queueing.call(f"/apis/v2beta1/runs/{first.id}")
    kept = ("experiment_id", "display_name", "pipeline_spec", "runtime_config")
    queueing.call("/apis/v2beta1/runs", {key: body[key] for key in kept if key in body})
    assert len([run for run in service.list_runs(limit=100) if not run.is_over]) == 2
    joined = submit(service, wanted)
    assert (joined.id, joined.joined) == (first.id, True)


def test_a_cancelled_run_is_followed_by_another(service: KubeflowService, compiled: Path) -> None:
    first = submit(service, request(compiled))
    service.cancel_run(first.id)
    assert wait_for_run(service, first.id, timeout_seconds=20, poll_seconds=0.1).state == "cancelled"
    second = submit(service, request(compiled))
    assert second.id != first.id
    assert not second.joined


def test_a_run_is_followed_to_its_end(start_part: Callable[..., Any], compiled: Path) -> None:
    service = KubeflowService(start_part("vertex").url, experiment="talks")
    run = submit(service, request(compiled))
    found = wait_for_run(service, run.id, timeout_seconds=60, poll_seconds=0.1)
    assert (found.state, [(task.name, task.state) for task in found.tasks]) == ("succeeded", [("greet", "succeeded")])


def test_nothing_that_the_client_prints_reaches_our_results(service: KubeflowService, compiled: Path) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        submit(service, request(compiled))
    assert printed.getvalue() == ""


def nightly(compiled: Path, zone: str = "UTC") -> ScheduleRequest:
    cron = Cron.parse("30 4 * * 1-5", zone=zone)
    return ScheduleRequest(name="nightly", cron=cron, run=request(compiled), end="2099-01-31T00:00:00Z")


def test_a_schedule_is_read_back_paused_resumed_and_deleted(service: KubeflowService, compiled: Path) -> None:
    made = create_schedule(service, nightly(compiled), location="")
    assert (made.cron, made.time_zone, made.state, made.service_account) == ("30 4 * * 1-5", "UTC", "active", "runner")
    assert made.end.startswith("2099-01-31T00:00:00")
    assert create_schedule(service, nightly(compiled), location="").id == made.id
    service.pause_schedule(made.id)
    assert find_by_name(service, "nightly").state == "paused"
    service.resume_schedule(made.id, catch_up=False)
    assert find_by_name(service, "nightly").state == "active"
    service.delete_schedule(made.id)
    assert service.list_schedules() == ()
    assert service.find_schedule(made.id) is None


def test_what_kubeflow_cannot_do_is_refused_with_a_way_out(service: KubeflowService, compiled: Path) -> None:
    with pytest.raises(LaunchError, match="time zone Europe/Berlin, and Kubeflow has none") as caught:
        create_schedule(service, nightly(compiled, "Europe/Berlin"), location="")
    assert "UTC" in caught.value.next_step
    with pytest.raises(LaunchError, match="cannot catch up"):
        service.resume_schedule("any", catch_up=True)


def test_published_versions_are_there_once(service: KubeflowService, compiled: Path, queueing: Any) -> None:
    name = f"talk-{queueing.project}"
    first = service.publish(str(compiled), name, "v1")
    assert service.publish(str(compiled), name, "v1") == first
    assert service.publish(str(compiled), name, "v2") != first


def test_another_pipeline_does_not_pass_for_a_version_that_is_there(
    service: KubeflowService, compiled: Path, queueing: Any, tmp_path: Path
) -> None:
    name = f"talk-{queueing.project}"
    first = service.publish(str(compiled), name, "v1")
    other = tmp_path / "other.yaml"
    other.write_text(compiled.read_text().replace("image: python:test", "image: python:other"))
    with pytest.raises(LaunchError, match=f"has a version v1 of {name} already, and it is another pipeline") as caught:
        service.publish(str(other), name, "v1")
    assert "--tag" in caught.value.next_step
    assert service.publish(str(other), name, "v2") != first
    assert service.publish(str(compiled), name, "v1") == first


def test_refusals_and_silence_are_told_apart(queueing: Any, service: KubeflowService, compiled: Path) -> None:
    with pytest.raises(LaunchError, match="refuses with 400: Parameter nam is not an input"):
        submit(service, request(compiled, parameters={"nam": 1}))
    queueing.fail_next("GET", "/apis/v2beta1/runs", status=503)
    with pytest.raises(ServiceUnreachableError, match="does not answer"):
        service.list_runs(limit=1)
    with pytest.raises(ServiceUnreachableError, match="nothing answers"):
        KubeflowService("http://127.0.0.1:9", experiment="talks")


def test_a_run_that_is_not_there_is_none(service: KubeflowService) -> None:
    assert service.find_run("00000000-0000-4000-8000-000000000000") is None
