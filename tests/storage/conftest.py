"""A real Cloud Storage for these tests: fake-gcs-server behind the sandbox's front, one for the whole session."""

import json
import os
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from part_processes import announcement, start_part

from streamway.storage import Patience


class Part:
    """One process of the sandbox, with its faults and counters."""

    def __init__(self, name: str, state: Path, *arguments: str) -> None:
        self._process = start_part(name, state, *arguments)
        self.state = state
        described = announcement(name, state)
        self.url: str = described["url"]
        self.environment: dict[str, str] = described["environment"]

    def ask(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/sandbox/{path}", data=data, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def arm(self, kind: str, **more: object) -> None:
        self.ask("POST", "faults", {"kind": kind, **more})

    def armed(self) -> list[Any]:
        return self.ask("GET", "faults")["armed"]

    def requests(self, method: str = "", containing: str = "") -> list[dict[str, Any]]:
        counted = self.ask("GET", "counters")["requests"]
        return [r for r in counted if method in ("", r["method"]) and containing in r["subject"] + r["path"]]

    def count(self, method: str = "", containing: str = "") -> int:
        return sum(request["count"] for request in self.requests(method, containing))

    def bytes_in(self) -> int:
        return self.ask("GET", "counters")["total"]["bytes_in"]

    def bytes_out(self) -> int:
        return self.ask("GET", "counters")["total"]["bytes_out"]

    def begin_anew(self) -> None:
        self.ask("DELETE", "faults")
        self.ask("DELETE", "counters")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)


@pytest.fixture(scope="session")
def _bucket_part(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Part]:
    part = Part("bucket", tmp_path_factory.mktemp("cloud"), "--buckets", "tests=US-CENTRAL1,other=EUROPE-WEST4")
    yield part
    part.stop()


@pytest.fixture
def cloud(_bucket_part: Part, monkeypatch: pytest.MonkeyPatch) -> Part:
    """Cloud Storage as the environment names it, without faults and with counters at zero."""
    for name, value in _bucket_part.environment.items():
        monkeypatch.setenv(name, value)
    _bucket_part.begin_anew()
    return _bucket_part


@pytest.fixture
def bucket_uri(cloud: Part) -> str:
    """A prefix of a bucket that nobody else uses."""
    return f"gs://tests/{uuid.uuid4().hex[:12]}"


@pytest.fixture(params=["folder", "bucket"])
def root_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for files: once on disk, once in a bucket."""
    return str(tmp_path / "root") if request.param == "folder" else request.getfixturevalue("bucket_uri")


@pytest.fixture
def hurried() -> Patience:
    """Patience for tests that wait for failures."""
    return Patience(
        connect_seconds=2,
        stall_seconds=1.5,
        attempts=4,
        first_wait_seconds=0.01,
        longest_wait_seconds=0.05,
        longest_told_seconds=3,
    )


@pytest.fixture(scope="session")
def payload() -> bytes:
    """Bytes of several parts at the smallest size of a part, with an odd end."""
    return os.urandom(5 * 1024 * 1024 * 4 + 12_345)
