"""Jobs and CronJobs: pods that end, tries and times that are limited, schedules."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kubernetes import client

from tests.sandbox.cluster.conftest import RunningCluster, job_spec, wait_until

Make = Callable[..., dict[str, Any]]


@pytest.fixture
def jobs(namespace: str) -> str:
    return f"/apis/batch/v1/namespaces/{namespace}/jobs"


@pytest.fixture
def cron_jobs(namespace: str) -> str:
    return f"/apis/batch/v1/namespaces/{namespace}/cronjobs"


@pytest.fixture
def job(cluster: RunningCluster, jobs: str) -> Make:
    """Makes a Job."""
    return lambda **spec: cluster.create(jobs, {"metadata": {"name": "one"}, "spec": job_spec(**spec)})


@pytest.fixture
def daily(cluster: RunningCluster, cron_jobs: str) -> Make:
    """Makes a CronJob for midnight, of one container that does nothing, with what a test changes."""

    def make(**changes: Any) -> dict[str, Any]:
        given = {"schedule": "0 0 * * *", "jobTemplate": {"spec": job_spec(command=["true"])}}
        return cluster.create(cron_jobs, {"metadata": {"name": "daily"}, "spec": given | changes})

    return make


@pytest.fixture
def days_pass(cluster: RunningCluster) -> Iterator[Callable[[], None]]:
    """Moves the schedules' clock on by a day, and back when the test is over."""
    passed: list[int] = []

    def move() -> None:
        passed.append(24 * 3600)
        cluster.knob("clock", {"advance_seconds": passed[-1]})

    yield move
    cluster.knob("clock", {"advance_seconds": -sum(passed)})


def ended(cluster: RunningCluster, path: str) -> dict[str, Any]:
    """Wait until a Job has ended, and give the condition that says how."""
    found: dict[str, Any] = {}

    def has_ended() -> bool:
        found.update(cluster.get(path))
        return any(one["type"] in ("Complete", "Failed") for one in found.get("status", {}).get("conditions", ()))

    wait_until(has_ended, explain=lambda: json.dumps(found.get("status")))
    return dict(found["status"]["conditions"][-1])


def pods(cluster: RunningCluster, namespace: str) -> list[dict[str, Any]]:
    return list(cluster.get(f"/api/v1/namespaces/{namespace}/pods")["items"])


def test_a_job_is_complete_when_its_pod_has_ended_well(
    cluster: RunningCluster, namespace: str, jobs: str, job: Make
) -> None:
    job(command=["echo", "done"])

    assert ended(cluster, f"{jobs}/one")["type"] == "Complete"

    status = client.BatchV1Api(cluster.api).read_namespaced_job("one", namespace).status
    assert (status.succeeded, status.failed, status.active) == (1, None, None)
    assert status.completion_time >= status.start_time
    (pod,) = pods(cluster, namespace)
    assert pod["metadata"]["labels"]["batch.kubernetes.io/job-name"] == "one"
    assert cluster.log(namespace, pod["metadata"]["name"]) == "done\n"


def test_a_pod_that_fails_is_replaced_until_the_limit(
    cluster: RunningCluster, namespace: str, jobs: str, job: Make
) -> None:
    job(command=["false"], limits={"backoffLimit": 1})

    condition = ended(cluster, f"{jobs}/one")

    assert (condition["type"], condition["reason"]) == ("Failed", "BackoffLimitExceeded")
    assert [pod["status"]["phase"] for pod in pods(cluster, namespace)] == ["Failed", "Failed"]


def test_containers_that_are_restarted_count_as_tries(
    cluster: RunningCluster, namespace: str, jobs: str, job: Make
) -> None:
    job(command=["false"], restart_policy="OnFailure", limits={"backoffLimit": 1})

    assert ended(cluster, f"{jobs}/one")["reason"] == "BackoffLimitExceeded"

    wait_until(lambda: pods(cluster, namespace) == [])


def test_a_job_that_takes_too_long_is_ended(cluster: RunningCluster, namespace: str, jobs: str, job: Make) -> None:
    job(command=["sleep", "60"], limits={"activeDeadlineSeconds": 1})

    condition = ended(cluster, f"{jobs}/one")

    assert (condition["type"], condition["reason"]) == ("Failed", "DeadlineExceeded")
    wait_until(lambda: pods(cluster, namespace) == [])


def test_a_job_goes_with_its_pods_when_its_time_after_the_end_is_over(
    cluster: RunningCluster, namespace: str, jobs: str, job: Make
) -> None:
    job(command=["true"], limits={"ttlSecondsAfterFinished": 0})

    wait_until(lambda: cluster.request("GET", f"{jobs}/one").status_code == 404)
    wait_until(lambda: pods(cluster, namespace) == [])
    assert cluster.events(namespace, reason="Completed")


def test_a_job_whose_pod_is_refused_says_why(cluster: RunningCluster, namespace: str, jobs: str) -> None:
    spec = job_spec(command=["true"])
    spec["template"]["spec"]["serviceAccountName"] = "nobody"
    cluster.create(jobs, {"metadata": {"name": "one"}, "spec": spec})

    wait_until(lambda: cluster.events(namespace, reason="FailedCreate"))

    assert 'serviceaccount "nobody" not found' in cluster.events(namespace, reason="FailedCreate")[0]["message"]


