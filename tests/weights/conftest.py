"""What the tests of checkpoint formats share: writers of checkpoints that need no torch, and a real bucket."""

import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from part_processes import announcement, start_part

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def _bucket_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    state = tmp_path_factory.mktemp("cloud")
    process = start_part("bucket", state, "--buckets", "weights=US-CENTRAL1")
    yield announcement("bucket", state)["environment"]
    process.terminate()
    process.wait(30)


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
