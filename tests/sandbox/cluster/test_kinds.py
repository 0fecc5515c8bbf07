"""Every kind that is served: applied, applied again, read by the typed client, listed as a table."""

from typing import Any

import pytest
from kubernetes import client, watch

from tests.sandbox.cluster.conftest import RunningCluster, deployment_manifest, is_ready, job_spec, wait_until

_RULE = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}
_LABELS = {"app": "web"}
_TARGET = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}

_JOB = job_spec(command=["true"])

KINDS: dict[str, dict[str, Any]] = {
    "serviceaccounts": {"apiVersion": "v1", "kind": "ServiceAccount"},
    "services": {
        "apiVersion": "v1",
        "kind": "Service",
        "spec": {"selector": _LABELS, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
    },
    "configmaps": {"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "b"}},
    "secrets": {"apiVersion": "v1", "kind": "Secret", "stringData": {"a": "b"}},
    "resourcequotas": {"apiVersion": "v1", "kind": "ResourceQuota", "spec": {"hard": {"pods": "99"}}},
    "limitranges": {
        "apiVersion": "v1",
        "kind": "LimitRange",
        "spec": {"limits": [{"type": "Pod", "max": {"cpu": "9"}}]},
    },
    "persistentvolumeclaims": {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    },
    "deployments": deployment_manifest("one", "", replicas=0, command=["true"]),
    "horizontalpodautoscalers": {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "spec": {"scaleTargetRef": _TARGET, "maxReplicas": 3},
    },
    "poddisruptionbudgets": {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": _LABELS}},
    },
    "jobs": {"apiVersion": "batch/v1", "kind": "Job", "spec": {**_JOB, "suspend": True}},
    "cronjobs": {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "spec": {"schedule": "0 0 1 1 *", "timeZone": "Etc/UTC", "jobTemplate": {"spec": _JOB}},
    },
    "leases": {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "spec": {"holderIdentity": "me", "leaseDurationSeconds": 15, "renewTime": "2026-01-01T00:00:00.000000Z"},
    },
    "roles": {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "rules": [_RULE]},
    "rolebindings": {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "one"},
        "subjects": [{"kind": "ServiceAccount", "name": "default"}],
    },
}


def _path(manifest: dict[str, Any], namespace: str, plural: str) -> str:
    version = manifest["apiVersion"]
    base = f"/apis/{version}" if "/" in version else f"/api/{version}"
    return f"{base}/namespaces/{namespace}/{plural}/one"


@pytest.mark.parametrize("plural", KINDS)
def test_applying_again_changes_no_resource_version(cluster: RunningCluster, namespace: str, plural: str) -> None:
    manifest = {**KINDS[plural], "metadata": {"name": "one"}}
    path, headers = _path(manifest, namespace, plural), {"Content-Type": "application/apply-patch+yaml"}
    query = "?fieldManager=test&fieldValidation=Strict"
    assert cluster.request("PATCH", path + query, manifest, headers=headers).status_code == 201
    seen: list[str] = []

    def settled() -> bool:
        seen.append(cluster.get(path)["metadata"]["resourceVersion"])
        return seen[-3:] == [seen[-1]] * 3

    wait_until(settled)
    response = cluster.request("PATCH", path + query, manifest, headers=headers)
    assert response.status_code == 200
    assert response.json()["metadata"]["resourceVersion"] == seen[-1]
    assert "one" in cluster.kubectl("get", plural, "-n", namespace).stdout


def test_cluster_scoped_kinds_are_there(cluster: RunningCluster) -> None:
    listed = cluster.kubectl(
        "get", "nodes,namespaces,clusterroles,clusterrolebindings,storageclasses,priorityclasses", "-o", "name"
    ).stdout.split()
    for name in ("namespace/kube-system", "clusterrole.rbac.authorization.k8s.io/view", "node/gke-sandbox-l4-pool-0000",
                 "storageclass.storage.k8s.io/standard-rwo"):  # fmt: skip
        assert name in listed


def test_typed_client_reads_what_a_running_cluster_has(cluster: RunningCluster, namespace: str) -> None:
    """The typed models refuse objects that lack a required field."""
    ready = {"httpGet": {"path": "/", "port": 8000}, "periodSeconds": 1}
    cluster.apply(deployment_manifest("web", namespace, image="server:1", readinessProbe=ready))
    cluster.kubectl("rollout", "status", "deploy/web", "-n", namespace, "--timeout=30s")
    api = cluster.api
    core, apps = client.CoreV1Api(api), client.AppsV1Api(api)
    (pod,) = core.list_namespaced_pod(namespace, label_selector="app=web").items
    assert pod.status.container_statuses[0].state.running.started_at is not None
    (deployment,) = apps.list_namespaced_deployment(namespace).items
    assert deployment.status.conditions[0].last_transition_time is not None
    assert apps.list_namespaced_replica_set(namespace).items[0].status.ready_replicas == 1
    assert apps.read_namespaced_deployment_scale("web", namespace).status.selector == "app=web"
    (node,) = core.list_node().items
    assert node.metadata.labels["cloud.google.com/gke-accelerator"] == "nvidia-l4"
    assert node.metadata.labels["topology.kubernetes.io/zone"] == "us-central1-a"
    assert node.status.allocatable["nvidia.com/gpu"] == "8"
    assert any(event.reason == "Scheduled" for event in core.list_namespaced_event(namespace).items)
    lease = client.CoordinationV1Api(api).read_namespaced_lease(node.metadata.name, "kube-node-lease")
    assert lease.spec.renew_time is not None
    for read in (core.list_namespace, core.list_service_for_all_namespaces, core.list_secret_for_all_namespaces):
        assert read().metadata.resource_version
    review = client.V1SelfSubjectAccessReview(
        spec=client.V1SelfSubjectAccessReviewSpec(
            resource_attributes=client.V1ResourceAttributes(verb="create", resource="deployments", group="apps")
        )
    )
    assert client.AuthorizationV1Api(api).create_self_subject_access_review(review).status.allowed


def test_events_are_served_in_both_versions(cluster: RunningCluster, namespace: str) -> None:
    cluster.run_pod(namespace, "p", command=["true"], restartPolicy="Never")
    cluster.wait_pod(namespace, "p", lambda pod: pod["status"]["phase"] == "Succeeded")
    (event,) = [
        one
        for one in cluster.get(f"/apis/events.k8s.io/v1/namespaces/{namespace}/events")["items"]
        if one["reason"] == "Started"
    ]
    assert event["regarding"]["name"] == "p"
    assert event["note"] == "Container started: main"
    assert event["deprecatedSource"]["component"] == "kubelet"


def test_typed_client_deletes(cluster: RunningCluster, namespace: str) -> None:
    cluster.apply(deployment_manifest("web", namespace, command=["sleep", "60"]))
    cluster.kubectl("rollout", "status", "deploy/web", "-n", namespace, "--timeout=30s")
    answer = cluster.apps.delete_namespaced_deployment("web", namespace, propagation_policy="Background")
    assert answer.status == "Success"
    wait_until(lambda: cluster.core.list_namespaced_pod(namespace).items == [])


def test_typed_client_follows_a_log(cluster: RunningCluster, namespace: str) -> None:
    script = "import time\nfor i in range(3): print(i, flush=True); time.sleep(0.2)"
    cluster.run_pod(namespace, "p", command=["python3", "-c", script], restartPolicy="Never")
    wait_until(lambda: "startTime" in cluster.pod(namespace, "p")["status"])
    cluster.wait_pod(namespace, "p", lambda pod: pod["status"]["phase"] in ("Running", "Succeeded"))
    lines = list(watch.Watch().stream(cluster.core.read_namespaced_pod_log, "p", namespace))
    assert lines[:3] == ["0", "1", "2"]


def test_lease_is_taken_by_one(cluster: RunningCluster, namespace: str) -> None:
    """Two holders that read the same version cannot both write it."""
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
    lease = cluster.create(path, {"metadata": {"name": "deploy"}, "spec": {"holderIdentity": ""}})
    codes = []
    for holder in ("a", "b"):
        body = {**lease, "spec": {"holderIdentity": holder}}
        codes.append(cluster.request("PUT", f"{path}/deploy", body).status_code)
    assert codes == [200, 409]
    assert cluster.get(f"{path}/deploy")["spec"]["holderIdentity"] == "a"


def test_pod_is_ready_only_while_it_runs(cluster: RunningCluster, namespace: str) -> None:
    cluster.run_pod(namespace, "p", command=["sleep", "60"])
    cluster.wait_pod(namespace, "p", is_ready)
    cluster.knob(f"pods/{namespace}/p/kill", {})
    pod = cluster.wait_pod(namespace, "p", lambda pod: pod["status"]["containerStatuses"][0]["restartCount"] == 1)
    (container,) = pod["status"]["containerStatuses"]
    assert bool(is_ready(pod)) == ("running" in container["state"])
    assert is_ready(cluster.wait_pod(namespace, "p", is_ready))
