"""Servers to render, and a cluster to roll them out on.

Where STREAMWAY_TEST_IMAGE names an image that has the engine's double as its `vllm`, made by images/double/Dockerfile,
the cluster is that of KUBECONFIG; otherwise the sandbox's is started, so that nobody tests on a cluster of theirs by
accident. No test knows which it is.
"""

import base64
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import urllib3

from streamway.cluster import ClusterConnection, connect
from streamway.errors import ApiServerError
from streamway.server import DeployedServer, Resources, ServerSpec, deploy_server

SHA = "0123456789abcdef0123456789abcdef01234567"
GIB = 1024**3
MIB = 1024**2
IMAGES = Path(__file__).parent / "images"
SETTINGS: dict[str, Any] = {
    "release_uri": f"gs://models/prefix/org/tiny/{SHA}/",
    "model_id": "org/tiny",
    "commit_sha": SHA,
    "size_bytes": 16 * GIB,
    "name": "tiny",
    "namespace": "models",
    "image": "vllm/vllm-openai:v0.32.0",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a cluster, and so can be run on any: pytest -m cluster."""
    for item in items:
        if Path(__file__).parent in item.path.parents and "session_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.cluster)


@pytest.fixture
def spec() -> Callable[..., ServerSpec]:
    """Makes a spec, with what a test changes."""
    return lambda **changes: ServerSpec(**{**SETTINGS, **changes})


@dataclass
class Misfortunes:
    """What can be made to happen to a cluster that is ours to spoil; on any other, such tests are skipped.

    Nodes are asked for in the same way, and a cluster that has enough of them needs no spoiling.
    """

    url: str = ""
    token: str = ""
    authority: str = ""

    def cause(self, path: str, **details: Any) -> Any:
        if not self.url and path == "nodes" and own_gpus() >= details["count"] * details["gpus"]:
            # It has by itself what is asked for.
            return {}
        self.must_be_possible()
        return self._ask("POST", path, details)

    def must_be_possible(self) -> None:
        """Skip the test where nothing may be spoilt; called first where much comes before the misfortune."""
        if not self.url:
            pytest.skip("only a cluster of our own may be spoilt")

    def end(self) -> None:
        if self.url:
            self._ask("DELETE", "faults", {})
            self._ask("POST", "nodes", {"count": 1, "gpus": 1})

    def _ask(self, method: str, path: str, details: Any) -> Any:
        answer = urllib3.PoolManager(ca_cert_data=self.authority or None).request(
            method,
            f"{self.url}/sandbox/{path}",
            json=details,
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=10,
            retries=False,
        )
        assert answer.status < 300, answer.data
        return answer.json()


def own_gpus() -> int:
    """How many GPUs of the kind that is asked for the nodes of the cluster can give to pods."""
    nodes = connect().get("/api/v1/nodes", {"labelSelector": "cloud.google.com/gke-accelerator=nvidia-l4"})["items"]
    open_to_pods = [node["status"] for node in nodes if not node["spec"].get("unschedulable")]
    return sum(int(status.get("allocatable", {}).get("nvidia.com/gpu", 0)) for status in open_to_pods)


@dataclass(frozen=True)
class Cluster:
    """A cluster, and the image of the engine's double there; one of our own can be stopped and started."""

    kubeconfig: str
    image: str
    misfortunes: Misfortunes
    process: "SandboxProcess | None" = None


@pytest.fixture(scope="session")
def session_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if image := os.environ.get("STREAMWAY_TEST_IMAGE"):
        if not os.environ.get("KUBECONFIG"):
            pytest.skip("KUBECONFIG names no cluster for the image of STREAMWAY_TEST_IMAGE")
        yield Cluster(os.environ["KUBECONFIG"], image, Misfortunes())
        return
    with sandbox_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def another_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster beside the session's."""
    with sandbox_cluster(tmp_path) as cluster:
        yield cluster


@contextmanager
def sandbox_cluster(folder: Path) -> Iterator[Cluster]:
    """Start the sandbox's cluster, and stop it."""
    process = SandboxProcess(folder)
    try:
        part = process.start()
        kubeconfig = part["environment"]["KUBECONFIG"]
        misfortunes = _misfortunes(part["url"], json.loads(_as_json(Path(kubeconfig))))
        misfortunes.cause("node-settings", longest_backoff_seconds=2.0, memory_sample_seconds=0.2)
        yield Cluster(kubeconfig, "example.com/engine-double:1", misfortunes, process)
    finally:
        process.stop()


class SandboxProcess:
    """The process of the sandbox's cluster; one that is started again knows what it knew, at the same address."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        images = folder / "images.json"
        rows = [
            {"image": "example.com/engine-double:*", "path": str(IMAGES / "double")},
            {"image": "python:*-slim-bookworm", "path": str(Path(sys.executable).resolve().parent)},
        ]
        images.write_text(json.dumps(rows))
        self._command = [sys.executable, "-m", "streamway.sandbox.cluster", "--state", str(folder), "--port", "0"]
        self._command += ["--images", str(images), "--backoff-seconds", "0.5"]

    def start(self) -> dict[str, Any]:
        """Start it, and return what it announces once it serves."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        return _started(self._folder / "cluster.json", self._process, self._folder / "log")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(20)


@pytest.fixture
def cluster(session_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("KUBECONFIG", session_cluster.kubeconfig)
    yield session_cluster
    session_cluster.misfortunes.end()


@pytest.fixture
def connection(cluster: Cluster) -> ClusterConnection:
    return connect()


@pytest.fixture
def namespace(connection: ClusterConnection) -> Iterator[str]:
    """A namespace of the test's own, which is deleted, with all in it, when the test is over."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    connection.request("POST", "/api/v1/namespaces", body=body)
    yield name
    path = f"/api/v1/namespaces/{name}"
    try:
        connection.request("DELETE", path)
        for pod in connection.get(f"{path}/pods")["items"]:
            connection.request("DELETE", f"{path}/pods/{pod['metadata']['name']}", query={"gracePeriodSeconds": 0})
    except ApiServerError as error:
        assert error.status in {404, 409}, error
    deadline = time.monotonic() + 30
    while connection.find(path) is not None and time.monotonic() < deadline:
        time.sleep(0.1)


@pytest.fixture
def settings(cluster: Cluster, namespace: str) -> dict[str, Any]:
    """Settings of a server that is the engine's double."""
    return {
        **SETTINGS,
        "namespace": namespace,
        "image": cluster.image,
        "size_bytes": 256 * MIB,
        "resources": Resources(cpus=0.1, memory_bytes=512 * MIB, shm_bytes=16 * MIB, ephemeral_bytes=64 * MIB),
        "check_release": False,
        "drain_seconds": 0,
        "timeout_seconds": 60,
        "unschedulable_seconds": 3,
    }


@pytest.fixture
def deploy(settings: dict[str, Any]) -> Callable[..., DeployedServer]:
    """Deploys the double, with what a test changes; names in capitals set its knobs."""

    def run(**changes: Any) -> DeployedServer:
        knobs = {f"DOUBLE_{name}": value for name, value in changes.items() if name.isupper()}
        plain = {name: value for name, value in changes.items() if not name.isupper()}
        if knobs:
            plain["environment"] = knobs | plain.get("environment", {})
        return deploy_server(**{**settings, **plain})

    return run


def _started(path: Path, process: subprocess.Popen[bytes], log: Path) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if path.exists():
            return dict(json.loads(path.read_text()))
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise AssertionError(f"the cluster did not start:\n{log.read_text()}")


def _misfortunes(url: str, config: dict[str, Any]) -> Misfortunes:
    server = config["clusters"][0]["cluster"]
    authority = base64.b64decode(server.get("certificate-authority-data", "")).decode()
    if path := server.get("certificate-authority"):
        authority = Path(path).read_text()
    return Misfortunes(url=url, token=config["users"][0]["user"]["token"], authority=authority)


def _as_json(path: Path) -> str:
    import yaml

    return json.dumps(yaml.safe_load(path.read_text()))


@pytest.fixture
def as_account(
    cluster: Cluster,
    connection: ClusterConnection,
    namespace: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., None]:
    """Goes on as a service account that has the rights it is given, and no more."""

    def become(*rules: dict[str, Any]) -> None:
        base, rbac = f"/api/v1/namespaces/{namespace}", "/apis/rbac.authorization.k8s.io/v1"
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "limited"}}
        connection.request("POST", f"{base}/serviceaccounts", body=account)
        name = f"limited-{namespace}"
        role = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": {"name": name},
            "rules": list(rules),
        }
        connection.request("POST", f"{rbac}/namespaces/{namespace}/roles", body=role)
        binding = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": "limited", "namespace": namespace}],
        }
        connection.request("POST", f"{rbac}/namespaces/{namespace}/rolebindings", body=binding)
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        token = connection.request("POST", f"{base}/serviceaccounts/limited/token", body=request)["status"]["token"]
        config = json.loads(_as_json(Path(cluster.kubeconfig)))
        config["users"] = [{"name": user["name"], "user": {"token": token}} for user in config["users"]]
        path = tmp_path / "limited-kubeconfig"
        path.write_text(json.dumps(config))
        monkeypatch.setenv("KUBECONFIG", str(path))

    return become
