"""The real kubectl: what a person types has to work and read as usual."""

import json
import subprocess
import threading

import pytest
import yaml

from tests.sandbox.cluster.conftest import (
    RunningCluster,
    deployment_manifest,
    is_ready,
    pod_manifest,
    wait_until,
)

_READY = {"httpGet": {"path": "/", "port": 8000}, "periodSeconds": 1}


@pytest.fixture(scope="module")
def web(cluster: RunningCluster) -> str:
    """A namespace with a Deployment that serves."""
    name = cluster.namespace("web")
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": name},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8000}]},
    }
    cluster.apply(deployment_manifest("web", name, image="server:1", readinessProbe=_READY), service)
    cluster.kubectl("rollout", "status", "deploy/web", "-n", name, "--timeout=30s")
    return name


def test_version_and_resources(cluster: RunningCluster) -> None:
    assert "Server Version: v1.36" in cluster.kubectl("version").stdout
    resources = cluster.kubectl("api-resources").stdout
    assert ["deployments", "deploy", "apps/v1", "true", "Deployment"] in [
        line.split() for line in resources.splitlines()
    ]
    assert "apps/v1" in cluster.kubectl("api-versions").stdout


def test_tables(cluster: RunningCluster, web: str) -> None:
    lines = cluster.kubectl("get", "deployments", "-n", web).stdout.splitlines()
    assert lines[0].split() == ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"]
    assert lines[1].split()[:4] == ["web", "1/1", "1", "1"]
    wide = cluster.kubectl("get", "pods", "-n", web, "-o", "wide").stdout
    assert "gke-sandbox-l4-pool-0000" in wide
    everything = cluster.kubectl("get", "all", "-n", web).stdout
    assert "replicaset.apps/web-" in everything
    nodes = cluster.kubectl("get", "nodes", "-L", "cloud.google.com/gke-accelerator").stdout
    assert "nvidia-l4" in nodes


def test_other_outputs(cluster: RunningCluster, web: str) -> None:
    listed = yaml.safe_load(cluster.kubectl("get", "deploy", "-n", web, "-o", "yaml").stdout)
    assert listed["items"][0]["kind"] == "Deployment"
    replicas = cluster.kubectl("get", "deploy/web", "-n", web, "-o", "jsonpath={.status.readyReplicas}").stdout
    assert replicas == "1"
    assert cluster.kubectl("get", "pods", "-n", web, "-o", "name").stdout.startswith("pod/web-")


def test_describe(cluster: RunningCluster, web: str) -> None:
    deployment = cluster.kubectl("describe", "deploy/web", "-n", web).stdout
    assert "1 desired | 1 updated | 1 total | 1 available | 0 unavailable" in deployment
    assert "Scaled up replica set web-" in deployment
    pod = cluster.kubectl("describe", "pods", "-n", web).stdout
    for reason in ("Scheduled", "Pull", "Created", "Started"):
        assert reason in pod
    node = cluster.kubectl("describe", "node").stdout
    assert "nvidia.com/gpu:     8" in node
    assert "nvidia.com/gpu=present:NoSchedule" in node


def test_explain_and_client_side_validation(cluster: RunningCluster) -> None:
    assert "RollingUpdateDeployment" in cluster.kubectl("explain", "deployment.spec.strategy").stdout
    manifest = deployment_manifest("x", "default")
    manifest["spec"]["replcas"] = 1
    done = cluster.kubectl("apply", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(manifest), check=False)
    assert 'unknown field "spec.replcas"' in done.stderr


def test_apply_configures_and_leaves_alone(cluster: RunningCluster, namespace: str) -> None:
    text = yaml.safe_dump(deployment_manifest("web", namespace, replicas=0, command=["sleep", "9"]))
    assert "created" in cluster.kubectl("apply", "-f", "-", stdin=text).stdout
    assert "unchanged" in cluster.kubectl("apply", "-f", "-", stdin=text).stdout
    assert cluster.kubectl("diff", "-f", "-", stdin=text).stdout == ""
    other = text.replace("replicas: 0", "replicas: 1")
    done = cluster.kubectl("diff", "-f", "-", stdin=other, check=False)
    assert (done.returncode, "+  replicas: 1" in done.stdout) == (1, True)
    assert "configured" in cluster.kubectl("apply", "-f", "-", stdin=other).stdout


def test_client_side_apply_removes_what_is_no_longer_there(cluster: RunningCluster, namespace: str) -> None:
    manifest = deployment_manifest("web", namespace, replicas=0, command=["x"], env=[{"name": "A", "value": "1"}])
    cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(manifest))
    del manifest["spec"]["template"]["spec"]["containers"][0]["env"]
    cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(manifest))
    found = json.loads(cluster.kubectl("get", "deploy/web", "-n", namespace, "-o", "json").stdout)
    assert "env" not in found["spec"]["template"]["spec"]["containers"][0]


