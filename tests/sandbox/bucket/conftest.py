"""A bucket part for each file's tests, and parts of their own for tests that kill it."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.cloud import storage

sys.path.insert(0, str(Path(__file__).parent))

from bucket_part import BYTES, Part


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Part]:
    part = Part(tmp_path_factory.mktemp("bucket"))
    yield part
    assert part.stop() == 0
    assert "Traceback" not in part.log


@pytest.fixture
def part(running: Part) -> Part:
    running.forget()
    return running


@pytest.fixture
def own_part(tmp_path: Path) -> Iterator[Part]:
    part = Part(tmp_path)
    yield part
    part.stop()


@pytest.fixture(scope="module")
def stored(running: Part) -> storage.Blob:
    blob = running.bucket.blob("reads/a b.bin")
    blob.metadata = {"k": "v"}
    blob.upload_from_string(BYTES, content_type="a/b")
    return blob
