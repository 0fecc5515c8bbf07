"""A process that is killed at any moment loses at most the parts that its workers held."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from streamway import storage

PART = 5 * 1024 * 1024
WORKERS = 2
KILLS = 8
LIMIT_SECONDS = 120

# The whole way of a safetensors model: pull, the record of a conversion that passes everything through, publication.
RUN = f"""
import sys
from streamway import hub, storage
from streamway.storage.records import WEIGHTS_RECORD, PreparedWeights

root, staging = sys.argv[1:]
limits = {{"memory_bytes": {WORKERS * PART}, "workers": {WORKERS}}}
print("ready", flush=True)
pulled = hub.pull_model(model_id="org/killed", release_root=root, staging_uri=staging, **limits)
if pulled.already_published:
    raise SystemExit
layout = storage.ModelLayout(root, pulled.model_id, pulled.commit_sha)
prepared = PreparedWeights(model_id=pulled.model_id, revision="main", commit_sha=pulled.commit_sha, licence="mit",
                           source="hub", files=pulled.files)
storage.write_file(storage.join(layout.weights_uri, WEIGHTS_RECORD), prepared.to_json().encode())
storage.upload_model(weights_uri=layout.weights_uri, release_root=root, **limits)
"""


def start(root_uri: str, staging_uri: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, root_uri, staging_uri], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


def requests_so_far(*parts: Any) -> int:
    return sum(part.count() for part in parts)


@pytest.mark.slow
@pytest.mark.parametrize("places", ["bucket", "folder", "folder to bucket"])
def test_runs_killed_at_random_moments_end_in_one_whole_release(
    hub: Any, cloud: Any, bucket_uri: str, tmp_path: Path, places: str
) -> None:
    root_uri = str(tmp_path / "root") if places == "folder" else bucket_uri
    staging_uri = str(tmp_path / "staging") if places == "folder to bucket" else ""
    files = {f"model-{n:05d}-of-00003.safetensors": os.urandom(4 * PART + n) for n in range(1, 4)}
    sha = hub.push("org/killed", {"config.json": b"{}", **files}, keep_other_files=False)
    size = sum(map(len, files.values()))
    chance = random.Random(places)

    # One whole run tells how many requests there are, so that kills can be spread over all of them.
    first = start(root_uri, staging_uri)
    first.communicate(timeout=LIMIT_SECONDS)
    assert first.returncode == 0
    most = requests_so_far(hub, cloud)
    _forget(root_uri, staging_uri, sha)

    hub.begin_anew()
    cloud.begin_anew()
    # Each run gets on by a part of the whole, so that kills strike everywhere between the first byte and the last.
    killed = sum(_run_and_kill(root_uri, staging_uri, hub, cloud, chance.randint(1, most // 2)) for _ in range(KILLS))
    assert killed >= KILLS // 4, "too many runs ended before they could be killed"
    last = start(root_uri, staging_uri)
    _, errors = last.communicate(timeout=LIMIT_SECONDS)
    assert last.returncode == 0, errors

    release = storage.verify_release(storage.ModelLayout(root_uri, "org/killed", sha).release_uri, deep=True)
    assert {f.path: f.sha256 for f in release.files if f.path in files} == {
        path: hashlib.sha256(data).hexdigest() for path, data in files.items()
    }
    most_bytes = size + killed * WORKERS * PART + 20_000 * (KILLS + 1)  # descriptions and small files of each run
    assert hub.bytes_out() <= most_bytes
    assert cloud.bytes_in() <= most_bytes
    assert storage.list_files(storage.join(root_uri, ".staging")) == ()


def _run_and_kill(root_uri: str, staging_uri: str, hub: Any, cloud: Any, after_requests: int) -> bool:
    """Kill a run after so many requests; tell whether it was still running."""
    process = start(root_uri, staging_uri)
    before, deadline = requests_so_far(hub, cloud), time.monotonic() + LIMIT_SECONDS
    while process.poll() is None and requests_so_far(hub, cloud) - before < after_requests:
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode in (0, -signal.SIGKILL), errors
    return process.returncode != 0


def _forget(root_uri: str, staging_uri: str, sha: str) -> None:
    storage.delete_files([file.uri for file in storage.list_files(root_uri)])
    if staging_uri:
        storage.delete_files([file.uri for file in storage.list_files(staging_uri)])
    assert storage.find_release(storage.ModelLayout(root_uri, "org/killed", sha).release_uri) is None