def test_server_side_apply_conflicts_name_managers(cluster: RunningCluster, namespace: str) -> None:
    text = yaml.safe_dump(deployment_manifest("web", namespace, replicas=0, command=["x"]))
    arguments = ("apply", "--server-side", "-f", "-")
    cluster.kubectl(*arguments, "--field-manager=one", stdin=text)
    other = text.replace("replicas: 0", "replicas: 2")
    dry = cluster.kubectl(*arguments, "--field-manager=one", "--dry-run=server", stdin=other).stdout
    assert "serverside-applied (server dry run)" in dry
    done = cluster.kubectl(*arguments, "--field-manager=two", stdin=other, check=False)
    assert 'conflict with "one": .spec.replicas' in done.stderr
    done = cluster.kubectl(*arguments, "--field-manager=two", "--force-conflicts", stdin=other)
    assert "serverside-applied" in done.stdout


def test_client_side_apply_becomes_server_side(cluster: RunningCluster, namespace: str) -> None:
    text = yaml.safe_dump(deployment_manifest("web", namespace, replicas=0, command=["x"]))
    cluster.kubectl("apply", "-f", "-", stdin=text)
    done = cluster.kubectl("apply", "--server-side", "-f", "-", stdin=text)
    assert "serverside-applied" in done.stdout
    found = cluster.kubectl("get", "deploy/web", "-n", namespace, "-o", "yaml", "--show-managed-fields").stdout
    managers = [one["manager"] for one in yaml.safe_load(found)["metadata"]["managedFields"]]
    assert "kubectl" in managers
    assert "kubectl-client-side-apply" not in managers


def test_rollout_verbs(cluster: RunningCluster, web: str) -> None:
    def image() -> str:
        path = "{.spec.template.spec.containers[0].image}"
        return cluster.kubectl("get", "deploy/web", "-n", web, "-o", f"jsonpath={path}").stdout

    cluster.kubectl("set", "image", "deploy/web", "main=server:2", "-n", web)
    cluster.kubectl("rollout", "status", "deploy/web", "-n", web, "--timeout=30s")
    assert image() == "server:2"
    history = cluster.kubectl("rollout", "history", "deploy/web", "-n", web).stdout
    assert [line.split()[0] for line in history.splitlines()[2:4]] == ["1", "2"]
    cluster.kubectl("rollout", "undo", "deploy/web", "-n", web)
    cluster.kubectl("rollout", "status", "deploy/web", "-n", web, "--timeout=30s")
    assert image() == "server:1"
    revisions = cluster.kubectl("rollout", "history", "deploy/web", "-n", web).stdout
    assert [line.split()[0] for line in revisions.splitlines()[2:4]] == ["2", "3"]
    cluster.kubectl("rollout", "restart", "deploy/web", "-n", web)
    cluster.kubectl("rollout", "status", "deploy/web", "-n", web, "--timeout=30s")


def test_scale_and_wait(cluster: RunningCluster, web: str) -> None:
    cluster.kubectl("scale", "deploy/web", "--replicas=2", "-n", web)
    cluster.kubectl("wait", "deploy/web", "-n", web, "--for=jsonpath={.status.readyReplicas}=2", "--timeout=30s")
    cluster.kubectl("wait", "deploy/web", "-n", web, "--for=condition=Available", "--timeout=30s")
    cluster.kubectl("scale", "deploy/web", "--replicas=1", "-n", web)
    cluster.kubectl("wait", "deploy/web", "-n", web, "--for=jsonpath={.status.replicas}=1", "--timeout=30s")
    listed = cluster.kubectl("get", "deploy/web", "-n", web, "--no-headers").stdout.split()
    assert listed[:2] == ["web", "1/1"]


def test_wait_sees_a_deletion(cluster: RunningCluster, namespace: str) -> None:
    cluster.create(f"/api/v1/namespaces/{namespace}/configmaps", {"metadata": {"name": "a"}})
    command = ("wait", "configmap/a", "-n", namespace, "--for=delete", "--timeout=20s")
    waiting = threading.Thread(target=cluster.kubectl, args=command)
    waiting.start()
    cluster.kubectl("delete", "configmap", "a", "-n", namespace)
    waiting.join(20)
    assert not waiting.is_alive()


