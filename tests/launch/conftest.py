"""Parts of the sandbox for tests that start pipelines: each a process of its own, stopped at the end."""

import json
import signal
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import part_processes
import pytest
from kfp import compiler, dsl


@dsl.component(base_image="python:test", install_kfp_package=False)
def greet(name: str, count: int, fail: bool) -> str:
    if fail:
        raise ValueError("asked to")
    return name * count


@dsl.pipeline(name="small-talk")
def small_talk(name: str, count: int = 2, share: float = 0.5, fail: bool = False, more: list = [], options: dict = {}):  # noqa: B006
    greet(name=name, count=count, fail=fail)


class Part:
    """One running process of the sandbox."""

    def __init__(self, module: str, state: Path, *arguments: str) -> None:
        self.process = part_processes.start_part(module, state, *arguments)
        self.announced = part_processes.announcement(module, state)
        self.url = self.announced["url"]
        self.state = state
        self.project = "project"

    @property
    def place(self) -> str:
        return f"/v1/projects/{self.project}/locations/us-central1"

    def call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        return self.send("GET" if body is None else "POST", path, body)

    def send(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        return json.loads(urllib.request.urlopen(request).read())

    def fail_next(self, method: str, path: str, **fault: Any) -> None:
        self.call("/sandbox/faults", {"method": method, "path": path, "kind": "status", **fault})

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=20)


StartPart = Callable[..., Part]


@pytest.fixture
def start_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StartPart]:
    """Start a part, and point this process at it as its clients are pointed."""
    parts: list[Part] = []
    state = tmp_path / "state"
    state.mkdir()

    def begin(module: str, *arguments: str) -> Part:
        part = Part(module, state, *arguments)
        parts.append(part)
        for name, value in part.announced["environment"].items():
            monkeypatch.setenv(name, value)
        return part

    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "project")
    yield begin
    for part in reversed(parts):
        part.stop()


@pytest.fixture(scope="module")
def start_shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartPart]:
    """Start a part for all tests of a file."""
    parts: list[Part] = []
    state = tmp_path_factory.mktemp("state")

    def begin(module: str, *arguments: str) -> Part:
        parts.append(Part(module, state, *arguments))
        return parts[-1]

    yield begin
    for part in reversed(parts):
        part.stop()


@pytest.fixture(scope="session")
def shared_vertex(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Part]:
    part = Part("vertex", tmp_path_factory.mktemp("vertex"), "--concurrency", "0")
    yield part
    part.stop()


@pytest.fixture
def queueing(shared_vertex: Part, monkeypatch: pytest.MonkeyPatch) -> Iterator[Part]:
    """A Vertex AI on which nothing ever leaves the queue, with a project of the test's own."""
    shared_vertex.project = f"project-{uuid.uuid4().hex[:8]}"
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", shared_vertex.project)
    for name, value in shared_vertex.announced["environment"].items():
        monkeypatch.setenv(name, value)
    yield shared_vertex
    shared_vertex.send("DELETE", "/sandbox/faults")


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compiled") / "small_talk.yaml"
    compiler.Compiler().compile(small_talk, str(path))
    return path
