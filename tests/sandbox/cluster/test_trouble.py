"""Trouble: what goes wrong in clusters, in the words in which it goes wrong."""

from collections.abc import Iterator

import pytest
import requests

from tests.sandbox.cluster.conftest import RunningCluster, deployment_manifest, is_ready, pod_manifest, wait_until

_DEPLOYMENTS = "/apis/apps/v1/namespaces/{}/deployments"
_FOREVER = ["sleep", "600"]
_MERGE = {"Content-Type": "application/merge-patch+json"}


@pytest.fixture(autouse=True)
def no_faults_left(cluster: RunningCluster) -> Iterator[None]:
    yield
    cluster.knob("faults", method="DELETE")
    cluster.knob("nodes", {"count": 1, "gpus": 8})


def quota(cluster: RunningCluster, namespace: str, **hard: str) -> str:
    path = f"/api/v1/namespaces/{namespace}/resourcequotas"
    limits = {key.replace("__", "/").replace("_", "."): value for key, value in hard.items()}
    cluster.create(path, {"metadata": {"name": "q"}, "spec": {"hard": limits}})
    return f"{path}/q"


def test_quota_refuses_a_pod(cluster: RunningCluster, namespace: str) -> None:
    path = quota(cluster, namespace, **{"requests_nvidia.com__gpu": "1", "pods": "5"})
    gpu = {"limits": {"nvidia.com/gpu": "1"}}
    cluster.run_pod(namespace, "a", command=_FOREVER, resources=gpu)
    wait_until(lambda: cluster.get(path)["status"].get("used", {}).get("pods") == "1")
    response = cluster.request(
        "POST", f"/api/v1/namespaces/{namespace}/pods", pod_manifest("b", command=_FOREVER, resources=gpu)
    )
    assert (response.status_code, response.json()["reason"]) == (403, "Forbidden")
    assert response.json()["message"] == (
        'pods "b" is forbidden: exceeded quota: q, requested: requests.nvidia.com/gpu=1,'
        " used: requests.nvidia.com/gpu=1, limited: requests.nvidia.com/gpu=1"
    )


def test_quota_wants_limits_to_be_stated(cluster: RunningCluster, namespace: str) -> None:
    quota(cluster, namespace, limits_memory="1Gi")
    response = cluster.request("POST", f"/api/v1/namespaces/{namespace}/pods", pod_manifest("p", command=_FOREVER))
    assert response.json()["message"] == (
        'pods "p" is forbidden: failed quota: q: must specify limits.memory for: main'
    )


def test_quota_shows_in_a_deployment(cluster: RunningCluster, namespace: str) -> None:
    quota(cluster, namespace, pods="0")
    cluster.apply(deployment_manifest("web", namespace, command=_FOREVER))
    path = _DEPLOYMENTS.format(namespace) + "/web"

    def failure() -> dict:
        conditions = cluster.get(path).get("status", {}).get("conditions", [])
        return next((one for one in conditions if one["type"] == "ReplicaFailure"), {})

    wait_until(failure)
    assert failure()["reason"] == "FailedCreate"
    assert "exceeded quota: q, requested: pods=1, used: pods=0, limited: pods=0" in failure()["message"]
    assert cluster.events(namespace, reason="FailedCreate")[0]["message"].startswith('Error creating: pods "web-')
    cluster.request(
        "PATCH", f"/api/v1/namespaces/{namespace}/resourcequotas/q", {"spec": {"hard": {"pods": "9"}}}, headers=_MERGE
    )
    wait_until(lambda: cluster.get(path)["status"].get("availableReplicas") == 1)
    assert failure() == {}


def test_webhook_denies(cluster: RunningCluster, namespace: str) -> None:
    cluster.knob(
        "denials", {"message": "images must be signed", "resource": "deployments.apps", "webhook": "sign.example.com"}
    )
    manifest = deployment_manifest("web", namespace, command=_FOREVER)
    response = cluster.request("POST", _DEPLOYMENTS.format(namespace), manifest)
    assert response.status_code == 403
    assert response.json()["message"] == (
        'admission webhook "sign.example.com" denied the request: images must be signed'
    )


def test_missing_permission_is_named(cluster: RunningCluster, namespace: str) -> None:
    cluster.knob("prohibitions", {"verb": "patch", "resource": "deployments.apps", "namespace": namespace})
    done = cluster.kubectl("scale", "deploy/web", "-n", namespace, "--replicas=1", check=False)
    assert done.returncode != 0
    path = f"{_DEPLOYMENTS.format(namespace)}/web?fieldManager=x"
    headers = {"Content-Type": "application/apply-patch+yaml"}
    response = cluster.request("PATCH", path, deployment_manifest("web", namespace), headers=headers)
    assert response.status_code == 403
    assert response.json()["message"] == (
        'deployments.apps "web" is forbidden: User "kubernetes-admin" cannot patch resource "deployments" in API group'
        f' "apps" in the namespace "{namespace}"'
    )


def test_eviction_fails_a_pod_and_is_replaced(cluster: RunningCluster, namespace: str) -> None:
    cluster.apply(deployment_manifest("web", namespace, command=_FOREVER))
    cluster.kubectl("rollout", "status", "deploy/web", "-n", namespace, "--timeout=20s")
    pods = f"/api/v1/namespaces/{namespace}/pods"
    name = cluster.get(pods)["items"][0]["metadata"]["name"]
    cluster.knob(f"pods/{namespace}/{name}/evict", {"message": "The node was low on resource: ephemeral-storage."})
    pod = cluster.wait_pod(namespace, name, lambda pod: pod["status"]["phase"] == "Failed")
    assert pod["status"]["reason"] == "Evicted"
    assert pod["status"]["message"] == "The node was low on resource: ephemeral-storage."
    assert cluster.events(namespace, reason="Evicted")[0]["type"] == "Warning"
    wait_until(lambda: sum(is_ready(pod) for pod in cluster.get(pods)["items"]) == 1)


