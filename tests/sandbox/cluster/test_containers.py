"""Containers: how a pod's spec becomes processes, and how their fate shows in its status and events."""

import base64
from pathlib import Path

import pytest

from tests.sandbox.cluster.conftest import RunningCluster, is_ready, wait_until

_FOREVER = ["python3", "-c", "import time; time.sleep(600)"]


def status_of(pod, name="main", field="containerStatuses"):
    return next(one for one in pod["status"][field] if one["name"] == name)


def state(kind, **wanted):
    """Make a test for a container's state."""

    def test(pod) -> bool:
        found = status_of(pod)["state"].get(kind) if pod["status"].get("containerStatuses") else None
        return found is not None and all(found.get(key) == value for key, value in wanted.items())

    return test


def reasons(cluster, namespace, name="p"):
    return [one["reason"] for one in cluster.events(namespace, involvedObject__name=name)]


def messages(cluster, namespace, reason, name="p"):
    return [one["message"] for one in cluster.events(namespace, involvedObject__name=name, reason=reason)]


def printed(cluster: RunningCluster, namespace: str, script: str, **spec) -> str:
    """Run a Python script in a pod and give what it printed."""
    cluster.run_pod(namespace, "p", command=["python3", "-c", script], restartPolicy="Never", **spec)
    cluster.wait_pod(namespace, "p", lambda pod: pod["status"]["phase"] in ("Succeeded", "Failed"))
    return cluster.log(namespace, "p")


def test_life_of_a_pod(cluster: RunningCluster, namespace: str) -> None:
    cluster.run_pod(namespace, "p", command=["python3", "-c", "pass"], restartPolicy="Never")
    pod = cluster.wait_pod(namespace, "p", lambda pod: pod["status"]["phase"] == "Succeeded")
    terminated = status_of(pod)["state"]["terminated"]
    assert (terminated["exitCode"], terminated["reason"]) == (0, "Completed")
    conditions = {one["type"]: one["status"] for one in pod["status"]["conditions"]}
    assert conditions["PodScheduled"] == conditions["Initialized"] == "True"
    assert conditions["Ready"] == "False"
    assert reasons(cluster, namespace) == ["Scheduled", "Pulled", "Created", "Started"] or reasons(
        cluster, namespace
    ) == ["Scheduled", "Pulling", "Pulled", "Created", "Started"]
    assert pod["spec"]["nodeName"] == "gke-sandbox-l4-pool-0000"
    assert pod["status"]["podIP"].startswith("127.")


def test_failure_keeps_exit_code_and_phase(cluster: RunningCluster, namespace: str) -> None:
    cluster.run_pod(namespace, "p", command=["sh", "-c", "exit 3"], restartPolicy="Never")
    pod = cluster.wait_pod(namespace, "p", lambda pod: pod["status"]["phase"] == "Failed")
    assert status_of(pod)["state"]["terminated"]["exitCode"] == 3
    assert status_of(pod)["state"]["terminated"]["reason"] == "Error"


def test_crash_loop_backs_off(cluster: RunningCluster, namespace: str) -> None:
    cluster.run_pod(namespace, "p", command=["sh", "-c", "echo run; exit 3"])
    pod = cluster.wait_pod(namespace, "p", state("waiting", reason="CrashLoopBackOff"))
    waiting = status_of(pod)["state"]["waiting"]["message"]
    assert waiting.startswith("back-off ")
    assert f"restarting failed container=main pod=p_{namespace}(" in waiting
    assert status_of(pod)["lastState"]["terminated"]["exitCode"] == 3
    assert status_of(pod)["restartCount"] >= 1
    assert messages(cluster, namespace, "BackOff")[0].startswith("Back-off restarting failed container main in pod p_")
    assert cluster.log(namespace, "p", "previous=true") == "run\n"
    before = status_of(pod)["restartCount"]
    cluster.wait_pod(namespace, "p", lambda pod: status_of(pod)["restartCount"] > before)


def test_missing_program_is_a_start_error(cluster: RunningCluster, namespace: str) -> None:
    cluster.run_pod(namespace, "p", command=["no-such-program"], restartPolicy="Never")
    pod = cluster.wait_pod(namespace, "p", lambda pod: pod["status"]["phase"] == "Failed")
    terminated = status_of(pod)["state"]["terminated"]
    assert (terminated["reason"], terminated["exitCode"]) == ("StartError", 128)
    assert 'exec: "no-such-program": executable file not found in $PATH' in messages(cluster, namespace, "Failed")[0]


