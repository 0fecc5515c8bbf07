"""Rollouts that fail: each ends the wait at once, with the cluster's own words and a next step."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from streamway.cluster import ClusterConnection, resolve_zones
from streamway.errors import ClusterError, ClusterPermissionError, RolloutError
from streamway.server import DeployedServer, Resources, check_permissions, retire_server, role_rules

MIB = 1024**2
Deploy = Callable[..., DeployedServer]


def failing(deploy: Deploy, **changes: Any) -> RolloutError:
    with pytest.raises(RolloutError) as caught:
        deploy(**changes)
    assert caught.value.next_step
    assert "Nothing serves: it was the first revision" in caught.value.problem
    return caught.value


def test_an_engine_that_dies_at_start_shows_its_last_lines(deploy: Deploy) -> None:
    error = failing(deploy, CRASH="ValueError: the model is upside down")

    assert error.reason == "crash_loop"
    assert "exits with code 1" in error.problem
    assert "    ValueError: the model is upside down\nNothing serves" in error.problem


def test_an_option_that_the_engine_does_not_take_ends_the_wait_at_its_first_exit(deploy: Deploy) -> None:
    error = failing(deploy, engine_arguments=["--an-option-of-tomorrow"])

    assert error.reason == "crash_loop"
    assert "unrecognized arguments: --an-option-of-tomorrow" in error.problem
    assert "0 restarts" in error.problem or "1 restart " in error.problem
    assert "engine_arguments" in error.next_step


def test_known_last_words_come_with_advice(deploy: Deploy) -> None:
    error = failing(deploy, CRASH="RuntimeError: Could not receive runai_response: b'File access error'")

    assert "roles/storage.objectViewer" in error.next_step


def test_an_image_that_no_node_can_pull_is_named(deploy: Deploy) -> None:
    error = failing(deploy, image="example.com/no-such-engine:1")

    assert error.reason == "image_pull"
    assert "example.com/no-such-engine:1" in error.problem
    assert "not found" in error.problem


def test_a_zone_without_nodes_is_told_in_the_schedulers_words(deploy: Deploy) -> None:
    # Of the cluster's region, where a pool might have nodes another day.
    error = failing(deploy, zone=resolve_zones(["cluster"])[0][:-1] + "z")

    assert error.reason == "unschedulable"
    assert "didn't match Pod's node affinity/selector" in error.problem
    assert "nodes are available" in error.problem


def test_more_gpus_than_a_node_has_are_told(deploy: Deploy) -> None:
    error = failing(deploy, gpu_count=8)

    assert error.reason == "unschedulable"
    assert "Insufficient nvidia.com/gpu" in error.problem
    assert "The autoscaler will not add one: pod didn't trigger scale-up: " in error.problem


def test_a_node_that_is_being_added_is_waited_for_and_told(
    deploy: Deploy, connection: ClusterConnection, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="streamway.server")
    words = "pod triggered scale-up: [{gpu-pool 0->1 (max: 3)}]"
    with ThreadPoolExecutor(1) as pool:
        rollout = pool.submit(failing, deploy, gpu_count=8, unschedulable_seconds=2, timeout_seconds=5)
        said_of_pod(connection, namespace, "TriggeredScaleUp", words)
        error = rollout.result(60)

    # Without that event it would have ended when no node was found.
    assert "was not ready within 5 s" in error.problem
    assert f"A node is being added for the pod: {words}" in error.problem
    assert f"A node is being added for the pod: {words}" in caplog.text


def test_a_quota_of_the_project_ends_the_wait_in_the_autoscalers_words(
    deploy: Deploy, connection: ClusterConnection, namespace: str
) -> None:
    words = (
        "Node scale up in zones us-central1-a associated with this pod failed: GCE quota exceeded. "
        "Pod is at risk of not being scheduled."
    )
    with ThreadPoolExecutor(1) as pool:
        rollout = pool.submit(failing, deploy, gpu_count=8, unschedulable_seconds=60)
        said_of_pod(connection, namespace, "FailedScaleUp", words)
        error = rollout.result(60)

    assert error.reason == "quota"
    assert f"the autoscaler cannot add one: {words}" in error.problem
    assert "Ask for more GPU quota in this region" in error.next_step


def test_memory_beyond_the_limit_is_told_with_the_limit(deploy: Deploy) -> None:
    small = Resources(cpus=0.1, memory_bytes=64 * MIB, shm_bytes=1 * MIB, ephemeral_bytes=64 * MIB)
    error = failing(deploy, HOARD_MIB="300", resources=small)

    assert error.reason == "out_of_memory"
    assert "memory in server.pod" in error.next_step
    assert "OOMKilled; its limit is 64Mi" in error.problem


def test_an_engine_that_never_gets_healthy_is_told_with_its_probe(deploy: Deploy) -> None:
    error = failing(deploy, UNHEALTHY="1", startup_seconds=4)

    assert error.reason == "failing_probe"
    assert "Startup probe failed" in error.problem
    assert "503" in error.problem


def test_a_deadline_says_what_was_still_going_on(deploy: Deploy) -> None:
    error = failing(deploy, START_SECONDS="300", timeout_seconds=5)

    assert "was not ready within 5 s" in error.problem


def test_a_quota_of_the_namespace_is_told_once(
    deploy: Deploy, connection: ClusterConnection, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="streamway.server")
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "no-gpus"},
        "spec": {"hard": {"requests.nvidia.com/gpu": "0"}},
    }
    connection.request("POST", f"/api/v1/namespaces/{namespace}/resourcequotas", body=quota)

    error = failing(deploy)

    assert error.reason == "quota"
    assert "exceeded quota: no-gpus" in error.problem
    # The pod is tried again and again, each time under another name.
    assert caplog.text.count("The namespace's quota does not allow the pod") == 1


@pytest.mark.slow
def test_a_volume_that_cannot_be_mounted_is_told_in_the_nodes_words(
    deploy: Deploy, connection: ClusterConnection, namespace: str
) -> None:
    volumes = [{"name": "models", "secret": {"secretName": "no-such-secret"}}]
    with ThreadPoolExecutor(1) as pool:
        rollout = pool.submit(failing, deploy, START_SECONDS="60")
        await_pod(connection, namespace)
        base = f"/apis/apps/v1/namespaces/{namespace}/deployments"
        (deployment,) = connection.get(base)["items"]
        connection.request(
            "PATCH",
            f"{base}/{deployment['metadata']['name']}",
            body={"spec": {"template": {"spec": {"volumes": volumes}}}},
            content_type="application/strategic-merge-patch+json",
        )
        error = rollout.result(60)

    assert error.reason == "mount"
    assert 'MountVolume.SetUp failed for volume "models" : secret "no-such-secret" not found' in error.problem


def await_pod(connection: ClusterConnection, namespace: str) -> dict[str, Any]:
    deadline = time.monotonic() + 20
    while not (pods := connection.get(f"/api/v1/namespaces/{namespace}/pods")["items"]):
        assert time.monotonic() < deadline, "no pod came"
        time.sleep(0.1)
    return dict(pods[0])


def said_of_pod(connection: ClusterConnection, namespace: str, reason: str, words: str) -> None:
    """Say something of the pod that is coming, as the node or the autoscaler would."""
    pod = await_pod(connection, namespace)
    names = {key: pod["metadata"][key] for key in ("name", "namespace", "uid")}
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "told", "namespace": namespace},
        "involvedObject": {"apiVersion": "v1", "kind": "Pod", **names},
        "reason": reason,
        "message": words,
        "type": "Normal" if reason == "TriggeredScaleUp" else "Warning",
    }
    connection.request("POST", f"/api/v1/namespaces/{namespace}/events", body=event)


def test_an_admission_webhook_that_refuses_is_quoted(deploy: Deploy, cluster: Any, namespace: str) -> None:
    cluster.misfortunes.cause(
        "denials", message="GPUs are for the day", resource="deployments.apps", namespace=namespace
    )

    with pytest.raises(ClusterPermissionError) as caught:
        deploy()

    assert "GPUs are for the day" in caught.value.problem
    assert "An admission rule" in caught.value.problem


def test_a_webhook_that_refuses_the_pod_is_quoted(deploy: Deploy, cluster: Any, namespace: str) -> None:
    cluster.misfortunes.cause("denials", message="no GPU pods here", resource="pods", namespace=namespace)

    error = failing(deploy)

    assert error.reason == "admission"
    assert "no GPU pods here" in error.problem


def test_a_missing_right_names_verb_and_resource(
    deploy: Deploy, connection: ClusterConnection, namespace: str, as_account: Callable[..., None]
) -> None:
    as_account(
        {"apiGroups": [""], "resources": ["namespaces", "serviceaccounts", "services"], "verbs": ["*"]},
        {"apiGroups": ["policy"], "resources": ["*"], "verbs": ["*"]},
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["*"]},
        {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get", "list", "watch"]},
    )

    with pytest.raises(ClusterPermissionError) as caught:
        deploy()

    assert 'cannot patch resource "deployments" in API group "apps"' in caught.value.problem
    assert "--verb=patch --resource=deployments.apps" in caught.value.next_step


def test_a_documented_role_is_enough(deploy: Deploy, as_account: Callable[..., None], namespace: str) -> None:
    as_account(*role_rules())

    assert check_permissions(namespace=namespace) == ()
    deploy()
    deploy(commit_sha="f" * 40, strategy="recreate")
    assert retire_server(name="tiny", namespace=namespace)


def test_missing_rights_are_known_before_anything_is_applied(as_account: Callable[..., None], namespace: str) -> None:
    as_account(*[rule for rule in role_rules() if rule["resources"] != ["leases"]])

    with pytest.raises(ClusterPermissionError) as caught:
        check_permissions(namespace=namespace)

    verbs = ("get", "create", "update", "delete")
    assert f"we may not: {', '.join(f'{verb} leases.coordination.k8s.io' for verb in verbs)}." in caught.value.problem


@pytest.mark.parametrize(
    ("without", "words"),
    [
        ("pods/exec", "get pods/exec, create pods/exec would help to capture warm-start kits"),
        ("configmaps", "delete configmaps would help to tell later pods which warm-start kit to restore"),
        ("replicasets", "list replicasets.apps, watch replicasets.apps would help to say why pods are not created"),
        ("events", "list events, watch events would help to quote what the scheduler"),
    ],
)
def test_rights_that_only_help_are_named_and_nothing_fails(
    as_account: Callable[..., None], namespace: str, without: str, words: str
) -> None:
    as_account(*[rule for rule in role_rules(warm_start=True) if rule["resources"] != [without]])

    (said,) = check_permissions(namespace=namespace, warm_start=True)

    assert words in said


def test_the_role_for_warm_starts_leaves_nothing_to_wish_for(as_account: Callable[..., None], namespace: str) -> None:
    as_account(*role_rules(warm_start=True))

    assert check_permissions(namespace=namespace, warm_start=True) == ()


def test_without_warm_starts_nobody_is_asked_for_their_rights(as_account: Callable[..., None], namespace: str) -> None:
    as_account(*role_rules())

    assert check_permissions(namespace=namespace) == ()
    assert len(check_permissions(namespace=namespace, warm_start=True)) == 2


def test_the_documented_warm_start_role_is_what_is_asked_for() -> None:
    documented = yaml.safe_load((Path(__file__).parents[2] / "docs" / "warm-start-role.yaml").read_text())["rules"]
    asked = [rule for rule in role_rules(warm_start=True) if rule["resources"] in (["pods/exec"], ["configmaps"])]

    assert [rule for rule in documented if rule["resources"] != ["replicasets"]] == asked


def test_a_namespace_that_is_being_deleted_is_told(
    deploy: Deploy, connection: ClusterConnection, namespace: str
) -> None:
    path = f"/api/v1/namespaces/{namespace}"
    held = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "held", "finalizers": ["example.com/hold"]}}
    connection.request("POST", f"{path}/configmaps", body=held)
    connection.request("DELETE", path)
    try:
        with pytest.raises(ClusterError) as caught:
            deploy()
        assert f"The namespace {namespace} is being deleted" in caught.value.problem
    finally:
        release = {"metadata": {"finalizers": None}}
        connection.request(
            "PATCH", f"{path}/configmaps/held", body=release, content_type="application/merge-patch+json"
        )


def test_an_eviction_is_told(deploy: Deploy, cluster: Any, connection: ClusterConnection, namespace: str) -> None:
    cluster.misfortunes.must_be_possible()
    words = "The node was low on resource: ephemeral-storage."

    error = failing(
        lambda **changes: _meanwhile(
            connection,
            namespace,
            lambda pod: cluster.misfortunes.cause(f"pods/{namespace}/{pod}/evict", message=words),
            lambda: deploy(**changes),
        ),
        START_SECONDS="60",
    )

    assert error.reason == "evicted"
    assert words in error.problem


def test_a_preempted_pod_is_replaced_and_waited_for(
    deploy: Deploy, cluster: Any, connection: ClusterConnection, namespace: str
) -> None:
    deployed = _meanwhile(
        connection,
        namespace,
        lambda pod: cluster.misfortunes.cause(f"pods/{namespace}/{pod}/preempt"),
        lambda: deploy(START_SECONDS="2"),
    )

    assert deployed.changed


def test_a_process_that_is_killed_once_is_waited_for(
    deploy: Deploy, cluster: Any, connection: ClusterConnection, namespace: str
) -> None:
    """One exit may be an accident."""
    deployed = _meanwhile(
        connection,
        namespace,
        lambda pod: cluster.misfortunes.cause(f"pods/{namespace}/{pod}/kill", container="engine", signal="SIGKILL"),
        lambda: deploy(START_SECONDS="3"),
        running=True,
    )

    assert deployed.restarts == 1


@pytest.mark.parametrize("how", ["watches/drop", "watches/expire"])
def test_a_wait_survives_its_watches(
    deploy: Deploy, cluster: Any, connection: ClusterConnection, namespace: str, how: str
) -> None:
    deployed = _meanwhile(
        connection,
        namespace,
        lambda _pod: cluster.misfortunes.cause(how),
        lambda: deploy(START_SECONDS="2"),
    )

    assert deployed.changed


def _meanwhile(
    connection: ClusterConnection,
    namespace: str,
    act: Callable[[str], Any],
    work: Callable[[], DeployedServer],
    *,
    running: bool = False,
) -> DeployedServer:
    """Do something to the first pod that appears while some work goes on."""
    import threading

    failures: list[BaseException] = []

    def watch() -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            for pod in connection.get(f"/api/v1/namespaces/{namespace}/pods")["items"]:
                statuses = pod.get("status", {}).get("containerStatuses") or [{}]
                if pod["spec"].get("nodeName") and (not running or "running" in (statuses[0].get("state") or {})):
                    try:
                        act(pod["metadata"]["name"])
                    except BaseException as error:
                        failures.append(error)
                    return
            time.sleep(0.1)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        return work()
    finally:
        thread.join()
        if failures:
            raise failures[0]