def test_generators(cluster: RunningCluster, namespace: str) -> None:
    """kubectl sends these as protobuf."""
    for arguments in (
        ("configmap", "c", "--from-literal=a=b"),
        ("secret", "generic", "s", "--from-literal=a=b"),
        ("serviceaccount", "sa"),
        ("role", "r", "--verb=get", "--resource=pods"),
        ("rolebinding", "rb", "--role=r", f"--serviceaccount={namespace}:sa"),
        ("quota", "q", "--hard=pods=3,requests.nvidia.com/gpu=1"),
        ("poddisruptionbudget", "p", "--selector=app=web", "--min-available=1"),
        ("service", "clusterip", "svc", "--tcp=80:8000"),
        ("deployment", "d", "--image=server:1", "--replicas=0", "--port=8000"),
    ):
        assert "created" in cluster.kubectl("create", *arguments, "-n", namespace).stdout
    deployment = json.loads(cluster.kubectl("get", "deploy/d", "-n", namespace, "-o", "json").stdout)
    assert deployment["spec"]["replicas"] == 0
    assert deployment["spec"]["template"]["spec"]["containers"][0]["ports"] == [
        {"containerPort": 8000, "protocol": "TCP"}
    ]
    quota = json.loads(cluster.kubectl("get", "quota/q", "-n", namespace, "-o", "json").stdout)
    assert quota["spec"]["hard"] == {"pods": "3", "requests.nvidia.com/gpu": "1"}
    secret = json.loads(cluster.kubectl("get", "secret/s", "-n", namespace, "-o", "json").stdout)
    assert secret["data"] == {"a": "Yg=="}


def test_access_questions(cluster: RunningCluster, namespace: str) -> None:
    cluster.kubectl("create", "role", "r", "--verb=list", "--resource=pods", "-n", namespace)
    cluster.kubectl("create", "rolebinding", "rb", "--role=r", f"--serviceaccount={namespace}:default", "-n", namespace)
    account = f"--as=system:serviceaccount:{namespace}:default"
    assert cluster.kubectl("auth", "can-i", "create", "deployments").stdout.strip() == "yes"
    assert cluster.kubectl("auth", "can-i", "list", "pods", "-n", namespace, account).stdout.strip() == "yes"
    done = cluster.kubectl("auth", "can-i", "delete", "pods", "-n", namespace, account, check=False)
    assert done.stdout.strip() == "no"
    done = cluster.kubectl("get", "deployments", "-n", namespace, account, check=False)
    assert (
        f'deployments.apps is forbidden: User "system:serviceaccount:{namespace}:default" cannot list resource'
        f' "deployments" in API group "apps" in the namespace "{namespace}"'
    ) in done.stderr
    assert "kubernetes-admin" in cluster.kubectl("auth", "whoami").stdout


def test_service_account_token(cluster: RunningCluster, namespace: str) -> None:
    token = cluster.kubectl("create", "token", "default", "-n", namespace).stdout.strip()
    response = cluster.request("GET", "/api/v1/pods", headers={"Authorization": f"Bearer {token}"})
    assert response.status_code == 403
    assert f'User "system:serviceaccount:{namespace}:default" cannot list resource' in response.json()["message"]


def test_patches(cluster: RunningCluster, namespace: str) -> None:
    cluster.apply(deployment_manifest("web", namespace, replicas=0, command=["x"]))
    strategic = '{"spec":{"template":{"spec":{"containers":[{"name":"main","env":[{"name":"A","value":"1"}]}]}}}}'
    cluster.kubectl("patch", "deploy/web", "-n", namespace, "-p", strategic)
    cluster.kubectl("patch", "deploy/web", "-n", namespace, "--type=merge", "-p", '{"spec":{"minReadySeconds":3}}')
    operations = '[{"op":"replace","path":"/spec/revisionHistoryLimit","value":1}]'
    cluster.kubectl("patch", "deploy/web", "-n", namespace, "--type=json", "-p", operations)
    cluster.kubectl("label", "deploy/web", "-n", namespace, "tier=x")
    cluster.kubectl("annotate", "deploy/web", "-n", namespace, "note=y")
    found = json.loads(cluster.kubectl("get", "deploy/web", "-n", namespace, "-o", "json").stdout)
    container = found["spec"]["template"]["spec"]["containers"][0]
    assert (container["command"], container["env"]) == (["x"], [{"name": "A", "value": "1"}])
    assert (found["spec"]["minReadySeconds"], found["spec"]["revisionHistoryLimit"]) == (3, 1)
    assert (found["metadata"]["labels"]["tier"], found["metadata"]["annotations"]["note"]) == ("x", "y")