def test_unknown_image_is_not_pulled(cluster: RunningCluster, namespace: str) -> None:
    cluster.run_pod(namespace, "p", image="nobody/nothing:1")
    cluster.wait_pod(namespace, "p", state("waiting", reason="ImagePullBackOff"))
    failed = messages(cluster, namespace, "Failed")
    assert failed[0].startswith('Failed to pull image "nobody/nothing:1": rpc error: code = NotFound desc = ')
    assert "docker.io/nobody/nothing:1: not found" in failed[0]
    assert failed[1:3] == ["Error: ErrImagePull", "Error: ImagePullBackOff"]
    assert messages(cluster, namespace, "BackOff") == ['Back-off pulling image "nobody/nothing:1"']


def test_image_may_refuse_with_its_own_words(cluster: RunningCluster, namespace: str) -> None:
    cluster.run_pod(namespace, "p", image="forbidden:1")
    wait_until(lambda: "403 Forbidden" in " ".join(messages(cluster, namespace, "Failed")))
    refused = 'Failed to pull image "forbidden:1": rpc error: code = Unknown desc = failed to pull: 403 Forbidden'
    assert messages(cluster, namespace, "Failed")[0] == refused


def test_image_brings_environment_path_and_entrypoint(cluster: RunningCluster, namespace: str) -> None:
    text = printed(cluster, namespace, "import os; print(os.environ['FROM_IMAGE'], os.environ['HOSTNAME'])")
    assert text == "yes p\n"
    cluster.run_pod(namespace, "s", image="server:1", ports=[{"containerPort": 8000}])
    wait_until(lambda: "Serving HTTP on 127." in cluster.log(namespace, "s"))


def test_environment_is_put_together(cluster: RunningCluster, namespace: str) -> None:
    base = f"/api/v1/namespaces/{namespace}"
    cluster.create(f"{base}/configmaps", {"metadata": {"name": "c"}, "data": {"one": "1", "two": "2"}})
    cluster.create(f"{base}/secrets", {"metadata": {"name": "s"}, "stringData": {"key": "hidden"}})
    env = [
        {"name": "A", "value": "a"},
        {"name": "B", "value": "$(A)-$(MISSING)-$$(A)"},
        {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "one"}}},
        {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "key"}}},
        {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "I", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "L", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
        {"name": "M", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
        {"name": "O", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "none", "optional": True}}},
    ]
    script = (
        "import os, json, sys; e = os.environ; print(json.dumps([e.get(k) for k in sys.argv[1]])); print(sys.argv[2])"
    )
    cluster.run_pod(
        namespace,
        "p",
        command=["python3", "-c", script, "ABCSNILMO", "$(B)"],
        env=env,
        envFrom=[{"configMapRef": {"name": "c"}, "prefix": "all_"}],
        resources={"limits": {"memory": "512Mi"}},
        restartPolicy="Never",
    )
    pod = cluster.wait_pod(namespace, "p", lambda pod: pod["status"]["phase"] == "Succeeded")
    values, argument = cluster.log(namespace, "p").splitlines()
    address = pod["status"]["podIP"]
    assert values == f'["a", "a-$(MISSING)-$(A)", "1", "hidden", "p", "{address}", "p", "512", null]'
    assert argument == "a-$(MISSING)-$(A)"


def test_service_links_reach_a_container_unless_forbidden(cluster: RunningCluster, namespace: str) -> None:
    """A Service called vllm makes VLLM_PORT, which vLLM takes for its own setting."""
    body = {"metadata": {"name": "vllm"}, "spec": {"ports": [{"port": 8000}]}}
    address = cluster.create(f"/api/v1/namespaces/{namespace}/services", body)["spec"]["clusterIP"]
    script = "import os; print(os.environ.get('VLLM_PORT'))"
    for name, links, expected in (("on", True, f"tcp://{address}:8000\n"), ("off", False, "None\n")):
        cluster.run_pod(
            namespace, name, command=["python3", "-c", script], enableServiceLinks=links, restartPolicy="Never"
        )
        cluster.wait_pod(namespace, name, lambda pod: pod["status"]["phase"] == "Succeeded")
        assert cluster.log(namespace, name) == expected