def test_preemption_on_order(cluster: RunningCluster, namespace: str) -> None:
    cluster.run_pod(namespace, "p", command=_FOREVER)
    cluster.wait_pod(namespace, "p", is_ready)
    cluster.knob(f"pods/{namespace}/p/preempt")
    assert "on node gke-sandbox" in cluster.events(namespace, reason="Preempted")[0]["message"]
    wait_until(lambda: cluster.request("GET", f"/api/v1/namespaces/{namespace}/pods/p").status_code == 404)


def test_higher_priority_takes_the_place(cluster: RunningCluster, namespace: str) -> None:
    body = {"metadata": {"name": "urgent"}, "value": 1000}
    cluster.create("/apis/scheduling.k8s.io/v1/priorityclasses", body)
    gpu = {"limits": {"nvidia.com/gpu": "8"}}
    cluster.run_pod(namespace, "low", command=_FOREVER, resources=gpu)
    cluster.wait_pod(namespace, "low", is_ready)
    manifest = pod_manifest("high", command=_FOREVER, resources=gpu)
    manifest["spec"]["priorityClassName"] = "urgent"
    cluster.create(f"/api/v1/namespaces/{namespace}/pods", manifest)
    cluster.wait_pod(namespace, "high", is_ready)
    assert cluster.request("GET", f"/api/v1/namespaces/{namespace}/pods/low").status_code == 404
    assert cluster.events(namespace, reason="Preempted")[0]["message"].startswith("Preempted by pod ")


def test_process_that_dies_is_restarted(cluster: RunningCluster, namespace: str) -> None:
    cluster.run_pod(namespace, "p", command=_FOREVER)
    for signal, reason, code in (("SIGKILL", "Error", 137), ("OOM", "OOMKilled", 137), ("SIGTERM", "Error", 143)):
        cluster.wait_pod(namespace, "p", lambda pod: "running" in pod["status"]["containerStatuses"][0]["state"])
        before = cluster.pod(namespace, "p")["status"]["containerStatuses"][0]["restartCount"]
        cluster.knob(f"pods/{namespace}/p/kill", {"signal": signal})
        pod = cluster.wait_pod(
            namespace, "p", lambda pod, before=before: pod["status"]["containerStatuses"][0]["restartCount"] > before
        )
        ended = pod["status"]["containerStatuses"][0]["lastState"]["terminated"]
        assert (ended["reason"], ended["exitCode"]) == (reason, code)


def test_cordoned_node_takes_nothing(cluster: RunningCluster, namespace: str) -> None:
    cluster.kubectl("cordon", "gke-sandbox-l4-pool-0000")
    try:
        cluster.run_pod(namespace, "p", command=_FOREVER)
        wait_until(lambda: cluster.events(namespace, reason="FailedScheduling"))
        text = cluster.events(namespace, reason="FailedScheduling")[0]["message"]
        assert text.startswith("0/1 nodes are available: 1 node(s) were unschedulable.")
        assert "SchedulingDisabled" in cluster.kubectl("get", "nodes").stdout
    finally:
        cluster.kubectl("uncordon", "gke-sandbox-l4-pool-0000")
    cluster.wait_pod(namespace, "p", is_ready)


def test_more_nodes_and_accelerators_make_room(cluster: RunningCluster, namespace: str) -> None:
    gpu = {"limits": {"nvidia.com/gpu": "8"}}
    cluster.run_pod(namespace, "a", command=_FOREVER, resources=gpu)
    cluster.wait_pod(namespace, "a", is_ready)
    cluster.run_pod(namespace, "b", command=_FOREVER, resources=gpu)
    wait_until(lambda: cluster.events(namespace, reason="FailedScheduling"))
    cluster.knob("nodes", {"count": 2})
    pod = cluster.wait_pod(namespace, "b", is_ready)
    assert pod["spec"]["nodeName"] == "gke-sandbox-l4-pool-0001"
    cluster.knob("nodes", {"count": 1})
    wait_until(lambda: cluster.request("GET", f"/api/v1/namespaces/{namespace}/pods/b").status_code == 404)
    assert len(cluster.get("/api/v1/nodes")["items"]) == 1


def test_unknown_service_account_is_named(cluster: RunningCluster, namespace: str) -> None:
    manifest = pod_manifest("p", command=_FOREVER, serviceAccountName="none")
    response = cluster.request("POST", f"/api/v1/namespaces/{namespace}/pods", manifest)
    assert response.status_code == 403
    assert (
        f'error looking up service account {namespace}/none: serviceaccount "none" not found'
        in response.text.replace("\\", "")
    )


def test_outage_breaks_connections_and_passes(cluster: RunningCluster) -> None:
    cluster.knob("outage", {"seconds": 60})
    with pytest.raises(requests.ConnectionError):
        cluster.request("GET", "/api/v1/nodes")
    cluster.knob("faults", method="DELETE")
    assert cluster.request("GET", "/api/v1/nodes").ok


def test_unknown_knobs_and_values_are_refused(cluster: RunningCluster) -> None:
    assert cluster.request("POST", "/sandbox/none", {}).status_code == 404
    assert cluster.request("POST", "/sandbox/denials", {"nonsense": 1}).status_code == 400
    assert cluster.request("POST", "/sandbox/nodes", {"nonsense": 1}).status_code == 400
