"""The sandbox's Vertex AI and Kubeflow run what the services' own clients give them, unchanged."""

import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from google.api_core import exceptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import aiplatform
from google.cloud.aiplatform import PipelineJob, PipelineJobSchedule
from google.cloud.aiplatform_v1.types import PipelineState, PipelineTaskDetail, Schedule
from kfp import Client, compiler, dsl
from kfp.registry import RegistryClient
from part_processes import announcement, start_part

STATE = PipelineState


@dsl.component(base_image="python:test", install_kfp_package=False)
def greet(name: str, seconds: float, fail: bool, page: dsl.Output[dsl.HTML]) -> str:
    import os
    import time
    from pathlib import Path

    Path(page.path).write_text(f"<p>{name}")
    Path(os.environ["MARKER"]).write_text(str(os.getpid()))
    time.sleep(seconds)
    if fail:
        raise ValueError("asked to")
    return f"hello {name}"


@dsl.component(base_image="python:test", install_kfp_package=False)
def answer(greeting: str, count: int) -> str:
    return greeting * count


@dsl.component(base_image="python:test", install_kfp_package=False)
def finish(run: str, status: dsl.PipelineTaskFinalStatus):
    import os
    from pathlib import Path

    Path(os.environ["MARKER"]).with_name("finished").write_text(f"{run} {status.state}")


@dsl.pipeline(name="small-talk")
def small_talk(name: str, count: int = 2, seconds: float = 0.0, fail: bool = False):
    with dsl.ExitHandler(finish(run=f"runs/{dsl.PIPELINE_JOB_NAME_PLACEHOLDER}"), name="talk"):
        greeted = greet(name=name, seconds=seconds, fail=fail)
        answer(greeting=greeted.outputs["Output"], count=count)