def test_missing_key_holds_a_container_back_until_it_is_there(cluster: RunningCluster, namespace: str) -> None:
    reference = {"name": "c", "key": "one"}
    env = [{"name": "C", "valueFrom": {"configMapKeyRef": reference}}]
    cluster.run_pod(namespace, "p", command=_FOREVER, env=env)
    pod = cluster.wait_pod(namespace, "p", state("waiting", reason="CreateContainerConfigError"))
    assert status_of(pod)["state"]["waiting"]["message"] == 'configmap "c" not found'
    assert messages(cluster, namespace, "Failed") == ['Error: configmap "c" not found']
    cluster.create(f"/api/v1/namespaces/{namespace}/configmaps", {"metadata": {"name": "c"}, "data": {"one": "1"}})
    cluster.wait_pod(namespace, "p", is_ready)


def test_volumes_are_folders_under_their_mount_paths(cluster: RunningCluster, namespace: str) -> None:
    body = {
        "metadata": {"name": "c"},
        "data": {"greeting": "hello"},
        "binaryData": {"raw": base64.b64encode(b"r").decode()},
    }
    cluster.create(f"/api/v1/namespaces/{namespace}/configmaps", body)
    script = """
import os, sys
from pathlib import Path
Path(os.environ["CACHE"]).write_text("kept")
print(Path("/etc/cfg/greeting").read_text(), sys.argv[1].endswith("/x"), os.path.exists("/dev/shm"))
"""
    reader = {
        "name": "main",
        "image": "python:3.11",
        "command": ["sh", "-c", "cat /data/sub/file; cat /etc/cfg/renamed"],
    }
    mounts = [{"name": "data", "mountPath": "/data"}, {"name": "cfg", "mountPath": "/etc/cfg"}]
    shm = {"name": "shm", "mountPath": "/dev/shm"}
    first = {
        "name": "first",
        "image": "python:3.11",
        "command": ["python3", "-c", script, "/cache/x"],
        "env": [{"name": "CACHE", "value": "/cache/file"}],
        "volumeMounts": [{"name": "data", "mountPath": "/cache", "subPath": "sub"}, mounts[1], shm],
    }
    items = [{"key": "greeting", "path": "greeting"}, {"key": "greeting", "path": "renamed"}]
    volumes = [
        {"name": "data", "emptyDir": {}},
        {"name": "cfg", "configMap": {"name": "c", "items": items}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]
    cluster.run_pod(
        namespace,
        "p",
        **reader | {"volumeMounts": mounts},
        initContainers=[first],
        volumes=volumes,
        restartPolicy="Never",
    )
    cluster.wait_pod(namespace, "p", lambda pod: pod["status"]["phase"] == "Succeeded")
    assert cluster.log(namespace, "p", "container=first") == "hello True True\n"
    assert cluster.log(namespace, "p", "container=main") == "kepthello"


def test_missing_config_map_keeps_a_pod_from_being_created(cluster: RunningCluster, namespace: str) -> None:
    cluster.run_pod(
        namespace,
        "p",
        command=_FOREVER,
        volumes=[{"name": "cfg", "configMap": {"name": "none"}}],
        volumeMounts=[{"name": "cfg", "mountPath": "/cfg"}],
    )
    cluster.wait_pod(namespace, "p", state("waiting", reason="ContainerCreating"))
    wait_until(lambda: messages(cluster, namespace, "FailedMount"))
    text = messages(cluster, namespace, "FailedMount")[0]
    assert text == 'MountVolume.SetUp failed for volume "cfg" : configmap "none" not found'


def test_claims_keep_their_files_from_pod_to_pod(cluster: RunningCluster, namespace: str) -> None:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    claims = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
    cluster.create(claims, {"metadata": {"name": "disk"}, "spec": spec})
    wait_until(lambda: cluster.get(f"{claims}/disk")["status"]["phase"] == "Bound")
    volumes = [{"name": "disk", "persistentVolumeClaim": {"claimName": "disk"}}]
    mounts = [{"name": "disk", "mountPath": "/disk"}]
    for name, command in (("w", "echo kept > /disk/file"), ("r", "cat /disk/file")):
        cluster.run_pod(
            namespace, name, command=["sh", "-c", command], volumes=volumes, volumeMounts=mounts, restartPolicy="Never"
        )
        cluster.wait_pod(namespace, name, lambda pod: pod["status"]["phase"] == "Succeeded")
    assert cluster.log(namespace, "r") == "kept\n"


def test_init_containers_run_in_order_and_hold_the_others_back(cluster: RunningCluster, namespace: str) -> None:
    volumes, mounts = [{"name": "v", "emptyDir": {}}], [{"name": "v", "mountPath": "/v"}]

    def step(name: str) -> dict:
        command = [
            "sh",
            "-c",
            f"echo {name} >> /v/order; test {name} != b || test -f /v/again || {{ touch /v/again; exit 1; }}",
        ]
        return {"name": name, "image": "python:3.11", "command": command, "volumeMounts": mounts}

    cluster.run_pod(
        namespace,
        "p",
        command=["cat", "/v/order"],
        volumeMounts=mounts,
        volumes=volumes,
        initContainers=[step("a"), step("b")],
        restartPolicy="OnFailure",
    )
    pod = cluster.wait_pod(namespace, "p", lambda pod: pod["status"]["phase"] == "Succeeded")
    assert cluster.log(namespace, "p", "container=main") == "a\nb\nb\n"
    assert status_of(pod, "b", "initContainerStatuses")["restartCount"] == 1


def test_failed_init_container_fails_a_pod_that_never_restarts(cluster: RunningCluster, namespace: str) -> None:
    first = {"name": "check", "image": "python:3.11", "command": ["sh", "-c", "echo no access; exit 4"]}
    cluster.run_pod(namespace, "p", command=_FOREVER, initContainers=[first], restartPolicy="Never")
    pod = cluster.wait_pod(namespace, "p", lambda pod: pod["status"]["phase"] == "Failed")
    assert status_of(pod, "check", "initContainerStatuses")["state"]["terminated"]["exitCode"] == 4
    assert status_of(pod)["state"]["waiting"]["reason"] == "PodInitializing"
    assert cluster.log(namespace, "p", "container=check") == "no access\n"


def test_sidecar_runs_beside_and_ends_after(cluster: RunningCluster, namespace: str) -> None:
    side = {"name": "side", "image": "python:3.11", "command": _FOREVER, "restartPolicy": "Always"}
    cluster.run_pod(namespace, "p", command=["true"], initContainers=[side], restartPolicy="Never")
    pod = cluster.wait_pod(namespace, "p", lambda pod: pod["status"]["phase"] == "Succeeded")
    assert status_of(pod, "side", "initContainerStatuses")["state"]["terminated"]["exitCode"] == 143


_GATED = """
import http.server, pathlib, sys
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if pathlib.Path("/v" + self.path).exists() else 503); self.end_headers()
    def log_message(self, *a): pass
http.server.ThreadingHTTPServer(("0.0.0.0", 8000), H).serve_forever()
"""


def gated(cluster: RunningCluster, namespace: str, **probes) -> Path:
    """Run a pod whose probes pass as soon as a file is there; gives the folder of the files."""
    pod = cluster.run_pod(
        namespace,
        "p",
        command=["python3", "-c", _GATED],
        volumes=[{"name": "v", "emptyDir": {}}],
        volumeMounts=[{"name": "v", "mountPath": "/v"}],
        ports=[{"containerPort": 8000, "name": "http"}],
        **probes,
    )
    return cluster.folder / "cluster" / "pods" / pod["metadata"]["uid"] / "volumes" / "v"


def probe(path: str, **more) -> dict:
    return {"httpGet": {"path": path, "port": "http"}, "periodSeconds": 1, **more}


def test_readiness_comes_and_goes(cluster: RunningCluster, namespace: str) -> None:
    folder = gated(cluster, namespace, readinessProbe=probe("/ready", failureThreshold=1))
    wait_until(lambda: any("statuscode: 503" in text for text in messages(cluster, namespace, "Unhealthy")))
    pod = cluster.pod(namespace, "p")
    assert not is_ready(pod)
    text = next(one["message"] for one in pod["status"]["conditions"] if one["type"] == "Ready")
    assert text == "containers with unready status: [main]"
    (folder / "ready").touch()
    cluster.wait_pod(namespace, "p", is_ready)
    (folder / "ready").unlink()
    cluster.wait_pod(namespace, "p", lambda pod: not is_ready(pod))
    assert status_of(cluster.pod(namespace, "p"))["restartCount"] == 0


def test_liveness_restarts(cluster: RunningCluster, namespace: str) -> None:
    folder = gated(cluster, namespace, livenessProbe=probe("/live", failureThreshold=2, initialDelaySeconds=1))
    (folder).mkdir(parents=True, exist_ok=True)
    cluster.wait_pod(namespace, "p", lambda pod: status_of(pod)["restartCount"] >= 1)
    assert "Container main failed liveness probe, will be restarted" in messages(cluster, namespace, "Killing")
    assert any(text.startswith("Liveness probe failed: ") for text in messages(cluster, namespace, "Unhealthy"))


def test_startup_probe_holds_the_others_back(cluster: RunningCluster, namespace: str) -> None:
    folder = gated(
        cluster,
        namespace,
        startupProbe=probe("/started", failureThreshold=60),
        livenessProbe=probe("/live", failureThreshold=1),
        readinessProbe=probe("/started"),
    )
    wait_until(lambda: len(cluster.events(namespace, involvedObject__name="p", reason="Unhealthy")) > 0)
    wait_until(lambda: cluster.events(namespace, involvedObject__name="p", reason="Unhealthy")[-1]["count"] >= 2)
    pod = cluster.pod(namespace, "p")
    assert (status_of(pod)["started"], status_of(pod)["restartCount"]) == (False, 0)
    (folder / "live").touch()
    (folder / "started").touch()
    pod = cluster.wait_pod(namespace, "p", is_ready)
    assert status_of(pod)["started"]
    assert all(text.startswith("Startup probe failed: ") for text in messages(cluster, namespace, "Unhealthy"))


def test_startup_failure_restarts(cluster: RunningCluster, namespace: str) -> None:
    gated(cluster, namespace, startupProbe=probe("/started", failureThreshold=1))
    cluster.wait_pod(namespace, "p", lambda pod: status_of(pod)["restartCount"] >= 1)
    assert "Container main failed startup probe, will be restarted" in messages(cluster, namespace, "Killing")


def test_other_probe_kinds(cluster: RunningCluster, namespace: str) -> None:
    check = {"exec": {"command": ["sh", "-c", "echo not yet; exit 1"]}, "periodSeconds": 1}
    cluster.run_pod(namespace, "p", command=_FOREVER, readinessProbe=check)
    wait_until(lambda: "Readiness probe failed: not yet\n" in messages(cluster, namespace, "Unhealthy"))
    cluster.run_pod(namespace, "q", command=_FOREVER, readinessProbe={"tcpSocket": {"port": 9}, "periodSeconds": 1})
    wait_until(lambda: messages(cluster, namespace, "Unhealthy", "q"))
    assert "connect: connection refused" in messages(cluster, namespace, "Unhealthy", "q")[0]


def test_too_much_memory_is_killed(cluster: RunningCluster, namespace: str) -> None:
    script = "import time; held = bytearray(200 << 20); time.sleep(60)"
    limits = {"limits": {"memory": "64Mi"}}
    cluster.run_pod(namespace, "p", command=["python3", "-c", script], resources=limits, restartPolicy="Never")
    pod = cluster.wait_pod(namespace, "p", lambda pod: pod["status"]["phase"] == "Failed")
    terminated = status_of(pod)["state"]["terminated"]
    assert (terminated["reason"], terminated["exitCode"]) == ("OOMKilled", 137)


def test_two_pods_listen_on_one_port(cluster: RunningCluster, namespace: str) -> None:
    ports = [{"containerPort": 8000}]
    served = {"httpGet": {"path": "/", "port": 8000}, "periodSeconds": 1}
    for name in ("a", "b"):
        cluster.run_pod(namespace, name, image="server:1", ports=ports, readinessProbe=served)
    for name in ("a", "b"):
        cluster.wait_pod(namespace, name, is_ready)
        assert cluster.request("GET", f"/api/v1/namespaces/{namespace}/pods/{name}:8000/proxy/").ok


def test_programs_that_listen_everywhere_are_kept_apart(cluster: RunningCluster, namespace: str) -> None:
    """Without an address in its arguments a program takes the port of all addresses; the next pod gets another one."""
    served = {"httpGet": {"path": "/", "port": 18733}, "periodSeconds": 1}
    for name in ("a", "b"):
        script = f"import os; os.makedirs('{name}', exist_ok=True)"
        command = ["sh", "-c", f'python3 -c "{script}"; exec python3 -m http.server 18733']
        cluster.run_pod(namespace, name, command=command, ports=[{"containerPort": 18733}], readinessProbe=served)
        cluster.wait_pod(namespace, name, is_ready)
    for name in ("a", "b"):
        page = cluster.request("GET", f"/api/v1/namespaces/{namespace}/pods/{name}:18733/proxy/").text
        assert f'href="{name}/"' in page


def test_stopping_runs_the_hook_then_asks_then_kills(cluster: RunningCluster, namespace: str) -> None:
    script = """
import signal, time
signal.signal(15, lambda *_: print("asked", flush=True))
print("up", flush=True)
while True:
    time.sleep(1)
"""
    hook = {"preStop": {"exec": {"command": ["sh", "-c", "echo hook > /v/hook"]}}}
    claim_path = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    cluster.create(claim_path, {"metadata": {"name": "v"}, "spec": spec})
    cluster.run_pod(
        namespace,
        "p",
        command=["python3", "-c", script],
        lifecycle=hook,
        terminationGracePeriodSeconds=2,
        volumes=[{"name": "v", "persistentVolumeClaim": {"claimName": "v"}}],
        volumeMounts=[{"name": "v", "mountPath": "/v"}],
    )
    cluster.wait_pod(namespace, "p", is_ready)
    wait_until(lambda: "up" in cluster.log(namespace, "p"))
    response = cluster.request("DELETE", f"/api/v1/namespaces/{namespace}/pods/p")
    assert response.json()["metadata"]["deletionGracePeriodSeconds"] == 2
    wait_until(lambda: "asked" in cluster.log(namespace, "p"))
    assert (cluster.folder / "cluster" / "claims" / namespace / "v" / "hook").read_text() == "hook\n"
    assert "Stopping container main" in messages(cluster, namespace, "Killing")
    wait_until(lambda: cluster.request("GET", f"/api/v1/namespaces/{namespace}/pods/p").status_code == 404)


def test_children_of_a_container_end_with_it(cluster: RunningCluster, namespace: str) -> None:
    script = "import subprocess as s; child = s.Popen(['sleep', '4711'], start_new_session=True); print(child.pid)"
    cluster.run_pod(namespace, "p", command=["python3", "-c", script], restartPolicy="Never")
    cluster.wait_pod(namespace, "p", lambda pod: pod["status"]["phase"] == "Succeeded")
    pid = int(cluster.log(namespace, "p"))
    assert not Path(f"/proc/{pid}").exists()


def test_logs_are_cut_as_asked(cluster: RunningCluster, namespace: str) -> None:
    script = "for i in range(5): print('line', i)\nprint('no newline', end='')"
    assert printed(cluster, namespace, script).endswith("line 4\nno newline")
    assert cluster.log(namespace, "p", "tailLines=2") == "line 4\nno newline"
    assert cluster.log(namespace, "p", "limitBytes=9") == "line 0\nli"
    assert cluster.log(namespace, "p", "sinceTime=2100-01-01T00:00:00Z") == ""
    assert cluster.log(namespace, "p", "sinceSeconds=1000").count("line") == 6
    response = cluster.request("GET", f"/api/v1/namespaces/{namespace}/pods/p/log?container=x")
    assert (response.status_code, "container x is not valid for pod p" in response.text) == (400, True)


@pytest.mark.parametrize("policy", ["Always", "OnFailure"])
def test_restart_policy_decides_about_success(cluster: RunningCluster, namespace: str, policy: str) -> None:
    cluster.run_pod(namespace, "p", command=["true"], restartPolicy=policy)
    ended = lambda pod: status_of(pod)["restartCount"] >= 1 or pod["status"]["phase"] == "Succeeded"
    pod = cluster.wait_pod(namespace, "p", ended)
    assert (pod["status"]["phase"] == "Succeeded") == (policy == "OnFailure")
