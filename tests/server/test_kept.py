"""What blue_green keeps comes to its end by itself, in the cluster, and only what is still kept."""

import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from streamway.cluster import ClusterConnection, connect
from streamway.errors import ClusterPermissionError, SettingsError
from streamway.server import DeployedServer, promote_revision, read_status, retire_server, role_rules, rollback
from streamway.server.deploy import check_takeover
from streamway.server.endpoint import Endpoint, Revision, read_endpoint, time_text
from streamway.server.stopper import STOPPER_IMAGE, leave_stopper, stopper_manifests
from streamway.settings import ServerSettings

pytestmark = pytest.mark.slow

Deploy = Callable[..., DeployedServer]
OLD, NEW = {"commit_sha": "c" * 40}, {"commit_sha": "d" * 40}
KEPT, ACTIVE = "ccccccc-00000", "ddddddd-00000"
STOPPING = ("deployments/scale", "cronjobs", "roles", "rolebindings")
NOW = datetime(2026, 11, 27, 23, 0, 0, tzinfo=UTC)
# By its schedule it begins in one of the first two minutes after the end of the revision's time.
LONGEST_SECONDS = 150


def labels(revision: str = "") -> dict[str, str]:
    own = {"app.kubernetes.io/instance": "tiny", "app.kubernetes.io/managed-by": "streamway"}
    return own | ({"streamway/revision": revision} if revision else {})


def deployment(revision: str) -> dict[str, Any]:
    """A Deployment like one of ours, whose pods need a node that there is not."""
    container = {"name": "engine", "image": "example.com/engine-double:1"}
    toleration = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    pod = {"containers": [container], "nodeSelector": {"kept": "nowhere"}, "tolerations": [toleration]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": f"tiny-{revision}", "labels": labels(revision), "uid": "made-up"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels(revision)},
            "template": {"metadata": {"labels": labels(revision)}, "spec": pod},
        },
    }


class Kept:
    """An endpoint that serves one revision and keeps another one."""

    def __init__(self, connection: ClusterConnection, namespace: str) -> None:
        self.connection, self.namespace = connection, namespace
        self.until = datetime.now(UTC).replace(microsecond=0)
        for revision in (KEPT, ACTIVE):
            self._create("apps/v1", "deployments", deployment(revision))
        self._create("v1", "services", self._service())

    def _create(self, version: str, plural: str, body: dict[str, Any]) -> dict[str, Any]:
        return self.connection.request("POST", self.path(version, plural), body=body)

    def _service(self) -> dict[str, Any]:
        record = {
            "streamway/previous-revision": KEPT,
            "streamway/keep-previous-until": time_text(self.until),
        }
        spec = {"selector": labels(ACTIVE), "ports": [{"port": 8000}]}
        metadata = {"name": "tiny", "labels": labels(), "annotations": record}
        return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}

    def path(self, version: str, plural: str) -> str:
        return f"/{'api' if version == 'v1' else 'apis'}/{version}/namespaces/{self.namespace}/{plural}"

    def endpoint(self) -> Endpoint:
        return read_endpoint(self.connection, self.namespace, "tiny")

    def leave_stopper(self, connection: ClusterConnection | None = None) -> bool:
        endpoint = self.endpoint()
        kept = endpoint.revisions[KEPT]
        return leave_stopper(connection or self.connection, endpoint, kept, self.until, image=STOPPER_IMAGE)

    def change_service(self, change: dict[str, Any]) -> None:
        path = self.path("v1", "services") + "/tiny"
        self.connection.request("PATCH", path, body=change, content_type="application/merge-patch+json")

    def run_stopper(self) -> str:
        """Have the CronJob's pod run now, as `kubectl create job --from` does; return what it says."""
        cron_job = self.connection.get(self.path("batch/v1", "cronjobs") + f"/stop-{KEPT}")
        body = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "now"}}
        self._create("batch/v1", "jobs", body | {"spec": cron_job["spec"]["jobTemplate"]["spec"]})
        wait_until(lambda: "completionTime" in self.connection.get(self.path("batch/v1", "jobs") + "/now")["status"])
        pods = self.connection.get(self.path("v1", "pods"), {"labelSelector": "batch.kubernetes.io/job-name=now"})
        return self.connection.text(self.path("v1", "pods") + f"/{pods['items'][0]['metadata']['name']}/log")

    def replicas(self) -> dict[str, int]:
        return {name: revision.replicas for name, revision in self.endpoint().revisions.items()}


@pytest.fixture
def kept(connection: ClusterConnection, namespace: str) -> Kept:
    return Kept(connection, namespace)


