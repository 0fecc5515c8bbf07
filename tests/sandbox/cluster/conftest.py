"""A cluster for each test file, and the two real clients that speak to it."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from kubernetes import client, config

_START_SECONDS = 30.0
KUBECTL = Path(sys.executable).with_name("kubectl")
PYTHON_FOLDER = str(Path(sys.executable).resolve().parent)

IMAGES = [
    {"image": "python:3.11", "path": PYTHON_FOLDER, "environment": {"FROM_IMAGE": "yes"}},
    {
        "image": "server:*",
        "path": PYTHON_FOLDER,
        "entrypoint": ["python3", "-u", "-m", "http.server"],
        "cmd": ["8000", "--bind", "0.0.0.0"],
    },
    {"image": "forbidden:1", "pull_error": "rpc error: code = Unknown desc = failed to pull: 403 Forbidden"},
]

_numbers = itertools.count()


@dataclass
class RunningCluster:
    """A cluster process and the ways to reach it."""

    folder: Path
    extra: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None
    state: dict[str, Any] = field(default_factory=dict)

    def start(self) -> "RunningCluster":
        """Start the process and wait until it serves."""
        images = self.folder / "images.json"
        images.write_text(json.dumps(IMAGES))
        command = [sys.executable, "-m", "streamway.sandbox.cluster", "--state", str(self.folder), "--port", "0"]
        command += ["--images", str(images), "--gpus", "8", "--backoff-seconds", "0.4", *self.extra]
        announced = self.folder / "cluster.json"
        announced.unlink(missing_ok=True)
        self.process = subprocess.Popen(command, stderr=(self.folder / "cluster.log").open("ab"))
        wait_until(announced.exists, _START_SECONDS, lambda: (self.folder / "cluster.log").read_text())
        self.state = json.loads(announced.read_text())
        return self

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop the process and give its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(20)

    @property
    def kubeconfig(self) -> dict[str, Any]:
        return yaml.safe_load(Path(self.state["kubeconfig"]).read_text())

    @property
    def api(self) -> client.ApiClient:
        return config.new_client_from_config(self.state["kubeconfig"])

    @property
    def core(self) -> client.CoreV1Api:
        return client.CoreV1Api(self.api)

    @property
    def apps(self) -> client.AppsV1Api:
        return client.AppsV1Api(self.api)

    def kubectl(self, *arguments: str, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the real kubectl."""
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "KUBECONFIG": self.state["kubeconfig"]}
        done = subprocess.run(
            [KUBECTL, *arguments], input=stdin, capture_output=True, text=True, env=environment, timeout=60
        )
        assert not check or done.returncode == 0, f"kubectl {arguments}: {done.stdout}{done.stderr}"
        return done

    def request(self, method: str, path: str, body: Any = None, **options: Any) -> requests.Response:
        """Send a bare HTTP request with the administrator's token."""
        known = self.kubeconfig
        headers = {"Authorization": f"Bearer {known['users'][0]['user']['token']}", **options.pop("headers", {})}
        authority = str(self.folder / "cluster" / "keys" / "ca.crt")
        if body is not None:
            options["data"] = json.dumps(body)
            headers.setdefault("Content-Type", "application/json")
        url = self.state["url"] + path
        return requests.request(method, url, headers=headers, verify=authority, timeout=20, **options)

    def knob(self, path: str, body: Any = None, method: str = "POST") -> Any:
        """Turn a knob."""
        response = self.request(method, f"/sandbox/{path}", body or {})
        assert response.ok, response.text
        return response.json()

    def apply(self, *manifests: dict[str, Any]) -> None:
        """Apply manifests with kubectl, server-side."""
        text = yaml.safe_dump_all(manifests)
        self.kubectl("apply", "--server-side", "--field-manager=test", "-f", "-", stdin=text)

    def create(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Create an object by a bare request."""
        response = self.request("POST", path, body)
        assert response.ok, response.text
        return response.json()

    def get(self, path: str) -> dict[str, Any]:
        """Read an object by a bare request."""
        response = self.request("GET", path)
        assert response.ok, response.text
        return response.json()

    def namespace(self, name: str) -> str:
        """Make a namespace and wait until it is furnished."""
        self.create("/api/v1/namespaces", {"metadata": {"name": name}})
        accounts = f"/api/v1/namespaces/{name}/serviceaccounts/default"
        wait_until(lambda: self.request("GET", accounts).ok)
        return name

    def pod(self, namespace: str, name: str) -> dict[str, Any]:
        """Read a pod."""
        return self.get(f"/api/v1/namespaces/{namespace}/pods/{name}")

    def run_pod(self, namespace: str, name: str, /, **spec: Any) -> dict[str, Any]:
        """Create a pod of one container."""
        return self.create(f"/api/v1/namespaces/{namespace}/pods", pod_manifest(name, **spec))

    def wait_pod(
        self, namespace: str, name: str, test: Callable[[dict[str, Any]], Any], seconds: float = 20.0
    ) -> dict[str, Any]:
        """Wait until a pod is as wanted, and give it."""
        found: dict[str, Any] = {}

        def satisfied() -> bool:
            found.clear()
            found.update(self.pod(namespace, name))
            return bool(test(found))

        wait_until(satisfied, seconds, lambda: json.dumps(found.get("status"), indent=1))
        return found

    def events(self, namespace: str, **fields: str) -> list[dict[str, Any]]:
        """List events, newest last."""
        selector = ",".join(f"{key.replace('__', '.')}={value}" for key, value in fields.items())
        items = self.get(f"/api/v1/namespaces/{namespace}/events?fieldSelector={selector}")["items"]
        return sorted(items, key=lambda one: int(one["metadata"]["resourceVersion"]))

    def log(self, namespace: str, name: str, query: str = "") -> str:
        """Read a pod's log."""
        response = self.request("GET", f"/api/v1/namespaces/{namespace}/pods/{name}/log?{query}")
        assert response.ok, response.text
        return response.text


def wait_until(test: Callable[[], Any], seconds: float = 20.0, explain: Callable[[], str] = str) -> None:
    """Ask again and again until something holds."""
    deadline = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < deadline, f"did not happen within {seconds} s: {explain()}"
        time.sleep(0.05)


def pod_manifest(name: str, /, **spec: Any) -> dict[str, Any]:
    """Describe a pod of one container; container fields and pod fields may be given together."""
    pod_fields = (
        "restartPolicy",
        "initContainers",
        "volumes",
        "terminationGracePeriodSeconds",
        "nodeSelector",
        "enableServiceLinks",
        "tolerations",
        "serviceAccountName",
        "affinity",
    )
    outer = {key: spec.pop(key) for key in pod_fields if key in spec}
    labels = spec.pop("labels", {"app": name})
    container = {"name": "main", "image": "python:3.11", **spec}
    toleration = {"key": "nvidia.com/gpu", "operator": "Exists"}
    outer.setdefault("tolerations", [toleration])
    outer.setdefault("terminationGracePeriodSeconds", 1)
    metadata = {"name": name, "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container], **outer}}


def deployment_manifest(name: str, namespace: str, replicas: int = 1, **spec: Any) -> dict[str, Any]:
    """Describe a Deployment of one container; strategy and other Deployment fields may be given too."""
    own = ("strategy", "minReadySeconds", "progressDeadlineSeconds", "revisionHistoryLimit", "paused")
    outer = {key: spec.pop(key) for key in own if key in spec}
    template = pod_manifest(name, **spec)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": template["spec"]},
            **outer,
        },
    }


def job_spec(
    *, restart_policy: str = "Never", limits: dict[str, Any] | None = None, **container: Any
) -> dict[str, Any]:
    """Describe what a Job of one container does; `limits` are fields of the Job itself."""
    template = pod_manifest("job", restartPolicy=restart_policy, **container)
    return {**(limits or {}), "template": {"spec": template["spec"]}}


def is_ready(pod: dict[str, Any]) -> bool:
    """Tell whether a pod is Ready."""
    conditions = pod.get("status", {}).get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """A running cluster for the tests of one file."""
    running = RunningCluster(tmp_path_factory.mktemp("cluster")).start()
    try:
        yield running
    finally:
        running.stop()
        shutil.rmtree(running.folder, ignore_errors=True)


@pytest.fixture
def namespace(cluster: RunningCluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own, whose content goes when the test ends."""
    words = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:50].strip("-")
    name = cluster.namespace(f"{words}-{next(_numbers)}")
    yield name
    cluster.request("DELETE", f"/api/v1/namespaces/{name}")