def test_logs(cluster: RunningCluster, namespace: str) -> None:
    script = "import time; print('one', flush=True); time.sleep(1.5); print('two', flush=True)"
    cluster.run_pod(namespace, "p", command=["python3", "-c", script], restartPolicy="Never")
    cluster.wait_pod(namespace, "p", lambda pod: pod["status"]["phase"] == "Running")
    assert cluster.kubectl("logs", "-f", "p", "-n", namespace).stdout == "one\ntwo\n"
    assert cluster.kubectl("logs", "p", "-n", namespace, "--tail=1").stdout == "two\n"
    stamped = cluster.kubectl("logs", "p", "-n", namespace, "--timestamps").stdout.splitlines()
    assert stamped[0].split()[0].endswith("Z")
    done = cluster.kubectl("logs", "p", "-n", namespace, "--previous", check=False)
    assert 'previous terminated container "main" in pod "p" not found' in done.stderr


def test_delete_now_and_with_grace(cluster: RunningCluster, namespace: str) -> None:
    script = (
        "import signal, time; signal.signal(15, lambda *_: None); print('up', flush=True)\nwhile True: time.sleep(1)"
    )
    for name in ("a", "b"):
        cluster.run_pod(namespace, name, command=["python3", "-c", script], terminationGracePeriodSeconds=60)
        wait_until(lambda name=name: is_ready(cluster.pod(namespace, name)))
        wait_until(lambda name=name: "up" in cluster.log(namespace, name))
    cluster.kubectl("delete", "pod", "a", "-n", namespace, "--grace-period=1")
    cluster.kubectl("delete", "pod", "b", "-n", namespace, "--force", "--grace-period=0")
    assert cluster.kubectl("get", "pods", "-n", namespace).stdout == ""


def test_exec(cluster: RunningCluster, namespace: str) -> None:
    cluster.run_pod(namespace, "p", command=["sleep", "60"], env=[{"name": "A", "value": "b c"}])
    cluster.kubectl("wait", "pod/p", "-n", namespace, "--for=condition=Ready", "--timeout=20s")
    run = ("exec", "-n", namespace)
    assert cluster.kubectl(*run, "p", "--", "sh", "-c", "echo $A; echo oops >&2").stdout == "b c\n"
    assert cluster.kubectl(*run, "-i", "p", "--", "cat", stdin="through stdin").stdout == "through stdin"
    done = cluster.kubectl(*run, "p", "--", "sh", "-c", "exit 7", check=False)
    assert (done.returncode, "exit code 7" in done.stderr) == (7, True)
    done = cluster.kubectl(*run, "p", "--", "missing-program", check=False)
    assert 'exec: "missing-program": executable file not found in $PATH' in done.stderr


def test_drain_respects_budgets(cluster: RunningCluster, namespace: str) -> None:
    cluster.apply(deployment_manifest("web", namespace, command=["sleep", "60"]))
    cluster.kubectl("rollout", "status", "deploy/web", "-n", namespace, "--timeout=20s")
    cluster.kubectl("create", "pdb", "b", "--selector=app=web", "--min-available=1", "-n", namespace)
    pod = cluster.kubectl("get", "pods", "-n", namespace, "-o", "jsonpath={.items[0].metadata.name}").stdout
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}}
    response = cluster.request("POST", f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction", eviction)
    assert response.status_code == 429
    assert "Cannot evict pod as it would violate the pod's disruption budget." in response.text
    cluster.kubectl("delete", "pdb", "b", "-n", namespace)
    assert cluster.request("POST", f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction", eviction).status_code == 201


def test_run_and_events(cluster: RunningCluster, namespace: str) -> None:
    manifest = pod_manifest("p", command=["true"], restartPolicy="Never")
    cluster.kubectl("create", "-n", namespace, "-f", "-", stdin=yaml.safe_dump(manifest))
    cluster.kubectl("wait", "pod/p", "-n", namespace, "--for=jsonpath={.status.phase}=Succeeded", "--timeout=20s")
    assert "Completed" in cluster.kubectl("get", "pods", "-n", namespace).stdout
    events = cluster.kubectl("get", "events", "-n", namespace, "--sort-by=.metadata.creationTimestamp").stdout
    assert "Successfully assigned" in events
    assert "Started" in cluster.kubectl("events", "--for=pod/p", "-n", namespace).stdout


def test_wrong_token_is_refused(cluster: RunningCluster) -> None:
    done = cluster.kubectl("get", "pods", "--token=wrong", check=False)
    assert isinstance(done, subprocess.CompletedProcess)
    assert "must be logged in to the server" in done.stderr or "Unauthorized" in done.stderr
