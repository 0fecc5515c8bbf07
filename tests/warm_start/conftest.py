"""A cluster and a bucket that know each other, and a published release to serve from them."""

import contextlib
import hashlib
import json
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from part_processes import announcement, start_part

from streamway import gate, server, storage, warm_start
from streamway.cluster import ClusterConnection, connect, run_in_container
from streamway.errors import ApiServerError
from streamway.sandbox.engine import Engine, engine_environment, ensure_engine
from streamway.sandbox.hub_repository import find_repository
from streamway.sandbox.seed import SAFETENSORS_MODEL, ensure_seeds
from streamway.storage.digests import crc32c
from streamway.storage.manifest import Manifest, ManifestFile

IMAGES = Path(__file__).parent / "images"
BUCKET = "kits"
SHA = "0123456789abcdef0123456789abcdef01234567"
MIB = 1024**2


@dataclass(frozen=True)
class Parts:
    """Parts of the sandbox that run for the whole session."""

    kubeconfig: str
    storage_url: str
    images_path: Path
    environment: dict[str, str]


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    folder = tmp_path_factory.mktemp("parts")
    processes: list[subprocess.Popen[bytes]] = []
    try:
        bucket = start(processes, folder, "bucket", "--buckets", f"{BUCKET}=US-CENTRAL1,far-away=EUROPE-WEST4")
        images = folder / "images.json"
        row = {
            "image": "example.com/engine-double:*",
            "path": str(IMAGES / "double"),
            "environment": {"STORAGE_EMULATOR_HOST": bucket["url"]},
        }
        images.write_text(json.dumps([row]))
        cluster = start(processes, folder, "cluster", "--images", str(images), "--gpus", "2")
        caches = start(processes, folder, "caches", "--create-seconds", "0.1")
        yield Parts(
            kubeconfig=cluster["environment"]["KUBECONFIG"],
            storage_url=bucket["url"],
            images_path=images,
            environment=bucket["environment"] | cluster["environment"] | caches["environment"],
        )
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(20)


def start(processes: list[subprocess.Popen[bytes]], folder: Path, part: str, *arguments: str) -> dict[str, Any]:
    processes.append(start_part(part, folder, *arguments))
    return announcement(part, folder)


