"""The service proxy and exec: requests and processes inside the cluster, reached through the API server."""

import json
import time

import pytest
from kubernetes.stream import stream

from tests.sandbox.cluster.conftest import RunningCluster, is_ready, wait_until

_SERVER = """
import http.server, json, time
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *a): pass
    def do_GET(self):
        if self.path.startswith("/events"):
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            for i in range(3):
                self.wfile.write(f"data: {i} {time.time()}\\n\\n".encode())
                self.wfile.flush()
                time.sleep(0.5)
            return
        self.answer(200 if not self.path.startswith("/missing") else 404, b"")
    def do_POST(self):
        self.answer(201, self.rfile.read(int(self.headers["Content-Length"])))
    def answer(self, code, body):
        seen = {"method": self.command, "path": self.path, "body": body.decode(), "headers": dict(self.headers)}
        data = json.dumps(seen).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Answer", "yes")
        self.end_headers()
        self.wfile.write(data)
http.server.ThreadingHTTPServer(("0.0.0.0", 8000), H).serve_forever()
"""


@pytest.fixture(scope="module")
def echo(cluster: RunningCluster) -> str:
    """A namespace with a Service that says what it was asked."""
    name = cluster.namespace("echo")
    ready = {"tcpSocket": {"port": "http"}, "periodSeconds": 1}
    cluster.run_pod(
        name,
        "echo",
        command=["python3", "-c", _SERVER],
        ports=[{"containerPort": 8000, "name": "http"}],
        readinessProbe=ready,
        env=[{"name": "A", "value": "b"}],
        volumes=[{"name": "v", "emptyDir": {}}],
        volumeMounts=[{"name": "v", "mountPath": "/cache"}],
    )
    spec = {"selector": {"app": "echo"}, "ports": [{"name": "api", "port": 80, "targetPort": "http"}]}
    cluster.create(f"/api/v1/namespaces/{name}/services", {"metadata": {"name": "echo"}, "spec": spec})
    cluster.wait_pod(name, "echo", is_ready)
    wait_until(lambda: cluster.get(f"/api/v1/namespaces/{name}/endpoints/echo").get("subsets"))
    return name


@pytest.mark.parametrize("port", ["echo", "echo:80", "echo:api", "http:echo:80", "http:echo:api"])
def test_service_is_reached_by_number_and_name(cluster: RunningCluster, echo: str, port: str) -> None:
    path = f"/api/v1/namespaces/{echo}/services/{port}/proxy/v1/models?a=b%2Fc&d"
    response = cluster.request("GET", path)
    assert response.headers["X-Answer"] == "yes"
    assert response.json()["path"] == "/v1/models?a=b%2Fc&d"
    assert "Authorization" not in response.json()["headers"]


def test_bodies_and_codes_pass(cluster: RunningCluster, echo: str) -> None:
    base = f"/api/v1/namespaces/{echo}/services/echo:80/proxy"
    response = cluster.request("POST", f"{base}/v1/chat/completions", {"question": "Paris?"})
    assert response.status_code == 201
    assert json.loads(response.json()["body"]) == {"question": "Paris?"}
    assert cluster.request("GET", f"{base}/missing").status_code == 404


def test_server_sent_events_are_not_held_back(cluster: RunningCluster, echo: str) -> None:
    path = f"/api/v1/namespaces/{echo}/services/echo:80/proxy/events"
    with cluster.request("GET", path, stream=True) as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        lines = (line for line in response.iter_lines(chunk_size=1) if line)
        delays = [time.time() - float(line.split()[2]) for line in lines]
    assert len(delays) == 3
    # The server pauses half a second between events; a buffered answer would be late by at least that.
    assert delays[0] < 0.45


def test_typed_client_reaches_a_service(cluster: RunningCluster, echo: str) -> None:
    answer = cluster.core.connect_get_namespaced_service_proxy_with_path("echo:80", echo, "health")
    assert "'path': '/health'" in answer


def test_pod_is_reached(cluster: RunningCluster, echo: str) -> None:
    for name in ("echo", "echo:8000", "http:echo:8000"):
        assert cluster.request("GET", f"/api/v1/namespaces/{echo}/pods/{name}/proxy/x").json()["path"] == "/x"


