"""A conversion that is killed again and again ends as one that never was, and moves little twice."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from models import checksums, pickled_model
from torch_writer import tensor

from streamway.storage import list_files, read_file, write_file
from streamway.weights import convert_weights

SCRIPT = Path(__file__).parent / "convert_slowly.py"
KILLS = 4
PART_BYTES = 5 * 1024 * 1024
WORKERS = 2
MODEL_BYTES = 90_000_000

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def weights() -> bytes:
    return random.Random(3).randbytes(MODEL_BYTES)


def model(folder: str, weights: bytes) -> str:
    """A pickled model of ninety tensors of a megabyte."""
    step = MODEL_BYTES // 90
    state = {
        f"layers.{n}.weight": tensor(weights[n * step : (n + 1) * step], (step // 2,), "bfloat16") for n in range(90)
    }
    return pickled_model(folder, state)


def start(source: str, target: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), source, target]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))


def kill_once(source: str, target: str, grown: Callable[[], int], least: int) -> bool:
    """Start a conversion and kill it when it has moved so much; tell whether it was still running."""
    before = grown()
    process = start(source, target)
    while process.poll() is None and grown() - before < least:
        time.sleep(0.002)
    process.kill()
    process.communicate()
    return process.returncode != 0


def test_killed_on_disk(tmp_path: Path, weights: bytes) -> None:
    source, target = model(str(tmp_path / "source"), weights), str(tmp_path / "target")

    def grown() -> int:
        journals = (tmp_path / "target").rglob("*.journal")
        return sum(len(path.read_bytes().splitlines()) - 1 for path in journals if path.exists())

    chance = random.Random(5)
    killed = [kill_once(source, target, grown, chance.randint(1, 3)) for _ in range(KILLS)]
    assert any(killed)
    finish(source, target, str(tmp_path / "fresh"))


def test_killed_on_the_way_into_a_bucket(bucket_uri: str, weights: bytes) -> None:
    source, target = model(f"{bucket_uri}/source", weights), f"{bucket_uri}/target"
    at_first = uploaded_bytes()
    chance = random.Random(7)
    killed = [kill_once(source, target, uploaded_bytes, chance.randint(1, 30_000_000)) for _ in range(KILLS)]
    assert any(killed)
    outcome = start(source, target)
    told, errors = outcome.communicate(timeout=120)
    assert outcome.returncode == 0, errors
    moved = uploaded_bytes() - at_first
    small = 2_000_000  # headers, saved states, the record
    assert moved <= MODEL_BYTES + sum(killed) * WORKERS * PART_BYTES + small
    assert json.loads(told)["tensors"] == 90
    finish(source, target, f"{bucket_uri}/fresh")


def uploaded_bytes() -> int:
    """Ask the bucket what it was sent."""
    import urllib.request

    with urllib.request.urlopen(f"{os.environ['STORAGE_EMULATOR_HOST']}/sandbox/counters", timeout=10) as answer:
        return int(json.load(answer)["total"]["bytes_in"])


def finish(source: str, target: str, fresh: str) -> None:
    """Run once more, and hold the result against one that nothing disturbed."""
    again = convert_weights(snapshot_uri=source, weights_uri=target, shard_bytes=30_000_000, memory_bytes=11 << 20)
    whole = convert_weights(snapshot_uri=source, weights_uri=fresh, shard_bytes=30_000_000, memory_bytes=11 << 20)
    assert [(file.path, file.sha256) for file in again.files] == [(file.path, file.sha256) for file in whole.files]
    for file in again.files:
        assert (file.sha256, file.crc32c) == checksums(read_file(file.uri)), file.path
    assert not [file for file in list_files(target) if "partial" in file.path]
    write_file(f"{target}/mark", b"still writable")
