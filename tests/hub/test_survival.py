"""A process that is killed at any moment loses at most the parts that its workers held."""

import hashlib
import io
import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import save

from streamway import storage

MIB = 1024 * 1024
PART = 5 * MIB
WORKERS = 2
KILLS = 6
LIMIT_SECONDS = 120
TENSORS = 12
TENSOR_BYTES = 5 * MIB

RUN = f"""
import sys
from streamway import hub, storage, weights

root, staging, leave = sys.argv[1:]
limits = {{"memory_bytes": {WORKERS * PART}}}
print("ready", flush=True)
pulled = hub.pull_model(
    model_id="org/killed",
    release_root=root,
    staging_uri=staging,
    leave_pickled=leave == "leave",
    workers={WORKERS},
    **limits,
)
layout = storage.ModelLayout(root, pulled.model_id, pulled.commit_sha)
converted = weights.convert_weights(
    snapshot_uri=pulled.uri, weights_uri=layout.weights_uri, open_left=hub.open_left_files(), **limits
)
storage.upload_model(weights_uri=converted.uri, release_root=root, workers={WORKERS}, **limits)
"""


def as_safetensors(tensors: dict[str, bytes]) -> dict[str, bytes]:
    arrays = {name: numpy.frombuffer(data, dtype=numpy.float16) for name, data in tensors.items()}
    return {"model.safetensors": save(arrays, metadata={"format": "pt"})}


def as_pickle(tensors: dict[str, bytes]) -> dict[str, bytes]:
    """Return what torch.save writes for a dictionary of float16 tensors (pickle protocol 2)."""
    pickled = b"\x80\x02}("
    for number, (name, data) in enumerate(tensors.items()):
        count = struct.pack("<i", len(data) // 2)
        pickled += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(("
        pickled += text("storage") + b"ctorch\nHalfStorage\n" + text(str(number)) + text("cpu") + b"J" + count
        pickled += b"tQK\x00J" + count + b"\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as opened:
        opened.writestr("model/data.pkl", pickled + b"u.")
        for number, data in enumerate(tensors.values()):
            opened.writestr(f"model/data/{number}", data)
        opened.writestr("model/version", b"3\n")
    return {"pytorch_model.bin": archive.getvalue()}


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


@pytest.fixture
def tensors() -> dict[str, bytes]:
    return {f"layer.{number}.weight": os.urandom(TENSOR_BYTES) for number in range(TENSORS)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("places", "form", "left"),
    [
        ("bucket", as_safetensors, "bring"),
        ("folder", as_pickle, "bring"),
        ("folder to bucket", as_pickle, "bring"),
        ("folder", as_pickle, "leave"),
        ("bucket", as_pickle, "leave"),
    ],
    ids=[
        "safetensors-bucket",
        "pickle-folder",
        "pickle-folder-to-bucket",
        "pickle-at-the-hub-to-folder",
        "pickle-at-the-hub-to-bucket",
    ],
)
def test_runs_killed_at_random_moments_end_in_one_whole_release(
    hub: Any, cloud: Any, bucket_uri: str, tmp_path: Path, tensors: dict[str, bytes], places: str, form: Any, left: str
) -> None:
    root_uri = str(tmp_path / "root") if places == "folder" else bucket_uri
    staging_uri = str(tmp_path / "staging") if places == "folder to bucket" else ""
    arguments = root_uri, staging_uri, left
    files = form(tensors)
    sha = hub.push("org/killed", {"config.json": b"{}", **files}, keep_other_files=False)
    release_uri = storage.ModelLayout(root_uri, "org/killed", sha).release_uri

    # One whole run tells how many requests there are and what a release without any kill is.
    finish(start(*arguments))
    undisturbed = contents(release_uri)
    most = requests_so_far(hub, cloud)
    forget(root_uri, staging_uri)
    assert storage.find_release(release_uri) is None

    hub.begin_anew()
    cloud.begin_anew()
    chance = random.Random(places)
    # Each run gets on by a part of the whole, so that kills strike everywhere between the first byte and the last.
    killed = sum(kill(arguments, hub, cloud, chance.randint(1, most // 2)) for _ in range(KILLS))
    assert killed >= KILLS // 4, "too many runs ended before they could be killed"
    finish(start(*arguments))

    assert contents(release_uri) == undisturbed
    storage.verify_release(release_uri, deep=True)
    assert dict(stored_tensors(release_uri)) == {name: digest(data) for name, data in tensors.items()}
    assert storage.list_files(storage.join(root_uri, ".staging")) == ()
    size = TENSORS * TENSOR_BYTES
    lost = killed * WORKERS * PART + 60_000 * (KILLS + 1)  # descriptions and small files of each run beside the parts
    assert hub.bytes_out() <= size + lost
    assert cloud.bytes_in() <= (0 if places == "folder" else size) + lost


def start(root_uri: str, staging_uri: str = "", left: str = "bring") -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", RUN, root_uri, staging_uri, left]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stderr
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


def finish(process: "subprocess.Popen[str]") -> None:
    _, errors = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 0, errors


def kill(arguments: tuple[str, str, str], hub: Any, cloud: Any, after_requests: int) -> bool:
    """Kill a run after so many requests; tell whether it was still running."""
    process = start(*arguments)
    before, deadline = requests_so_far(hub, cloud), time.monotonic() + LIMIT_SECONDS
    while process.poll() is None and requests_so_far(hub, cloud) - before < after_requests:
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode in (0, -signal.SIGKILL), errors
    return process.returncode != 0


def requests_so_far(*parts: Any) -> int:
    return sum(part.count() for part in parts)


def contents(uri: str) -> dict[str, str]:
    return {file.path: digest(storage.read_file(file.uri, max_bytes=1 << 30)) for file in storage.list_files(uri)}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def stored_tensors(release_uri: str) -> Iterator[tuple[str, str]]:
    """Read the released safetensors without any code of ours but the reading of bytes."""
    for file in storage.list_files(release_uri):
        if file.path.endswith(".safetensors"):
            data = storage.read_file(file.uri, max_bytes=1 << 30)
            end = 8 + struct.unpack("<Q", data[:8])[0]
            for name, tensor in json.loads(data[8:end]).items():
                if name != "__metadata__":
                    first, last = tensor["data_offsets"]
                    yield name, digest(data[end + first : end + last])


def forget(root_uri: str, staging_uri: str) -> None:
    storage.delete_files([file.uri for file in storage.list_files(root_uri)])
    if staging_uri:
        storage.delete_files([file.uri for file in storage.list_files(staging_uri)])


def test_an_interrupted_run_ends_at_once_and_the_next_goes_on(
    hub: Any, cloud: Any, bucket_uri: str, tensors: dict[str, bytes]
) -> None:
    hub.push("org/killed", {"config.json": b"{}", **as_safetensors(tensors)}, keep_other_files=False)
    hub.begin_anew()
    cloud.arm("stall", method="PUT", times=100)  # for longer than any patience
    process = start(bucket_uri)
    while cloud.count("PUT") + len(cloud.armed()) == 0 or not hub.count("GET", "/cdn/"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert process.returncode != 0 and "KeyboardInterrupt" in errors
    cloud.begin_anew()
    finish(start(bucket_uri))