def test_service_without_ready_pods_is_unavailable(cluster: RunningCluster, namespace: str) -> None:
    spec = {"selector": {"app": "none"}, "ports": [{"port": 80}]}
    cluster.create(f"/api/v1/namespaces/{namespace}/services", {"metadata": {"name": "empty"}, "spec": spec})
    response = cluster.request("GET", f"/api/v1/namespaces/{namespace}/services/empty:80/proxy/")
    assert (response.status_code, response.json()["reason"]) == (503, "ServiceUnavailable")
    assert response.json()["message"] == 'no endpoints available for service "empty"'
    response = cluster.request("GET", f"/api/v1/namespaces/{namespace}/services/empty:81/proxy/")
    assert response.json()["message"] == 'no service port "81" found for service "empty"'
    assert cluster.request("GET", f"/api/v1/namespaces/{namespace}/services/none:80/proxy/").status_code == 404


def test_pod_that_does_not_listen_is_unavailable(cluster: RunningCluster, namespace: str) -> None:
    cluster.run_pod(namespace, "p", command=["sleep", "60"])
    cluster.wait_pod(namespace, "p", is_ready)
    response = cluster.request("GET", f"/api/v1/namespaces/{namespace}/pods/p:8000/proxy/")
    assert response.status_code == 503
    assert "error trying to reach service: dial tcp 127." in response.json()["message"]
    assert "connect: connection refused" in response.json()["message"]


def test_refusals_on_order(cluster: RunningCluster, echo: str) -> None:
    cluster.knob("proxy-refusals", {"count": 1})
    path = f"/api/v1/namespaces/{echo}/services/echo:80/proxy/"
    assert [cluster.request("GET", path).status_code for _ in range(2)] == [503, 200]


def _exec(cluster: RunningCluster, namespace: str, *command: str, **options):
    run = cluster.core.connect_get_namespaced_pod_exec
    channels = {"stdin": False, "stdout": True, "stderr": True, "tty": False, **options}
    return stream(run, "echo", namespace, command=list(command), **channels)


def test_typed_client_runs_commands(cluster: RunningCluster, echo: str) -> None:
    assert _exec(cluster, echo, "sh", "-c", "echo $A") == "b\n"
    running = _exec(cluster, echo, "sh", "-c", "echo out; echo err >&2; exit 3", _preload_content=False)
    running.run_forever(timeout=10)
    assert (running.read_stdout(), running.read_stderr(), running.returncode) == ("out\n", "err\n", 3)


def test_commands_see_the_mounted_paths(cluster: RunningCluster, echo: str) -> None:
    _exec(cluster, echo, "sh", "-c", "echo kept > /cache/file")
    assert _exec(cluster, echo, "cat", "/cache/file") == "kept\n"


def test_large_output_arrives_whole(cluster: RunningCluster, echo: str) -> None:
    """A warm-start kit is read through exec: tens of megabytes, base64 or not."""
    script = "import sys; sys.stdout.write('x' * (8 << 20))"
    running = _exec(cluster, echo, "python3", "-c", script, _preload_content=False)
    size = 0
    while running.is_open():
        running.update(timeout=1)
        size += len(running.read_stdout(timeout=0.1) or "") if running.peek_stdout() else 0
    assert size == 8 << 20


def test_process_ends_when_its_client_leaves(cluster: RunningCluster, echo: str) -> None:
    running = _exec(cluster, echo, "sh", "-c", "echo $$; exec sleep 4712", _preload_content=False)
    wait_until(lambda: running.peek_stdout(timeout=1))
    pid = int(running.read_stdout())

    def is_gone() -> bool:
        return not _exec(cluster, echo, "sh", "-c", f"kill -0 {pid} 2>/dev/null && echo alive")

    assert not is_gone()
    running.close()
    wait_until(is_gone)
    assert is_gone()


def test_container_that_does_not_run_cannot_be_entered(cluster: RunningCluster, namespace: str) -> None:
    cluster.run_pod(namespace, "p", command=["true"], restartPolicy="Never")
    cluster.wait_pod(namespace, "p", lambda pod: pod["status"]["phase"] == "Succeeded")
    done = cluster.kubectl("exec", "p", "-n", namespace, "--", "true", check=False)
    assert done.returncode != 0


def test_terminal_is_a_terminal(cluster: RunningCluster, echo: str) -> None:
    script = "test -t 0 && read line && stty size && echo got $line"
    running = _exec(cluster, echo, "sh", "-c", script, stdin=True, tty=True, _preload_content=False)
    running.write_channel(4, '{"Width":100,"Height":30}')
    running.write_stdin("hello\n")
    seen = ""
    while running.is_open():
        running.update(timeout=1)
        seen += running.read_stdout(timeout=0.1) or "" if running.peek_stdout() else ""
    assert "30 100\r\ngot hello\r\n" in seen
    assert running.returncode == 0