def test_a_cron_job_makes_one_job_when_its_time_has_come(
    cluster: RunningCluster, namespace: str, cron_jobs: str, jobs: str, daily: Make, days_pass: Callable[[], None]
) -> None:
    daily()
    assert cluster.get(jobs)["items"] == []

    days_pass()
    wait_until(lambda: cluster.get(jobs)["items"])

    (made,) = cluster.get(jobs)["items"]
    assert ended(cluster, f"{jobs}/{made['metadata']['name']}")["type"] == "Complete"
    wait_until(lambda: "lastSuccessfulTime" in cluster.get(f"{cron_jobs}/daily")["status"])
    assert cluster.get(f"{cron_jobs}/daily")["status"]["lastScheduleTime"].endswith("T00:00:00Z")
    assert len(cluster.get(jobs)["items"]) == 1
    assert "daily" in cluster.kubectl("get", "cronjobs,jobs", "-n", namespace).stdout


@pytest.mark.parametrize(
    "changes",
    [{"suspend": True}, {"schedule": f"0 0 {(datetime.now(UTC) + timedelta(days=10)).day} * *"}],
    ids=["suspended", "later"],
)
def test_a_cron_job_waits_for_its_time(
    cluster: RunningCluster,
    cron_jobs: str,
    jobs: str,
    daily: Make,
    days_pass: Callable[[], None],
    changes: dict[str, Any],
) -> None:
    daily(**changes)
    due = {"schedule": "0 0 * * *", "jobTemplate": {"spec": job_spec(command=["true"])}}
    cluster.create(cron_jobs, {"metadata": {"name": "due"}, "spec": due})

    days_pass()
    wait_until(lambda: cluster.get(jobs)["items"])

    assert [one["metadata"]["name"].rpartition("-")[0] for one in cluster.get(jobs)["items"]] == ["due"]


def test_a_job_that_still_runs_lets_no_other_begin_where_that_is_forbidden(
    cluster: RunningCluster, namespace: str, jobs: str, daily: Make, days_pass: Callable[[], None]
) -> None:
    daily(concurrencyPolicy="Forbid", jobTemplate={"spec": job_spec(command=["sleep", "60"])})
    days_pass()
    wait_until(lambda: cluster.get(jobs)["items"])

    days_pass()
    wait_until(lambda: cluster.events(namespace, reason="JobAlreadyActive"))

    assert len(cluster.get(jobs)["items"]) == 1


def test_only_so_many_jobs_are_remembered(
    cluster: RunningCluster, namespace: str, jobs: str, daily: Make, days_pass: Callable[[], None]
) -> None:
    daily(successfulJobsHistoryLimit=0)
    days_pass()

    # The Job itself may be there too short a time to be seen.
    wait_until(lambda: cluster.events(namespace, reason="SuccessfulDelete"))
    assert cluster.events(namespace, reason="SuccessfulCreate")
    assert cluster.get(jobs)["items"] == []


def test_what_a_cron_job_has_made_goes_with_it(
    cluster: RunningCluster, namespace: str, cron_jobs: str, jobs: str, daily: Make, days_pass: Callable[[], None]
) -> None:
    daily(jobTemplate={"spec": job_spec(command=["sleep", "60"])})
    days_pass()
    wait_until(lambda: pods(cluster, namespace))

    cluster.request("DELETE", f"{cron_jobs}/daily", {"propagationPolicy": "Background"})

    wait_until(lambda: cluster.get(jobs)["items"] == [] and pods(cluster, namespace) == [])
    assert cluster.get(cron_jobs)["items"] == []


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("daily", {"schedule": "every day"}, 'spec.schedule: Invalid value: "every day"'),
        ("daily", {"timeZone": "Mars/Base"}, "spec.schedule"),
        ("daily", {"concurrencyPolicy": "Maybe"}, 'supported values: "Allow", "Forbid", "Replace"'),
        ("d" * 53, {}, "must be no more than 52 characters"),
        (
            "daily",
            {"jobTemplate": {"spec": job_spec(command=["true"], restart_policy="Always")}},
            'spec.jobTemplate.spec.template.spec.restartPolicy: Required value: valid values: "OnFailure", "Never"',
        ),
        (
            "daily",
            {"jobTemplate": {"spec": job_spec(command=["true"], limits={"backoffLimit": -1})}},
            "spec.jobTemplate.spec.backoffLimit: Invalid value: -1",
        ),
    ],
)
def test_a_cron_job_that_cannot_be_is_refused(
    cluster: RunningCluster, cron_jobs: str, name: str, changes: dict[str, Any], words: str
) -> None:
    given = {"schedule": "0 0 * * *", "jobTemplate": {"spec": job_spec(command=["true"])}}

    refused = cluster.request("POST", cron_jobs, {"metadata": {"name": name}, "spec": given | changes})

    assert refused.status_code == 422
    assert words in refused.json()["message"]


def test_what_a_job_runs_cannot_be_changed(cluster: RunningCluster, jobs: str, job: Make) -> None:
    job(command=["sleep", "60"])
    change = {"spec": {"template": {"spec": {"containers": [{"name": "main", "image": "python:3.12"}]}}}}
    headers = {"Content-Type": "application/strategic-merge-patch+json"}

    refused = cluster.request("PATCH", f"{jobs}/one", change, headers=headers)

    assert (refused.status_code, "field is immutable" in refused.text) == (422, True)
