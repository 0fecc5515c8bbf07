"""A real Hub for the tests of this folder, in a process of its own."""

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from part_processes import announcement, start_part

from streamway.sandbox.processes import write_json


@dataclass(frozen=True, kw_only=True)
class RunningHub:
    """A Hub that serves."""

    url: str
    state_path: Path

    @property
    def repositories(self) -> Path:
        return self.state_path / "hub" / "repos"

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(f"{self.url}{path}", timeout=20, **options)

    def arm(self, **fault: Any) -> None:
        requests.post(f"{self.url}/sandbox/faults", json=fault, timeout=20).raise_for_status()

    def post(self, path: str, value: Any) -> None:
        requests.post(f"{self.url}{path}", json=value, timeout=20).raise_for_status()

    def bytes_of(self, subject: str) -> int:
        """Bytes that have left for one file, `org/name/path`."""
        counted = self.get("/sandbox/counters").json()["requests"]
        return sum(entry["bytes_out"] for entry in counted if entry["subject"] == subject)


@pytest.fixture
def start_hub(tmp_path: Path) -> Iterator[Callable[..., RunningHub]]:
    """Start Hubs with chosen options; all end with the test."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(*options: str, name: str = "state") -> RunningHub:
        state_path = tmp_path / name
        state_path.mkdir()
        tokens = {
            "hf_reader": {"name": "reader", "models": ["org/*"]},
            "hf_stranger": {"name": "stranger", "models": []},
        }
        write_json(state_path / "hub" / "tokens.json", tokens)
        processes.append(start_part("hub", state_path, *options))
        return RunningHub(url=announcement("hub", state_path)["url"], state_path=state_path)

    yield start
    for process in processes:
        process.terminate()
        assert process.wait(timeout=10) == 0


@pytest.fixture
def hub(start_hub: Callable[..., RunningHub]) -> RunningHub:
    return start_hub()


@pytest.fixture
def client_environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which the Hub's client knows nothing of this machine's user."""
    hidden = ("HF_", "HUGGING")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    return {**inherited, "HF_HOME": str(tmp_path / "hf-home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