@pytest.fixture
def two_gpus(cluster: Any) -> None:
    cluster.misfortunes.cause("nodes", count=1, gpus=2)


@pytest.fixture
def a_minute_passes(cluster: Any) -> Iterator[Callable[[], None]]:
    """Moves the clock of schedules on beyond the next date, where that can be done; elsewhere one waits for it."""
    passed: list[int] = []

    def move() -> None:
        if cluster.misfortunes.url:
            passed.append(100)
            cluster.misfortunes.cause("clock", advance_seconds=100)

    yield move
    if passed:
        cluster.misfortunes.cause("clock", advance_seconds=-sum(passed))


def wait_until(test: Callable[[], Any], seconds: float = LONGEST_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < deadline, f"did not happen within {seconds} s"
        time.sleep(0.1)


def stoppers(connection: ClusterConnection, namespace: str) -> list[str]:
    """What there is to stop kept revisions, as `kind/name`."""
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    places = ((rbac, "roles"), (rbac, "rolebindings"), ("/api/v1", "serviceaccounts"), ("/apis/batch/v1", "cronjobs"))
    return [
        f"{plural}/{item['metadata']['name']}"
        for base, plural in places
        for item in connection.get(f"{base}/namespaces/{namespace}/{plural}")["items"]
        if item["metadata"]["name"].startswith("stop-")
    ]


def test_what_is_kept_is_stopped_at_its_time_although_nobody_runs_anything(
    deploy: Deploy,
    two_gpus: None,
    connection: ClusterConnection,
    namespace: str,
    a_minute_passes: Callable[[], None],
) -> None:
    first = deploy(**OLD)
    second = deploy(**NEW, strategy="blue_green", keep_seconds=1)

    a_minute_passes()

    def pods() -> dict[str, int]:
        revisions = read_endpoint(connection, namespace, "tiny").revisions.values()
        return {revision.name: revision.replicas for revision in revisions}

    wait_until(lambda: pods() == {first.revision: 0, second.revision: 1})
    assert read_status(name="tiny", namespace=namespace).keep_previous_until == ""


def test_what_is_gone_back_to_meanwhile_is_left_alone_and_its_stopper_is_gone(
    deploy: Deploy, two_gpus: None, connection: ClusterConnection, namespace: str
) -> None:
    first = deploy(**OLD)
    deploy(**NEW, strategy="blue_green")
    status = read_status(name="tiny", namespace=namespace)
    left = stoppers(connection, namespace)

    rollback(name="tiny", namespace=namespace)

    assert (bool(status.keep_previous_until), status.stops_by_itself) == (True, True)
    kinds = ("roles", "rolebindings", "serviceaccounts", "cronjobs")
    assert left == [f"{kind}/stop-{first.revision}" for kind in kinds]
    assert stoppers(connection, namespace) == []
    assert read_endpoint(connection, namespace, "tiny").revisions[first.revision].replicas == 1


def status_line(kept: Kept) -> str:
    command = [sys.executable, "-c", "from streamway.cli import main; main()", "status", "tiny"]
    done = subprocess.run([*command, "--namespace", kept.namespace], capture_output=True, text=True, check=True)
    return next(line for line in done.stdout.splitlines() if line.startswith("Kept"))


def test_status_says_until_when_a_revision_is_kept_and_how_that_ends(kept: Kept) -> None:
    told = f"Kept      {KEPT} runs on until {time_text(kept.until)}"
    unstopped = "and then holds its GPU until the next rollout: nothing in the cluster stops it"
    assert status_line(kept) == f"{told}, {unstopped}"

    kept.leave_stopper()

    assert status_line(kept) == f"{told}, and is stopped then"


def test_status_says_where_to_look_when_what_was_kept_has_not_been_stopped(kept: Kept) -> None:
    kept.until -= timedelta(minutes=10)
    until = time_text(kept.until)
    kept.change_service({"metadata": {"annotations": {"streamway/keep-previous-until": until}}})
    kept.leave_stopper()

    told = f"Kept      {KEPT} was to run until {until}, and still runs; `kubectl get cronjobs,jobs,events "
    assert status_line(kept) == f"{told}--namespace={kept.namespace}` says why the cluster has not stopped it"


def test_a_held_revision_leaves_the_stopper_that_its_deployment_asked_for(
    deploy: Deploy, two_gpus: None, connection: ClusterConnection, namespace: str
) -> None:
    first = deploy(**OLD)
    held = deploy(**NEW, strategy="blue_green", hold=True, stopper_image="example.com/python:3.13")

    promote_revision(name="tiny", namespace=namespace, revision=held.revision)

    path = f"/apis/batch/v1/namespaces/{namespace}/cronjobs/stop-{first.revision}"
    job = connection.get(path)["spec"]["jobTemplate"]["spec"]
    assert job["template"]["spec"]["containers"][0]["image"] == "example.com/python:3.13"


def test_what_is_kept_for_no_time_is_stopped_at_once(
    deploy: Deploy, two_gpus: None, connection: ClusterConnection, namespace: str
) -> None:
    first = deploy(**OLD)
    deploy(**NEW, strategy="blue_green", keep_seconds=0)

    assert read_endpoint(connection, namespace, "tiny").revisions[first.revision].replicas == 0
    assert stoppers(connection, namespace) == []


def test_a_stopper_is_there_before_traffic_moves(
    deploy: Deploy, two_gpus: None, connection: ClusterConnection, namespace: str, cluster: Any
) -> None:
    first = deploy(**OLD)
    cluster.misfortunes.must_be_possible()
    cluster.misfortunes.cause("denials", message="not now", resource="services", operations=["UPDATE"])

    with pytest.raises(ClusterPermissionError, match="not now"):
        deploy(**NEW, strategy="blue_green")

    assert read_endpoint(connection, namespace, "tiny").active == first.revision
    assert f"cronjobs/stop-{first.revision}" in stoppers(connection, namespace)


def test_an_account_without_the_rights_moves_traffic_and_says_what_that_costs(
    deploy: Deploy,
    two_gpus: None,
    connection: ClusterConnection,
    namespace: str,
    as_account: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    as_account(*role_rules())
    first = deploy(**OLD)

    with caplog.at_level(logging.WARNING, logger="streamway.server"):
        second = deploy(**NEW, strategy="blue_green")

    said = [record.getMessage() for record in caplog.records if "holds its GPU" in record.getMessage()]
    assert len(said) == 1
    assert f"revision {first.revision} is kept until" in said[0]
    assert "create cronjobs.batch" in said[0]
    assert f"kubectl scale deployment tiny-{first.revision} --replicas=0 --namespace={namespace}" in said[0]
    assert read_endpoint(connection, namespace, "tiny").active == second.revision
    assert stoppers(connection, namespace) == []
    assert read_status(name="tiny", namespace=namespace).stops_by_itself is None


@pytest.mark.parametrize("without", STOPPING)
def test_a_right_that_is_missing_is_named_and_nothing_is_left_behind(
    kept: Kept, as_account: Callable[..., None], without: str, caplog: pytest.LogCaptureFixture
) -> None:
    as_account(*[rule for rule in role_rules(blue_green=True) if rule["resources"] != [without]])

    assert not kept.leave_stopper(connect())

    named = {word for word in STOPPING if f"patch {word}." in caplog.text}
    assert named == {without}
    assert [one for one in stoppers(kept.connection, kept.namespace) if one.startswith("cronjobs")] == []
    assert stoppers(kept.connection, kept.namespace) == []


def test_the_documented_rights_are_enough(kept: Kept, as_account: Callable[..., None]) -> None:
    documented = yaml.safe_load((Path(__file__).parents[2] / "docs" / "blue-green-role.yaml").read_text())["rules"]
    assert documented == [rule for rule in role_rules(blue_green=True) if rule["resources"][0] in STOPPING]
    as_account(*role_rules(blue_green=True))

    assert kept.leave_stopper(connect())


def test_a_stopper_stops_what_is_still_only_kept(kept: Kept) -> None:
    kept.leave_stopper()

    assert kept.run_stopper() == "Its time is over, and it was stopped.\n"

    assert kept.replicas() == {KEPT: 0, ACTIVE: 1}


def test_a_stopper_leaves_alone_what_serves_again(kept: Kept) -> None:
    kept.leave_stopper()
    kept.change_service({"spec": {"selector": labels(KEPT)}})

    assert kept.run_stopper() == "It serves again, and is left alone.\n"

    assert kept.replicas() == {KEPT: 1, ACTIVE: 1}


def test_a_stopper_leaves_alone_what_is_kept_for_another_time(kept: Kept) -> None:
    kept.leave_stopper()
    later = time_text(kept.until + timedelta(hours=1))
    kept.change_service({"metadata": {"annotations": {"streamway/keep-previous-until": later}}})

    assert kept.run_stopper() == "It is not kept until now any more, and is left alone.\n"

    assert kept.replicas() == {KEPT: 1, ACTIVE: 1}


def test_a_stopper_may_do_nothing_else(kept: Kept, cluster: Any) -> None:
    kept.leave_stopper()
    account = f"system:serviceaccount:{kept.namespace}:stop-{KEPT}"

    def may(verb: str, group: str, resource: str, name: str, subresource: str = "") -> bool:
        wanted = {"namespace": kept.namespace, "verb": verb, "group": group, "resource": resource, "name": name}
        spec = {"user": account, "resourceAttributes": {**wanted, "subresource": subresource}}
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
        path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
        return bool(kept.connection.request("POST", path, body=review)["status"]["allowed"])

    assert may("patch", "apps", "deployments", f"tiny-{KEPT}", "scale")
    assert not may("patch", "apps", "deployments", f"tiny-{ACTIVE}", "scale")
    assert not may("patch", "apps", "deployments", f"tiny-{KEPT}")
    assert may("get", "", "services", "tiny")
    assert not may("patch", "", "services", "tiny")
    assert not may("get", "", "secrets", "any")


def test_nothing_is_left_when_an_endpoint_is_retired(kept: Kept) -> None:
    kept.leave_stopper()
    assert len(stoppers(kept.connection, kept.namespace)) == 4

    gone = retire_server(name="tiny", namespace=kept.namespace)

    wait_until(lambda: stoppers(kept.connection, kept.namespace) == [])
    assert f"Deployment tiny-{KEPT}" in gone


def made_up() -> tuple[Endpoint, Revision]:
    kept = Revision(name=KEPT, deployment=deployment(KEPT))
    return Endpoint(namespace="models", name="tiny", service=None, revisions={KEPT: kept}), kept


@pytest.mark.parametrize("version", ["1.30", "1.36"])
def test_what_stops_a_revision_follows_the_schemas_and_belongs_to_it(version: str) -> None:
    endpoint, kept = made_up()
    manifests = stopper_manifests(endpoint, kept, NOW, image=STOPPER_IMAGE, earliest=NOW)

    for manifest in manifests:
        kubernetes_validate.validate(manifest, version, strict=True)
        (owner,) = manifest["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["uid"]) == ("Deployment", f"tiny-{KEPT}", "made-up")


def test_what_stops_a_revision_is_no_pod_of_the_endpoint_and_needs_no_gpu() -> None:
    endpoint, kept = made_up()
    cron_job = stopper_manifests(endpoint, kept, NOW, image=STOPPER_IMAGE, earliest=NOW)[-1]
    template = cron_job["spec"]["jobTemplate"]["spec"]["template"]

    assert not template["metadata"]["labels"].keys() & {"app.kubernetes.io/instance", "streamway/revision"}
    (container,) = template["spec"]["containers"]
    assert container["resources"]["limits"].keys() == {"cpu", "memory", "ephemeral-storage"}
    assert "nvidia" not in json.dumps(container["resources"])
    assert not template["spec"]["enableServiceLinks"]
    assert template["spec"]["securityContext"]["runAsNonRoot"]


@pytest.mark.parametrize(
    ("until", "earliest", "schedule"),
    [
        (NOW, NOW, "0 23 27 11 *"),
        (NOW + timedelta(seconds=1), NOW, "1 23 27 11 *"),
        (datetime(2026, 12, 31, 23, 59, 30, tzinfo=UTC), NOW, "0 0 1 1 *"),
        (NOW, NOW + timedelta(seconds=90), "2 23 27 11 *"),
    ],
)
def test_a_revision_is_stopped_in_the_first_minute_that_is_not_too_early_and_can_be_met(
    until: datetime, earliest: datetime, schedule: str
) -> None:
    endpoint, kept = made_up()
    cron_job = stopper_manifests(endpoint, kept, until, image=STOPPER_IMAGE, earliest=earliest)[-1]

    assert cron_job["spec"]["schedule"] == schedule


def test_what_stops_a_revision_runs_in_the_image_that_our_own_is_made_from() -> None:
    dockerfile = (Path(__file__).parents[2] / "Dockerfile").read_text()

    assert f"ARG PYTHON={STOPPER_IMAGE}\n" in dockerfile
    assert ServerSettings(name="tiny").stopper_image == STOPPER_IMAGE


@pytest.mark.parametrize("image", ["", "python", "python:latest", "a registry/python:3.11"])
def test_an_image_without_a_version_is_refused(image: str) -> None:
    with pytest.raises(SettingsError) as caught:
        check_takeover("blue_green", 3600, image)

    assert f"stopper_image is {image!r}" in caught.value.problem


@pytest.mark.parametrize("image", [STOPPER_IMAGE, "localhost:5000/python:3.13", f"python@sha256:{'a' * 64}"])
def test_any_image_with_a_version_may_stop_a_revision(image: str) -> None:
    endpoint, kept = made_up()
    check_takeover("blue_green", 3600, image)

    cron_job = stopper_manifests(endpoint, kept, NOW, image=image, earliest=NOW)[-1]
    (container,) = cron_job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == image
