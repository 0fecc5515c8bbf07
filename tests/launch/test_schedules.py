"""A schedule is exactly what was asked for, or it is not there."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from streamway.cron import Cron
from streamway.errors import LaunchError
from streamway.launch.schedules import create_schedule, find_by_name
from streamway.launch.service import RunRequest, ScheduleRequest
from streamway.launch.vertex import VertexService

ACCOUNT = "runner@project.iam.gserviceaccount.com"


def wanted(compiled: Path, *, cron: str = "30 4 * * mon-fri", zone: str = "Europe/Berlin", **run: Any) -> Any:
    given = {
        "pipeline_path": compiled,
        "parameters": {"name": "you", "count": 3, "options": {"deep": [1, 2.5]}},
        "name": "endpoint",
        "pipeline_root": "gs://bucket/root",
        "service_account": ACCOUNT,
    }
    return ScheduleRequest(
        name="nightly",
        cron=Cron.parse(cron, zone=zone),
        run=RunRequest(**{**given, **run}),
        end="2099-01-31T00:00:00+01:00",
    )


@pytest.fixture
def service(queueing: Any) -> VertexService:
    return VertexService(location="us-central1")


def make(service: VertexService, request: ScheduleRequest) -> Any:
    return create_schedule(service, request, location="us-central1")


def test_a_schedule_is_read_back_as_it_was_asked_for(service: VertexService, compiled: Path) -> None:
    made = make(service, wanted(compiled))
    assert (made.name, made.state, made.cron, made.time_zone) == (
        "nightly",
        "active",
        "30 4 * * mon-fri",
        "Europe/Berlin",
    )
    assert (made.location, made.service_account, made.most_at_once) == ("us-central1", ACCOUNT, 1)
    assert made.end == "2099-01-30T23:00:00Z"
    assert made.parameters["count"] == 3
    assert made.next_run
    assert made.page.endswith(f"/schedules/{made.id}")


def test_creating_it_again_leaves_it_alone(service: VertexService, compiled: Path) -> None:
    made = make(service, wanted(compiled))
    assert make(service, wanted(compiled)).id == made.id
    assert len(service.list_schedules()) == 1


def test_another_schedule_of_the_same_name_is_not_replaced(service: VertexService, compiled: Path) -> None:
    made = make(service, wanted(compiled))
    with pytest.raises(LaunchError, match=r"differs: the cron expression is '30 4 .*', not '0 5 ") as caught:
        make(service, wanted(compiled, cron="0 5 * * *"))
    assert f"streamway schedule delete CONFIG {made.name}" in caught.value.next_step
    assert len(service.list_schedules()) == 1


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (
            ("createPipelineJobRequest", "pipelineJob", "serviceAccount"),
            "",
            f"the service account is '', not '{ACCOUNT}'",
        ),
        (("cron",), "TZ=UTC 30 4 * * mon-fri", "the time zone is 'UTC', not 'Europe/Berlin'"),
        (("cron",), "TZ=Europe/Berlin 30 5 * * mon-fri", "the cron expression is '30 5"),
        (("createPipelineJobRequest", "parent"), "projects/p/locations/europe-west1", "the location is 'europe-west1'"),
        (
            ("createPipelineJobRequest", "pipelineJob", "runtimeConfig", "parameterValues"),
            {"name": "you", "count": 4, "odd": 1},
            "the parameter count is 4.*, not 3; the parameter odd was not asked for; the parameter options is missing",
        ),
        (("createPipelineJobRequest", "pipelineJob", "pipelineSpec"), {"root": {}}, "the compiled pipeline is"),
        (("maxConcurrentRunCount",), "5", "the runs at once is 5, not 1"),
        (("endTime",), "2098-01-30T23:00:00Z", "the end is '2098-01-30T23:00:00Z', not '2099-01-31T00:00:00"),
    ],
)
def test_a_schedule_that_comes_back_otherwise_is_deleted_and_told(
    queueing: Any, service: VertexService, compiled: Path, path: tuple[str, ...], value: Any, problem: str
) -> None:
    altered = queueing.call(f"{queueing.place}/schedules/{service.create_schedule(wanted(compiled))}")
    service.delete_schedule(altered["name"].rpartition("/")[2])
    section = altered
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    queueing.fail_next(
        "GET",
        f"{queueing.place}/schedules/*",
        status=200,
        body=json.dumps(altered),
        headers={"Content-Type": "application/json"},
    )
    with pytest.raises(LaunchError, match=problem) as caught:
        make(service, wanted(compiled))
    assert "has been deleted again" in caught.value.problem
    assert service.list_schedules() == ()


def test_a_schedule_that_is_over_does_not_pass_for_a_new_one(
    queueing: Any, service: VertexService, compiled: Path
) -> None:
    made = make(service, wanted(compiled))
    over = queueing.call(f"{queueing.place}/schedules/{made.id}") | {"state": "COMPLETED"}
    queueing.fail_next(
        "GET",
        f"{queueing.place}/schedules",
        status=200,
        body=json.dumps({"schedules": [over]}),
        headers={"Content-Type": "application/json"},
    )
    with pytest.raises(LaunchError, match="is completed: it starts nothing any more") as caught:
        make(service, wanted(compiled))
    assert f"streamway schedule delete CONFIG {made.name}" in caught.value.next_step


@pytest.mark.parametrize(
    ("end", "problem"),
    [
        ("soon", "The end 'soon' of the schedule nightly is not a time; expected a date, a time and an offset"),
        ("2099-01-31T00:00:00", "is not a time"),
        ("2020-01-31T00:00:00Z", "would never fire: it ends at 2020-01-31T00:00:00Z, and its first time is 20"),
    ],
)
def test_an_end_that_makes_no_sense_is_refused_before_anything_is_asked(
    service: VertexService, compiled: Path, end: str, problem: str
) -> None:
    with pytest.raises(LaunchError, match=problem):
        make(service, replace(wanted(compiled), end=end))
    assert service.list_schedules() == ()


def test_a_service_account_that_nobody_asked_for_may_be_any(service: VertexService, compiled: Path) -> None:
    assert make(service, wanted(compiled, service_account="")).service_account == ""


def test_a_schedule_is_paused_resumed_and_deleted(service: VertexService, compiled: Path) -> None:
    made = make(service, wanted(compiled))
    service.pause_schedule(made.id)
    assert find_by_name(service, "nightly").state == "paused"
    service.resume_schedule(made.id, catch_up=True)
    assert find_by_name(service, made.id).state == "active"
    service.delete_schedule(made.id)
    with pytest.raises(LaunchError, match="there are: none at all"):
        find_by_name(service, "nightly")
    with pytest.raises(LaunchError, match="does not exist"):
        service.pause_schedule(made.id)


def test_a_schedule_that_is_not_there_names_those_that_are(service: VertexService, compiled: Path) -> None:
    make(service, wanted(compiled))
    with pytest.raises(LaunchError, match=r"no schedule 'nightlee' .* there are: nightly"):
        find_by_name(service, "nightlee")
