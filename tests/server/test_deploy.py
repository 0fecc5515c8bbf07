"""Deploying a release: what is applied, what is told, and what a second run changes."""

import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from streamway.cluster import ClusterConnection
from streamway.errors import ApplyConflictError, ClusterUnreachableError, RolloutError
from streamway.server import DeployedServer, ServerSpec, render, to_yaml

SHA = "0123456789abcdef0123456789abcdef01234567"
Deploy = Callable[..., DeployedServer]


def versions(connection: ClusterConnection, namespace: str) -> dict[str, str]:
    """Resource versions of everything that a deployment applies."""
    base, apps = f"/api/v1/namespaces/{namespace}", f"/apis/apps/v1/namespaces/{namespace}"
    policy = f"/apis/policy/v1/namespaces/{namespace}"
    paths = [base, f"{base}/services/tiny", f"{base}/serviceaccounts/tiny", f"{policy}/poddisruptionbudgets/tiny"]
    found = {path: connection.get(path)["metadata"]["resourceVersion"] for path in paths}
    for item in connection.get(f"{apps}/deployments")["items"]:
        found[item["metadata"]["name"]] = item["metadata"]["resourceVersion"]
    return found


def test_a_release_is_served_behind_the_endpoints_service(
    deploy: Deploy, connection: ClusterConnection, namespace: str
) -> None:
    deployed = deploy()

    assert deployed.changed
    assert (deployed.service, deployed.port, deployed.served_model_name) == ("tiny", 8000, "org/tiny")
    models = connection.service_proxy(namespace, "tiny", 8000).request("GET", "/v1/models").json()
    assert [entry["id"] for entry in models["data"]] == ["org/tiny"]
    pod = connection.get(f"/api/v1/namespaces/{namespace}/pods/{deployed.pod}")
    assert pod["metadata"]["annotations"]["streamway/release"] == SHA
    assert deployed.node == pod["spec"]["nodeName"]


def test_the_start_is_split_into_its_phases(deploy: Deploy) -> None:
    deployed = deploy(START_SECONDS="1.5")

    phases = {phase.name: phase.seconds for phase in deployed.phases}
    assert list(phases) == [
        "schedule",
        "pull image",
        "prepare pod",
        "start engine",
        "stream weights",
        "initialise engine",
    ]
    assert phases["start engine"] + phases["stream weights"] >= 1.0
    assert deployed.streamer is not None
    assert (deployed.streamer.seconds, round(deployed.streamer.gib_per_second, 3)) == (0.5, 0.501)


def test_the_figures_of_a_start_are_its_phases_and_the_streamers_speed(deploy: Deploy) -> None:
    deployed = deploy()

    assert {name: value for name, value in deployed.figures.items() if name != "streamer_gib_per_second"} == {
        f"{phase.name.replace(' ', '_')}_seconds": phase.seconds for phase in deployed.phases
    }
    assert deployed.streamer is not None
    assert deployed.figures["streamer_gib_per_second"] == pytest.approx(deployed.streamer.gib_per_second, abs=0.001)
    assert deploy().figures == {}


def test_the_wait_tells_what_happens(deploy: Deploy, caplog: pytest.LogCaptureFixture) -> None:
    told: list[tuple[int, int]] = []
    with caplog.at_level(logging.INFO, logger="streamway.server"):
        deploy(on_progress=lambda done, total: told.append((done, total)))

    sentences = " | ".join(caplog.messages)
    for part in ("was scheduled on node", "the engine's container runs", "weights streamed: 0.25 GiB", "ready after"):
        assert part in sentences
    assert told[-1] == (256 * 1024**2, 256 * 1024**2)


def test_what_was_ready_already_is_not_told_as_if_it_happened_now(
    deploy: Deploy, caplog: pytest.LogCaptureFixture
) -> None:
    deploy()
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="streamway.server"):
        deploy()

    assert "already serves this release; nothing changed" in caplog.text
    assert "weights streamed" not in caplog.text