@pytest.fixture
def connection(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> ClusterConnection:
    monkeypatch.setenv("KUBECONFIG", parts.kubeconfig)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", parts.storage_url)
    return connect()


@pytest.fixture
def namespace(connection: ClusterConnection) -> Iterator[str]:
    name = f"warm-{uuid.uuid4().hex[:8]}"
    connection.request(
        "POST", "/api/v1/namespaces", body={"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    )
    yield name
    # Not as whoever a test became meanwhile.
    path = f"/api/v1/namespaces/{name}"
    connection.request("DELETE", path)
    for pod in connection.get(f"{path}/pods")["items"]:
        with contextlib.suppress(ApiServerError):  # it has just gone with its namespace
            connection.request("DELETE", f"{path}/pods/{pod['metadata']['name']}", query={"gracePeriodSeconds": 0})
    wait_until(lambda: connection.find(path) is None)


@pytest.fixture
def release_uri(connection: ClusterConnection) -> str:
    """A published release of a test's own."""
    uri = f"gs://{BUCKET}/{uuid.uuid4().hex[:8]}/org/tiny/{SHA}/"
    data = b"\x02\0\0\0\0\0\0\0{}"
    stored = storage.write_file(f"{uri}model.safetensors", data)
    file = ManifestFile(
        path="model.safetensors",
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        crc32c=crc32c(data),
        generation=stored.generation,
    )
    manifest = Manifest(
        model_id="org/tiny", revision="main", commit_sha=SHA, licence="mit", source="here", files=(file,)
    )
    storage.write_file(f"{uri.rstrip('/')}.manifest.json", manifest.to_json())
    return uri


@dataclass(frozen=True)
class House:
    """An endpoint, and what can be done with it."""

    connection: ClusterConnection
    namespace: str
    release_uri: str

    def deploy(self, **changes: Any) -> server.DeployedServer:
        """Deploy the double as the deploy step does; names in capitals are variables of its."""
        environment = {name: value for name, value in changes.items() if name.isupper()}
        plain = {name: value for name, value in changes.items() if not name.isupper()}
        settings: dict[str, Any] = {
            "release_uri": self.release_uri,
            "model_id": "org/tiny",
            "commit_sha": SHA,
            "size_bytes": 256 * MIB,
            "name": "tiny",
            "namespace": self.namespace,
            "image": "example.com/engine-double:1",
            "resources": server.Resources(
                cpus=0.1, memory_bytes=512 * MIB, shm_bytes=16 * MIB, ephemeral_bytes=64 * MIB
            ),
            "environment": environment,
            "drain_seconds": 0,
            "timeout_seconds": 60,
            "unschedulable_seconds": 3,
            "find_kit": warm_start.finder(self.release_uri),
            "drop_kit": warm_start.drop_kit,
            "hold": True,
        }
        return server.deploy_server(**{**settings, **plain})

    def prove(self, deployed: server.DeployedServer) -> None:
        """Prove it as the smoke test step does."""
        gate.smoke_test(
            name="tiny",
            namespace=self.namespace,
            revision=deployed.revision,
            service=deployed.service,
            port=deployed.port,
            served_model_name=deployed.served_model_name,
            commit_sha=SHA,
            expected=gate.Expectations(questions=[{"prompt": "What is the capital of France?", "expect": "Paris"}]),
        )

    def serve(self, **changes: Any) -> server.DeployedServer:
        deployed = self.deploy(**changes)
        self.prove(deployed)
        return deployed

    def pods(self) -> list[dict[str, Any]]:
        found = self.get("/api/v1", "pods")["items"]
        return [pod for pod in found if not pod["metadata"].get("deletionTimestamp")]

    def get(self, group: str, resource: str) -> dict[str, Any]:
        return self.connection.get(f"{group}/namespaces/{self.namespace}/{resource}")

    def replace_pod(self, *, seconds: float = 30) -> dict[str, Any]:
        """Lose the pod, as with a node, and return the ready one that comes in its place."""
        (old,) = self.pods()
        path = f"/api/v1/namespaces/{self.namespace}/pods/{old['metadata']['name']}"
        self.connection.request("DELETE", path, query={"gracePeriodSeconds": 0})
        uid = old["metadata"]["uid"]
        wait_until(
            lambda: [pod for pod in self.pods() if pod["metadata"]["uid"] != uid and ready(pod)], seconds=seconds
        )
        (new,) = self.pods()
        return new

    def found_in_cache(self, pod: str) -> dict[str, str]:
        """What the engine of a pod found in its cache when it started: paths and digests."""
        text = self.connection.text(f"/api/v1/namespaces/{self.namespace}/pods/{pod}/log", {"container": "engine"})
        line = next(line for line in text.splitlines() if "CACHE " in line)
        return dict(json.loads(line.partition("CACHE ")[2]))

    def files_in_cache(self, pod: str) -> dict[str, str]:
        """What is in the cache of a pod now: paths and digests."""
        command = ["sh", "-c", 'cd "$VLLM_CACHE_ROOT" && find . -type f -exec sha256sum {} +']
        said = b"".join(run_in_container(self.connection, self.namespace, pod, "engine", command, timeout_seconds=60))
        lines = (line.split(maxsplit=1) for line in said.decode().splitlines())
        return {name.removeprefix("./"): digest for digest, name in lines}

    def said_about_kit(self, pod: dict[str, Any]) -> str:
        statuses = pod["status"]["initContainerStatuses"]
        status = next(status for status in statuses if status["name"] == "restore-kit")
        return str(status["state"]["terminated"]["message"])

    def versions(self) -> dict[str, str]:
        """The resource version of every object of the endpoint, and of the namespace they are in."""
        namespace = self.connection.get(f"/api/v1/namespaces/{self.namespace}")
        found = {"namespaces": namespace["metadata"]["resourceVersion"]}
        for group, resource in (
            ("/apis/apps/v1", "deployments"),
            ("/apis/apps/v1", "replicasets"),
            ("/api/v1", "services"),
            ("/api/v1", "endpoints"),
            ("/apis/discovery.k8s.io/v1", "endpointslices"),
            ("/apis/coordination.k8s.io/v1", "leases"),
            ("/api/v1", "configmaps"),
            ("/api/v1", "serviceaccounts"),
            ("/api/v1", "pods"),
            ("/apis/policy/v1", "poddisruptionbudgets"),
        ):
            for item in self.get(group, resource)["items"]:
                found[f"{resource}/{item['metadata']['name']}"] = item["metadata"]["resourceVersion"]
        return found


@pytest.fixture
def house(connection: ClusterConnection, namespace: str, release_uri: str) -> House:
    return House(connection, namespace, release_uri)


@pytest.fixture
def until_ready(house: House) -> Callable[[int], None]:
    """Waits until so many pods are ready."""
    return lambda count: wait_until(lambda: sum(map(ready, house.pods())) == count)


@pytest.fixture
def as_account(
    parts: Parts, connection: ClusterConnection, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Goes on as a service account that has the rights it is given, and no more."""

    def become(rules: list[dict[str, Any]]) -> None:
        base, rbac = f"/api/v1/namespaces/{namespace}", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "limited"}}
        connection.request("POST", f"{base}/serviceaccounts", body=account)
        group = "rbac.authorization.k8s.io"
        role = {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": {"name": "limited"}, "rules": rules}
        connection.request("POST", f"{rbac}/roles", body=role)
        binding = {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "limited"},
            "roleRef": {"apiGroup": group, "kind": "Role", "name": "limited"},
            "subjects": [{"kind": "ServiceAccount", "name": "limited", "namespace": namespace}],
        }
        connection.request("POST", f"{rbac}/rolebindings", body=binding)
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        token = connection.request("POST", f"{base}/serviceaccounts/limited/token", body=request)["status"]["token"]
        config = yaml.safe_load(Path(parts.kubeconfig).read_text())
        config["users"] = [{"name": user["name"], "user": {"token": token}} for user in config["users"]]
        limited = tmp_path / "limited-kubeconfig"
        limited.write_text(json.dumps(config))
        monkeypatch.setenv("KUBECONFIG", str(limited))

    return become


@pytest.fixture(scope="session")
def real_engine(parts: Parts) -> Engine:
    """The real engine, which from now on is an image of the cluster's."""
    engine = ensure_engine(print)
    row = {
        "image": "vllm/vllm-openai:*",
        "path": str(engine.bin_path),
        "environment": {
            **engine_environment(engine),
            "STORAGE_EMULATOR_HOST": parts.storage_url,
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": parts.storage_url,
            "RUNAI_STREAMER_GCS_USE_ANONYMOUS_CREDENTIALS": "true",
            "GOOGLE_CLOUD_PROJECT": "tests",
            "VLLM_RPC_BASE_PATH": "/tmp",
        },
    }
    fresh = parts.images_path.with_suffix(".new")
    fresh.write_text(json.dumps([*json.loads(parts.images_path.read_text()), row]))
    fresh.replace(parts.images_path)
    return engine


@pytest.fixture
def real_model(real_engine: Engine, tmp_path: Path) -> Path:
    """A folder with the files of a small real model."""
    repository = find_repository(ensure_seeds(real_engine, print), SAFETENSORS_MODEL)
    assert repository is not None
    commit = repository.resolve("main")
    assert commit is not None
    folder = tmp_path / "model"
    folder.mkdir()
    for path, file in commit.files.items():
        if not path.startswith("."):
            (folder / path).symlink_to(repository.blob_path(file))
    return folder


def ready(pod: dict[str, Any]) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(entry["type"] == "Ready" and entry["status"] == "True" for entry in conditions)


def wait_until(condition: Callable[[], object], *, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)
