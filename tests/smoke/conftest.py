"""An endpoint to be asked: the engine's double behind an API server that knows only what the smoke test needs."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import urllib3

DOUBLE = Path(__file__).parents[1] / "server" / "images" / "double" / "vllm"
SHA = "0123456789abcdef0123456789abcdef01234567"
URI = f"gs://models/prefix/org/tiny/{SHA}/"


@dataclass
class Cluster:
    """What the API server's double knows."""

    url: str = ""
    engine_port: int = 0
    releases: list[str] = field(default_factory=lambda: [SHA])
    selector: dict[str, str] = field(default_factory=lambda: {"app.kubernetes.io/instance": "tiny"})
    proxy_status: int = 0
    requests: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    under_way: int = 0
    most_at_once: int = 0
    lock: Any = field(default_factory=threading.Lock)

    @contextmanager
    def counted(self, body: bytes | None) -> Iterator[None]:
        """Keep what is asked, and how much of it at once."""
        if body:
            self.bodies.append(json.loads(body))
        with self.lock:
            self.under_way += 1
            self.most_at_once = max(self.most_at_once, self.under_way)
        try:
            yield
        finally:
            with self.lock:
                self.under_way -= 1

    def answer(self, path: str) -> tuple[int, Any]:
        base = "/api/v1/namespaces/models"
        if path == "/api":
            return 200, {"kind": "APIVersions", "versions": ["v1"]}
        if path == f"{base}/services/tiny":
            return 200, {"kind": "Service", "spec": {"selector": self.selector}}
        if path == f"{base}/pods":
            return 200, {"kind": "PodList", "items": [self._pod(sha) for sha in self.releases]}
        return 404, {"kind": "Status", "message": f"{path} not found", "reason": "NotFound", "code": 404}

    def _pod(self, sha: str) -> dict[str, Any]:
        annotations = {"streamway/release": sha} if sha else {}
        return {"metadata": {"name": "pod", "annotations": annotations}, "status": {"phase": "Running"}}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    state = Cluster()
    pool = urllib3.PoolManager(retries=False)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._serve(None)

        def do_POST(self) -> None:
            self._serve(self.rfile.read(int(self.headers["Content-Length"])))

        def _serve(self, body: bytes | None) -> None:
            path = self.path.partition("?")[0]
            marker = "/services/http:tiny:8000/proxy"
            if state.proxy_status:
                message = 'services "tiny" is forbidden: User "me" cannot get resource "services/proxy" in API group ""'
                status = {"kind": "Status", "message": message, "reason": "Forbidden", "code": state.proxy_status}
                self._json(*(state.answer(path) if marker not in path else (state.proxy_status, status)))
                return
            if marker not in path:
                self._json(*state.answer(path))
                return
            state.requests.append(path.partition(marker)[2])
            if not state.engine_port:
                message = 'no endpoints available for service "tiny"'
                self._json(503, {"kind": "Status", "message": message, "code": 503})
                return
            with state.counted(body):
                self._forward(path.partition(marker)[2], body)

        def _forward(self, path: str, body: bytes | None) -> None:
            answer = pool.request(
                self.command,
                f"http://127.0.0.1:{state.engine_port}{path}",
                body=body,
                headers={"Content-Type": "application/json"},
                preload_content=False,
            )
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers["Content-Type"])
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for piece in answer.stream(1024):
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")

        def _json(self, status: int, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("KUBECONFIG", str(_kubeconfig(tmp_path, state.url)))
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture
def engine(cluster: Cluster) -> Iterator[Callable[..., Cluster]]:
    """Starts the engine's double with the behaviour that is asked for."""
    processes: list[subprocess.Popen[str]] = []

    def start(answers: dict[str, str] | None = None, *, model: str = "org/tiny", **knobs: str) -> Cluster:
        environment = {f"DOUBLE_{name.upper()}": value for name, value in knobs.items()}
        if answers is not None:
            environment["DOUBLE_ANSWERS"] = json.dumps(answers)
        process = subprocess.Popen(
            [sys.executable, str(DOUBLE), "serve", URI, f"--served-model-name={model}"]
            + ["--host=127.0.0.1", "--port=0", "--load-format=runai_streamer"],
            env=os.environ | environment | {"DOUBLE_SHOW_PORT": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        processes.append(process)
        assert process.stdout is not None
        cluster.engine_port = int(process.stdout.readline())
        return cluster

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def _kubeconfig(folder: Path, url: str) -> Path:
    path = folder / "kubeconfig"
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "clusters": [{"name": "test", "cluster": {"server": url}}],
                "users": [{"name": "test", "user": {"token": "secret"}}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            }
        )
    )
    return path