def test_the_same_settings_again_change_nothing(deploy: Deploy, connection: ClusterConnection, namespace: str) -> None:
    first = deploy()
    before = versions(connection, namespace)

    again = deploy()

    assert versions(connection, namespace) == before
    assert not again.changed
    assert (again.revision, again.pod, again.phases) == (first.revision, first.pod, ())


def test_a_dry_run_changes_nothing(deploy: Deploy, connection: ClusterConnection, namespace: str) -> None:
    planned = deploy(dry_run=True)

    assert planned.changed
    assert connection.get(f"/apis/apps/v1/namespaces/{namespace}/deployments")["items"] == []
    assert connection.find(f"/api/v1/namespaces/{namespace}/services/tiny") is None


def test_a_dry_run_of_what_runs_finds_no_change(deploy: Deploy) -> None:
    deploy()

    assert not deploy(dry_run=True).changed


def test_a_dry_run_without_a_namespace_makes_none(deploy: Deploy, connection: ClusterConnection) -> None:
    assert deploy(dry_run=True, namespace="test-not-there").changed
    assert connection.find("/api/v1/namespaces/test-not-there") is None


def test_a_progress_deadline_that_is_over_is_told_with_what_was_still_going_on(
    deploy: Deploy, connection: ClusterConnection, namespace: str
) -> None:
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments"

    def hurry() -> None:
        deadline = time.monotonic() + 20
        while not (found := connection.get(path)["items"]):
            assert time.monotonic() < deadline, "nothing was applied"
            time.sleep(0.05)
        connection.request(
            "PATCH",
            f"{path}/{found[0]['metadata']['name']}",
            body={"spec": {"progressDeadlineSeconds": 1}},
            content_type="application/merge-patch+json",
        )

    with ThreadPoolExecutor(1) as pool:
        hurried = pool.submit(hurry)
        with pytest.raises(RolloutError) as caught:
            deploy(START_SECONDS="300", timeout_seconds=6)
        hurried.result()

    assert caught.value.reason == "progress_deadline"
    assert "has timed out progressing. It was still starting the engine" in caught.value.problem


def test_where_there_is_no_second_gpu_the_way_without_one_is_told(deploy: Deploy) -> None:
    first = deploy()

    with pytest.raises(RolloutError) as caught:
        deploy(commit_sha="f" * 40, strategy="surge")

    assert f"take the GPUs of {first.revision}, with a gap: strategy recreate, or auto." in caught.value.next_step


def test_objects_of_others_are_not_adopted(deploy: Deploy, connection: ClusterConnection, namespace: str) -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "tiny", "labels": {"app.kubernetes.io/managed-by": "Helm"}},
        "spec": {"selector": {"app": "theirs"}, "ports": [{"port": 80}]},
    }
    connection.request("POST", f"/api/v1/namespaces/{namespace}/services", body=service)

    with pytest.raises(ApplyConflictError) as caught:
        deploy()

    assert "Service tiny" in caught.value.problem
    assert "belongs to Helm" in caught.value.problem


def test_a_service_account_that_was_there_is_used_as_it_is(
    deploy: Deploy, connection: ClusterConnection, namespace: str
) -> None:
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "reader"}}
    version = connection.request("POST", path, body=account)["metadata"]["resourceVersion"]

    deployed = deploy(service_account="reader")

    assert connection.get(f"{path}/reader")["metadata"]["resourceVersion"] == version
    pod = connection.get(f"/api/v1/namespaces/{namespace}/pods/{deployed.pod}")
    assert pod["spec"]["serviceAccountName"] == "reader"