class Part:
    """One running process of the part."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.process = start_part("vertex", state)
        self.announced = announcement("vertex", state)
        self.url = self.announced["url"]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=20)

    def call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        return json.loads(urllib.request.urlopen(request).read())

    def advance(self, seconds: float) -> None:
        self.call("/sandbox/clock", {"advance_seconds": seconds})

    def now(self) -> datetime:
        return datetime.fromisoformat(self.call("/sandbox/clock")["now"])


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def part(tmp_path: Path) -> Iterator[Part]:
    state = tmp_path / "state"
    state.mkdir()
    marker = {"environment": {"MARKER": str(tmp_path / "marker")}}
    (state / "sibling.json").write_text(json.dumps(marker))
    running = Part(state)
    # The real client asks for the bucket first; a service that is not there would cost it minutes.
    os.environ["STORAGE_EMULATOR_HOST"] = running.url
    aiplatform.init(
        project="project",
        location="us-central1",
        api_endpoint=running.url,
        api_transport="rest",
        credentials=AnonymousCredentials(),
    )
    yield running
    del os.environ["STORAGE_EMULATOR_HOST"]
    running.stop()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compiled") / "small_talk.yaml"
    compiler.Compiler().compile(small_talk, str(path))
    return path


def job(compiled: Path, job_id: str = "", **parameters: Any) -> PipelineJob:
    return PipelineJob(
        display_name="Small talk",
        template_path=str(compiled),
        job_id=job_id or None,
        pipeline_root="gs://bucket/root",
        parameter_values={"name": "you", **parameters},
        labels={"team": "red"},
    )


def test_a_submitted_job_runs_and_says_how_each_task_ended(part: Part, compiled: Path, tmp_path: Path) -> None:
    submitted = job(compiled, "talk-1", count=3)
    submitted.submit(service_account="runner@project.iam.gserviceaccount.com")
    wait_until(submitted.done)
    found = PipelineJob.get("talk-1")
    assert found.state == STATE.PIPELINE_STATE_SUCCEEDED
    assert found.gca_resource.service_account == "runner@project.iam.gserviceaccount.com"
    assert dict(found.labels) == {"team": "red"}
    states = {task.task_name: task.state.name for task in found.task_details}
    assert states == dict.fromkeys(["talk-1", "exit-handler-1", "greet", "answer", "finish"], "SUCCEEDED")
    assert (tmp_path / "finished").read_text() == "runs/talk-1 SUCCEEDED"


def test_whole_numbers_that_arrive_as_floats_are_whole_numbers_to_the_task(part: Part, compiled: Path) -> None:
    submitted = job(compiled, "talk-2", count=3.0)
    submitted.submit()
    wait_until(submitted.done)
    assert submitted.state == STATE.PIPELINE_STATE_SUCCEEDED
    assert submitted.runtime_config.parameter_values["count"] == 3


def test_a_failed_task_fails_its_job_and_the_exit_handler_still_runs(
    part: Part, compiled: Path, tmp_path: Path
) -> None:
    submitted = job(compiled, "talk-3", fail=True)
    submitted.submit()
    wait_until(submitted.done)
    assert submitted.state == STATE.PIPELINE_STATE_FAILED
    assert "The failed tasks are: [greet]" in submitted.gca_resource.error.message
    states = {task.task_name: task.state for task in submitted.task_details}
    state = PipelineTaskDetail.State
    assert (states["greet"], states["answer"], states["finish"]) == (
        state.FAILED,
        state.NOT_TRIGGERED,
        state.SUCCEEDED,
    )
    assert (tmp_path / "finished").read_text() == "runs/talk-3 FAILED"


def test_cancelling_ends_the_task_and_leaves_the_next_job_its_turn(part: Part, compiled: Path, tmp_path: Path) -> None:
    first, second = job(compiled, "talk-4", seconds=600.0), job(compiled, "talk-5", seconds=600.0)
    first.submit()
    second.submit()
    marker = tmp_path / "marker"
    wait_until(lambda: marker.exists() and marker.read_text())
    task = int(marker.read_text())
    assert second.state == STATE.PIPELINE_STATE_QUEUED
    second.cancel()
    first.cancel()
    wait_until(first.done)
    assert [first.state, second.state] == [STATE.PIPELINE_STATE_CANCELLED] * 2
    assert not Path(f"/proc/{task}").exists()


def test_stopping_the_part_ends_what_runs_and_a_later_one_remembers(part: Part, compiled: Path, tmp_path: Path) -> None:
    submitted = job(compiled, "talk-6", seconds=600.0)
    submitted.submit()
    marker = tmp_path / "marker"
    wait_until(lambda: marker.exists() and marker.read_text())
    os.kill(part.process.pid, signal.SIGKILL)
    part.process.wait()
    wait_until(lambda: not Path(f"/proc/{marker.read_text()}").exists())
    (part.state / "vertex.json").unlink()
    again = Part(part.state)
    try:
        found = again.call("/v1/projects/project/locations/us-central1/pipelineJobs/talk-6")
    finally:
        assert again.stop() == 0
    assert (found["state"], found["displayName"]) == ("PIPELINE_STATE_FAILED", "Small talk")
    assert "was stopped" in found["error"]["message"]


def test_an_id_can_be_used_once(part: Part, compiled: Path) -> None:
    job(compiled, "talk-7", seconds=600.0).submit()
    with pytest.raises(exceptions.Conflict):
        job(compiled, "talk-7").submit()
    with pytest.raises(exceptions.BadRequest):
        PipelineJob.get("talk-7").delete()
    with pytest.raises(exceptions.NotFound):
        PipelineJob.get("talk-8")


def submit_raw(part: Part, job_id: str, body: dict[str, Any]) -> str:
    path = f"/v1/projects/project/locations/us-central1/pipelineJobs?pipelineJobId={job_id}"
    with pytest.raises(urllib.error.HTTPError) as caught:
        part.call(path, body)
    error = json.loads(caught.value.read())["error"]
    assert (caught.value.code, error["status"]) == (400, "INVALID_ARGUMENT")
    return str(error["message"])


def test_what_vertex_would_refuse_is_refused(part: Part, compiled: Path) -> None:
    import yaml

    spec = yaml.safe_load(compiled.read_text())

    def refused(values: dict[str, Any], job_id: str = "job", root: str = "gs://bucket/root", **more: Any) -> str:
        runtime = {"gcsOutputDirectory": root, "parameterValues": values}
        return submit_raw(part, job_id, {"pipelineSpec": spec, "runtimeConfig": runtime, **more})

    assert "is required" in refused({})
    assert "Unknown input parameter: nam" in refused({"name": "you", "nam": "me"})
    assert "not of type NUMBER_INTEGER" in refused({"name": "you", "count": 2.5})
    assert "not of type NUMBER_INTEGER" in refused({"name": "you", "count": True})
    assert "not of type STRING" in refused({"name": 1})
    assert "must match" in refused({"name": "you"}, job_id="Not-Valid")
    assert "must be a Cloud Storage path" in refused({"name": "you"}, root="/tmp")
    assert "label" in refused({"name": "you"}, labels={"Team": "red"})
    assert 'Unknown name "colour"' in refused({"name": "you"}, colour="red")


def test_jobs_are_listed_newest_first_and_by_what_a_filter_names(part: Part, compiled: Path) -> None:
    for number in range(3):
        job(compiled, f"list-{number}", seconds=600.0).submit()
    assert [found.name for found in PipelineJob.list()] == ["list-2", "list-1", "list-0"]
    assert [found.name for found in PipelineJob.list(filter='state="PIPELINE_STATE_QUEUED"')] == ["list-2", "list-1"]
    assert PipelineJob.list(filter="labels.team=blue") == []
    assert len(PipelineJob.list(filter='labels.team=red AND display_name:"Small*"', enable_simple_view=True)) == 3
    assert PipelineJob.list(location="europe-west1") == []


def schedule(compiled: Path, cron: str, **more: Any) -> PipelineJobSchedule:
    created = PipelineJobSchedule(pipeline_job=job(compiled, seconds=600.0), display_name="Nightly")
    created.create(cron=cron, service_account="runner@project.iam.gserviceaccount.com", **more)
    return created


def runs_of(created: PipelineJobSchedule) -> list[PipelineJob]:
    return created.list_jobs(enable_simple_view=False)


def test_a_schedule_fires_at_its_time_with_what_it_was_given(part: Part, compiled: Path) -> None:
    created = schedule(compiled, "TZ=Europe/Berlin 30 4 * * *", max_run_count=1)
    assert created.gca_resource.next_run_time > created.gca_resource.create_time
    assert not runs_of(created)
    part.advance(24 * 3600)
    wait_until(lambda: runs_of(created))
    (run,) = runs_of(created)
    assert run.gca_resource.service_account == "runner@project.iam.gserviceaccount.com"
    assert run.runtime_config.parameter_values["seconds"] == 600
    assert created.state == Schedule.State.COMPLETED


def test_a_schedule_starts_no_more_at_once_than_it_may(part: Part, compiled: Path) -> None:
    passing = schedule(compiled, "0 * * * *")
    waiting = schedule(compiled, "0 * * * *", allow_queueing=True)
    part.advance(3 * 3600)
    wait_until(lambda: runs_of(passing) and runs_of(waiting))
    (first,) = runs_of(waiting)
    first.cancel()
    wait_until(lambda: len(runs_of(waiting)) == 2)
    assert len(runs_of(passing)) == 1
    passing._sync_gca_resource()
    assert "Skipped" in passing.gca_resource.last_scheduled_run_response.run_response


def test_a_paused_schedule_starts_nothing_and_a_resumed_one_goes_on(part: Part, compiled: Path) -> None:
    created = schedule(compiled, "0 * * * *")
    created.pause()
    part.advance(2 * 3600)
    assert created.state == Schedule.State.PAUSED
    created.resume()
    assert created.state == Schedule.State.ACTIVE
    assert not runs_of(created)
    part.advance(3600)
    wait_until(lambda: runs_of(created))


def test_a_schedule_can_catch_up_with_what_it_missed(part: Part, compiled: Path) -> None:
    created = schedule(compiled, "0 * * * *", max_concurrent_run_count=5)
    created.pause()
    part.advance(3 * 3600)
    part.call(f"/v1/{created.resource_name}:resume", {"catchUp": True})
    wait_until(lambda: len(runs_of(created)) >= 3)
    assert len(runs_of(created)) == 3


def test_a_schedule_can_be_changed_listed_and_deleted(part: Part, compiled: Path) -> None:
    created = schedule(compiled, "0 4 * * *")
    created.update(cron="TZ=UTC 15 6 * * *", max_run_count=7)
    found = PipelineJobSchedule.get(created.name)
    assert (found.cron, found.max_run_count) == ("TZ=UTC 15 6 * * *", 7)
    assert (found.gca_resource.next_run_time.hour, found.gca_resource.next_run_time.minute) == (6, 15)
    assert [one.name for one in PipelineJobSchedule.list(filter='display_name="Nightly"')] == [created.name]
    created.delete()
    assert PipelineJobSchedule.list() == []
    with pytest.raises(exceptions.BadRequest, match="minute has '99'"):
        schedule(compiled, "99 * * * *")


@pytest.fixture
def kubeflow(part: Part) -> Client:
    return Client(host=part.url)


def test_kubeflow_runs_what_its_client_submits(kubeflow: Client, compiled: Path, tmp_path: Path) -> None:
    started = kubeflow.create_run_from_pipeline_package(
        str(compiled), arguments={"name": "you", "count": 2}, run_name="first", experiment_name="talks"
    )
    found = kubeflow.wait_for_run_completion(started.run_id, timeout=60, sleep_duration=1)
    assert found.state == "SUCCEEDED"
    assert {task.display_name: task.state for task in found.run_details.task_details}["answer"] == "SUCCEEDED"
    assert (tmp_path / "finished").read_text().startswith("runs/small-talk-")
    listed = kubeflow.list_runs(experiment_id=kubeflow.get_experiment(experiment_name="talks").experiment_id)
    assert [run.run_id for run in listed.runs] == [started.run_id]
    kubeflow.delete_run(started.run_id)
    assert kubeflow.list_runs().runs is None


def test_kubeflow_keeps_versions_of_uploaded_pipelines(kubeflow: Client, compiled: Path) -> None:
    pipeline = kubeflow.upload_pipeline(str(compiled), "talk")
    version = kubeflow.upload_pipeline_version(str(compiled), "talk-2", pipeline_id=pipeline.pipeline_id)
    assert kubeflow.get_pipeline_id("talk") == pipeline.pipeline_id
    names = [found.display_name for found in kubeflow.list_pipeline_versions(pipeline.pipeline_id).pipeline_versions]
    assert names == ["talk", "talk-2"]
    experiment = kubeflow.create_experiment("talks")
    started = kubeflow.run_pipeline(
        experiment.experiment_id,
        "from a version",
        params={"name": "you", "seconds": 600.0},
        pipeline_id=pipeline.pipeline_id,
        version_id=version.pipeline_version_id,
    )
    kubeflow.terminate_run(started.run_id)
    wait_until(lambda: kubeflow.get_run(started.run_id).state == "CANCELED")


def test_kubeflow_recurring_runs_fire_and_can_be_disabled(part: Part, kubeflow: Client, compiled: Path) -> None:
    experiment = kubeflow.create_experiment("nightly")
    created = kubeflow.create_recurring_run(
        experiment.experiment_id,
        "nightly",
        cron_expression="0 30 4 * * *",
        max_concurrency=1,
        no_catchup=True,
        params={"name": "you", "seconds": 600.0},
        pipeline_package_path=str(compiled),
        service_account="runner",
    )
    kubeflow.disable_recurring_run(created.recurring_run_id)
    part.advance(24 * 3600)
    assert kubeflow.get_recurring_run(created.recurring_run_id).status == "DISABLED"
    kubeflow.enable_recurring_run(created.recurring_run_id)
    part.advance(24 * 3600)
    wait_until(lambda: kubeflow.list_runs().runs)
    (run,) = kubeflow.list_runs().runs
    assert (run.recurring_run_id, run.service_account) == (created.recurring_run_id, "runner")
    assert len(kubeflow.list_recurring_runs().recurring_runs) == 1
    kubeflow.delete_recurring_run(created.recurring_run_id)
    assert kubeflow.list_recurring_runs().recurring_runs is None


def test_templates_are_kept_by_hash_and_found_by_tag(part: Part, compiled: Path, tmp_path: Path) -> None:
    registry = RegistryClient(host=f"{part.announced['registry_url']}/project/templates")
    name, version = registry.upload_pipeline(str(compiled), tags=["v1", "latest"])
    assert (name, registry.upload_pipeline(str(compiled))) == ("small-talk", (name, version))
    assert registry.get_tag(name, "v1")["version"].endswith(version)
    fetched = tmp_path / "fetched.yaml"
    registry.download_pipeline(name, tag="latest", file_name=str(fetched))
    assert fetched.read_bytes() == compiled.read_bytes()
    registry.create_tag(name, version, "v2")
    assert len(registry.list_versions(name)[0]["relatedTags"]) == 3
    assert registry.list_packages() == [{"name": "packages/small-talk"}]
