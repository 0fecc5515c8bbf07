"""What the tests of checkpoint formats share: writers of checkpoints that need no torch, and a real bucket."""

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

START_SECONDS = 60


@pytest.fixture(scope="session")
def _bucket_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    state = tmp_path_factory.mktemp("cloud")
    arguments = ["--state", str(state), "--port", "0", "--buckets", "weights=US-CENTRAL1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "streamway.sandbox.bucket", *arguments], stderr=(state / "bucket.log").open("w")
    )
    described = _wait_for(state / "bucket.json", process)
    yield described["environment"]
    process.terminate()
    process.wait(30)


def _wait_for(path: Path, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    deadline = time.monotonic() + START_SECONDS
    while not path.exists():
        assert process.poll() is None, "the bucket ended before it served"
        assert time.monotonic() < deadline, "the bucket does not serve"
        time.sleep(0.02)
    return json.loads(path.read_text())


@pytest.fixture
def bucket_uri(_bucket_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """A prefix of a bucket that nobody else uses."""
    for name, value in _bucket_environment.items():
        monkeypatch.setenv(name, value)
    return f"gs://weights/{uuid.uuid4().hex[:12]}"


@pytest.fixture(params=["folder", "bucket"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for models: once on disk, once in a bucket."""
    return str(tmp_path) if request.param == "folder" else request.getfixturevalue("bucket_uri")