def test_a_conflict_names_the_other_manager_and_is_not_forced(
    deploy: Deploy, connection: ClusterConnection, namespace: str
) -> None:
    deployed = deploy()
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments/tiny-{deployed.revision}"
    theirs = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": f"tiny-{deployed.revision}"},
        "spec": {"progressDeadlineSeconds": 77},
    }
    connection.request(
        "PATCH",
        path,
        query={"fieldManager": "their-tool", "force": True},
        body=theirs,
        content_type="application/apply-patch+yaml",
    )

    with pytest.raises(ApplyConflictError) as caught:
        deploy()

    assert '"their-tool"' in caught.value.problem
    assert "progressDeadlineSeconds" in caught.value.problem
    assert connection.get(path)["spec"]["progressDeadlineSeconds"] == 77
    deploy(force=True)
    assert connection.get(path)["spec"]["progressDeadlineSeconds"] != 77


@pytest.mark.parametrize("theirs", [0, 2])
def test_a_number_of_pods_that_someone_else_has_set_is_not_undone(
    deploy: Deploy, connection: ClusterConnection, namespace: str, theirs: int
) -> None:
    deployed = deploy()
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments/tiny-{deployed.revision}"
    connection.request(
        "PATCH",
        f"{path}/scale",
        query={"fieldManager": "their-tool"},
        body={"spec": {"replicas": theirs}},
        content_type="application/merge-patch+json",
    )

    with pytest.raises(ApplyConflictError) as caught:
        deploy()

    assert f'.spec.replicas: set to {theirs} by "their-tool", expected 1' in caught.value.problem
    assert connection.get(path)["spec"]["replicas"] == theirs
    deploy(force=True)
    assert connection.get(path)["spec"]["replicas"] == 1
    deploy()


def test_a_number_of_pods_of_our_own_is_changed(
    deploy: Deploy, cluster: Any, connection: ClusterConnection, namespace: str
) -> None:
    cluster.misfortunes.cause("nodes", count=1, gpus=2)
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments/tiny-{deploy().revision}"

    for replicas in (2, 1):
        assert deploy(replicas=replicas).changed
        assert connection.get(path)["spec"]["replicas"] == replicas


def test_a_namespace_is_made_where_there_is_none(deploy: Deploy, connection: ClusterConnection, namespace: str) -> None:
    made = f"{namespace}-more"
    try:
        deploy(namespace=made)
        labels = connection.get(f"/api/v1/namespaces/{made}")["metadata"]["labels"]
        assert labels["app.kubernetes.io/managed-by"] == "streamway"
    finally:
        connection.request("DELETE", f"/api/v1/namespaces/{made}")


def test_a_namespace_that_was_there_is_not_labelled(
    deploy: Deploy, connection: ClusterConnection, namespace: str
) -> None:
    deploy()

    labels = connection.get(f"/api/v1/namespaces/{namespace}")["metadata"].get("labels", {})
    assert "app.kubernetes.io/managed-by" not in labels


def test_a_cluster_that_is_not_there_is_told_at_once(
    deploy: Deploy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: Any
) -> None:
    config = yaml.safe_load(Path(cluster.kubeconfig).read_text())
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:9"
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))

    with pytest.raises(ClusterUnreachableError) as caught:
        deploy()

    assert "https://127.0.0.1:9" in caught.value.problem


def test_kubectl_can_apply_what_is_rendered_and_a_run_then_changes_nothing(
    deploy: Deploy, settings: dict[str, Any], namespace: str
) -> None:
    fields = ServerSpec.__dataclass_fields__
    spec = ServerSpec(**{name: value for name, value in settings.items() if name in fields})
    manifests = [manifest for manifest in render(spec) if manifest["kind"] != "Namespace"]
    kubectl = shutil.which("kubectl", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert kubectl is not None
    apply = [kubectl, "apply", "--server-side", "--field-manager=streamway", "-f", "-"]
    subprocess.run(apply, input=to_yaml(manifests), text=True, check=True, capture_output=True)
    wait = [kubectl, "rollout", "status", "--timeout=60s", f"--namespace={namespace}", "deployment"]
    subprocess.run([*wait, manifests[2]["metadata"]["name"]], check=True, capture_output=True)

    deployed = deploy()

    assert deployed.phases == ()
    assert manifests[2]["metadata"]["name"] == f"tiny-{deployed.revision}"
