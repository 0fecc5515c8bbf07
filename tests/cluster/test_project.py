"""What a project must have for a run: billing, services and rights, asked of Google's own APIs."""

import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

GKE_NAME = "projects/acme/locations/us-central1/clusters/prod"
ASK = """
import dataclasses, json, sys
from streamway.cluster import check_project
from streamway.errors import StreamwayError
try:
    found = check_project(sys.argv[1], services=["secretmanager"])
    print(json.dumps(found and dataclasses.asdict(found)))
except StreamwayError as error:
    print(json.dumps({"kind": type(error).__name__, "problem": error.problem, "next_step": error.next_step}))
"""
SERVICES = ("compute", "container", "secretmanager", "storage")


@pytest.fixture
def answers(google: Any) -> Iterator[dict[str, tuple[int, Any]]]:
    """What Google answers, by path; a project that has all it needs."""
    found: dict[str, tuple[int, Any]] = {
        "/v3/projects/acme:testIamPermissions": (
            200,
            {"permissions": ["container.clusters.connect", "container.clusters.get"]},
        ),
        "/v1/projects/acme/billingInfo": (200, {"billingEnabled": True}),
        "/v1/projects/acme/services:batchGet": (200, {"services": [service(name) for name in SERVICES]}),
    }
    hosts = ("cloudresourcemanager.googleapis.com", "cloudbilling.googleapis.com", "serviceusage.googleapis.com")
    servers = [serve(google.authority.server_context(host), google.tokens.valid, found) for host in hosts]
    google.routes.update({host: server.server_address[1] for host, server in zip(hosts, servers, strict=True)})
    yield found
    for server in servers:
        server.shutdown()
        server.server_close()


def service(name: str, state: str = "ENABLED") -> dict[str, Any]:
    return {"config": {"name": f"{name}.googleapis.com"}, "state": state}


def serve(context: ssl.SSLContext, tokens: set[str], answers: dict[str, tuple[int, Any]]) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            known = self.headers.get("Authorization", "").removeprefix("Bearer ") in tokens
            status, value = answers[self.path.partition("?")[0]] if known else (401, {})
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


@pytest.fixture
def ask(google: Any, answers: Any) -> Callable[..., Any]:
    def run(cluster: str = GKE_NAME) -> Any:
        done = subprocess.run(
            [sys.executable, "-c", ASK, cluster],
            env={**os.environ, **google.environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_a_project_that_has_all_it_needs_passes(ask: Callable[..., Any]) -> None:
    assert ask() == {"name": "acme", "unknown": []}


def test_a_right_that_is_missing_is_named(ask: Callable[..., Any], answers: dict[str, tuple[int, Any]]) -> None:
    answers["/v3/projects/acme:testIamPermissions"] = (200, {"permissions": ["container.clusters.get"]})

    found = ask()
    assert found["kind"] == "ClusterPermissionError"
    assert "In the project acme this account lacks container.clusters.connect." in found["problem"]
    assert "roles/container.developer" in found["next_step"]


def test_a_project_that_is_not_billed_is_told(ask: Callable[..., Any], answers: dict[str, tuple[int, Any]]) -> None:
    answers["/v1/projects/acme/billingInfo"] = (200, {"name": "projects/acme/billingInfo"})

    found = ask()
    assert "Billing is off in the project acme" in found["problem"]
    assert "gcloud billing projects link acme" in found["next_step"]


def test_services_that_are_off_are_named_with_the_command(
    ask: Callable[..., Any], answers: dict[str, tuple[int, Any]]
) -> None:
    rows = [service("compute"), service("container", "DISABLED"), service("storage")]
    answers["/v1/projects/acme/services:batchGet"] = (200, {"services": rows})

    found = ask()
    assert "these services are off: container.googleapis.com, secretmanager.googleapis.com" in found["problem"]
    assert "gcloud services enable container.googleapis.com secretmanager.googleapis.com" in found["next_step"]


def test_what_may_not_be_asked_is_said_and_stops_nothing(
    ask: Callable[..., Any], answers: dict[str, tuple[int, Any]]
) -> None:
    for path in answers:
        answers[path] = (403, {"error": {"code": 403}})

    assert ask()["unknown"] == [
        "what this account may do in acme cannot be asked",
        "whether it is billed cannot be asked",
        "which services are on cannot be asked",
    ]


def test_a_google_that_fails_is_told(ask: Callable[..., Any], answers: dict[str, tuple[int, Any]]) -> None:
    answers["/v1/projects/acme/billingInfo"] = (500, {})

    found = ask()
    assert found["kind"] == "ClusterUnreachableError"
    assert "about the project acme: 500" in found["problem"]


@pytest.mark.parametrize("cluster", ["", "context:mine", "projects/p/locations/l/memberships/m"])
def test_clusters_that_are_reached_in_another_way_have_no_project_to_ask(
    ask: Callable[..., Any], google: Any, cluster: str
) -> None:
    assert ask(cluster) is None
    assert google.reached == []
