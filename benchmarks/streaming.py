"""From a bucket to an accelerator: the streamer as pods run it, beside downloading to disk and loading from there.

    python benchmarks/streaming.py --model gs://BUCKET/PREFIX/ --disk /local/disk --device cuda
    python benchmarks/streaming.py --serve FOLDER --server BINARY --model gs://bucket/prefix/ --disk /local/disk

It runs wherever torch, safetensors, google-cloud-storage and the Run:ai streamer are. With `--serve` the bucket is
fake-gcs-server with the folder's sub-folders as buckets. Seconds are those of the work itself in a new process, without
imports and without the device's own start. What was downloaded is loaded from the page cache, which favours the peer.
"""

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from streamway.server import ServerSpec, render

START_SECONDS = 300.0
WAY_SECONDS = 1800.0

PRELUDE = """
import json, os, sys, time
import torch

uri, folder, device = sys.argv[1:]
torch.zeros(1, device=device)

def settled():
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.monotonic()

def tell(size, **parts):
    print(json.dumps({"bytes": size, **parts}))
"""

STREAMED = (
    PRELUDE
    + """
from runai_model_streamer import SafetensorsStreamer, list_safetensors

size, held = 0, {}
began = settled()
with SafetensorsStreamer() as streamer:
    streamer.stream_files(sorted(list_safetensors(uri)))
    for name, tensor in streamer.get_tensors():
        held[name] = tensor.to(device, copy=True)
        size += tensor.nbytes
tell(size, seconds=settled() - began)
"""
)

LOADED = (
    PRELUDE
    + """
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from google.cloud.storage import transfer_manager
from safetensors.torch import load_file

anonymous = AnonymousCredentials() if "STORAGE_EMULATOR_HOST" in os.environ else None
bucket, _, prefix = uri.removeprefix("gs://").partition("/")
client = storage.Client(project=os.environ.get("GOOGLE_CLOUD_PROJECT", "bench"), credentials=anonymous)
blobs = [blob for blob in client.list_blobs(bucket, prefix=prefix) if blob.name.endswith(".safetensors")]
paths = [os.path.join(folder, os.path.basename(blob.name)) for blob in blobs]
began = settled()
for blob, path in zip(blobs, paths):
    if PARALLEL:
        transfer_manager.download_chunks_concurrently(blob, path, max_workers=8, crc32c_checksum=False)
    else:
        blob.download_to_filename(path)
downloaded = settled()
size, held = 0, {}
for path in paths:
    for name, tensor in load_file(path, device=device).items():
        held[name] = tensor
        size += tensor.nbytes
ended = settled()
tell(size, seconds=ended - began, download=downloaded - began, load=ended - downloaded)
"""
)

WAYS = {
    "streamer, as deployed": STREAMED,
    "download, then load": LOADED.replace("PARALLEL", "False"),
    "download in eight chunks at a time, then load": LOADED.replace("PARALLEL", "True"),
}


def main() -> None:
    given = read_arguments()
    with contextlib.ExitStack() as stack:
        environment = stack.enter_context(served(given)) if given.serve else dict(os.environ)
        deployed = as_deployed(given)
        found = {name: run(way, given, environment | deployed) for name, way in WAYS.items()}
    show(found, given, deployed)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="gs://BUCKET/PREFIX/ of safetensors")
    parser.add_argument("--disk", type=Path, required=True, help="a folder on a local disk, for the download")
    parser.add_argument("--device", default="cuda", help="where the tensors go, as torch writes it")
    parser.add_argument("--python", default=sys.executable, help="a Python with torch and the streamer")
    parser.add_argument("--accelerator", default="nvidia-h100-80gb", help="of the pod whose settings are taken")
    parser.add_argument("--size-gib", type=float, default=15.0, help="size of the model that they are derived from")
    parser.add_argument("--serve", type=Path, help="serve this folder by fake-gcs-server")
    parser.add_argument("--server", help="its binary")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each way, of which the fastest counts")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    return parser.parse_args()


def as_deployed(given: argparse.Namespace) -> dict[str, str]:
    """Return how the streamer is set in a pod that serves such a model."""
    spec = ServerSpec(
        release_uri=given.model,
        model_id="bench/model",
        commit_sha="0" * 40,
        size_bytes=int(given.size_gib * 2**30),
        name="bench",
        namespace="bench",
        image="vllm/vllm-openai:v0.26.0",
        accelerator=given.accelerator,
    )
    (deployment,) = (manifest for manifest in render(spec) if manifest["kind"] == "Deployment")
    variables = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    return {entry["name"]: entry["value"] for entry in variables if entry["name"].startswith("RUNAI_STREAMER_")}


@contextlib.contextmanager
def served(given: argparse.Namespace) -> Iterator[dict[str, str]]:
    """Run fake-gcs-server on a folder; give the environment that clients need."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [given.server, "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
    command += ["-data", str(given.serve), "-public-host", f"127.0.0.1:{port}", "-external-url", url]
    server = subprocess.Popen([*command, "-log-level", "warn"])
    try:
        wait_until_it_serves(url, server)
        yield os.environ | {
            "STORAGE_EMULATOR_HOST": url,
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": url,
            "RUNAI_STREAMER_GCS_USE_ANONYMOUS_CREDENTIALS": "true",
            "GOOGLE_CLOUD_PROJECT": "bench",
        }
    finally:
        server.kill()
        server.wait()


def wait_until_it_serves(url: str, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/storage/v1/b?project=bench", timeout=5):
            return
        time.sleep(0.2)
    raise SystemExit("fake-gcs-server does not serve.")


def run(way: str, given: argparse.Namespace, environment: dict[str, str]) -> dict[str, float]:
    """Run one way as often as asked, each time from nothing; return the fastest."""
    found = []
    for _ in range(given.repeat):
        folder = given.disk / "downloaded"
        folder.mkdir(parents=True)
        try:
            command = [given.python, "-c", way, given.model, str(folder), given.device]
            told = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, timeout=WAY_SECONDS)
        finally:
            shutil.rmtree(folder)
        found.append(json.loads(told.stdout.splitlines()[-1]))
    return min(found, key=lambda one: one["seconds"])


def show(found: dict[str, dict[str, float]], given: argparse.Namespace, deployed: dict[str, str]) -> None:
    fastest = next(iter(found.values()))
    print(f"{given.model} to {given.device}; {' '.join(f'{name}={value}' for name, value in deployed.items())}\n")
    print("| way | GiB | seconds | of which download | of which load | GiB/s | times as long |")
    print("|---|---|---|---|---|---|---|")
    for name, one in found.items():
        size = one["bytes"] / 2**30
        parts = " | ".join(f"{one[part]:.1f}" if part in one else "-" for part in ("download", "load"))
        ratio = one["seconds"] / fastest["seconds"]
        print(f"| {name} | {size:.1f} | {one['seconds']:.1f} | {parts} | {size / one['seconds']:.1f} | {ratio:.1f} |")
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
