"""The check that runs in the pod before the engine, as a process of its own as in the pod."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from streamway.server import ServerSpec, render

URI = "gs://models/prefix/org/tiny/abc/"
WEIGHTS = {"name": "prefix/org/tiny/abc/model.safetensors", "size": str(2**30)}


@dataclass
class Storage:
    """What Cloud Storage answers, by what is asked."""

    url: str = ""
    items: list[dict[str, str]] = field(default_factory=lambda: [WEIGHTS])
    statuses: dict[str, list[int]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def status(self, what: str) -> int:
        rows = self.statuses.get(what, [200])
        return rows.pop(0) if len(rows) > 1 else rows[0]


@pytest.fixture
def storage() -> Iterator[Storage]:
    state = Storage()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            if "/o?" in self.path:
                what, value = "list", json.dumps({"items": state.items}).encode()
            elif "/o/" in self.path:
                what, value = "read", b"12345678"
            else:
                what, value = "bucket", b'{"name": "models"}'
            state.asked.append((what, self.headers.get("Range", "")))
            self.send_response(state.status(what))
            self.end_headers()
            self.wfile.write(value)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield state
    server.shutdown()
    server.server_close()


def check(spec: Callable[..., ServerSpec], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command of the rendered pod."""
    manifests = render(spec(release_uri=URI))
    deployment = next(manifest for manifest in manifests if manifest["kind"] == "Deployment")
    container, *_ = deployment["spec"]["template"]["spec"]["initContainers"]
    python, *command = container["command"]
    assert python == "python3"
    return subprocess.run(
        [sys.executable, *command], env=os.environ | environment, capture_output=True, text=True, timeout=60
    )


def test_a_readable_release_passes_after_eight_bytes(spec: Any, storage: Storage) -> None:
    done = check(spec, STORAGE_EMULATOR_HOST=storage.url)

    assert done.returncode == 0, done.stderr
    assert done.stdout == "The service account tiny can read 1 weight files, 1.00 GiB.\n"
    assert storage.asked == [("list", ""), ("read", "bytes=0-7"), ("bucket", "")]


@pytest.mark.parametrize(
    ("what", "role"), [("list", "objectViewer"), ("read", "objectViewer"), ("bucket", "bucketViewer")]
)
def test_a_missing_right_is_a_sentence_with_the_role(spec: Any, storage: Storage, what: str, role: str) -> None:
    storage.statuses[what] = [403]

    done = check(spec, STORAGE_EMULATOR_HOST=storage.url)

    assert done.returncode == 1
    assert "The service account tiny may not" in done.stderr
    assert f"grant it roles/storage.{role} on the bucket." in done.stderr
    assert "Traceback" not in done.stderr


def test_a_release_that_is_not_there_is_told(spec: Any, storage: Storage) -> None:
    storage.statuses["list"] = [404]

    assert "does not exist" in check(spec, STORAGE_EMULATOR_HOST=storage.url).stderr


def test_a_prefix_without_weights_is_told(spec: Any, storage: Storage) -> None:
    storage.items = [{"name": "prefix/org/tiny/abc/config.json", "size": "3"}]

    done = check(spec, STORAGE_EMULATOR_HOST=storage.url)

    assert f"There is no safetensors file under {URI}: 1 files." in done.stderr


def test_a_moment_of_trouble_is_waited_out(spec: Any, storage: Storage) -> None:
    storage.statuses["list"] = [503, 429, 200]

    assert check(spec, STORAGE_EMULATOR_HOST=storage.url).returncode == 0


def test_an_account_without_an_identity_is_told(spec: Any, storage: Storage) -> None:
    # A metadata server that knows no account answers 404.
    storage.statuses["bucket"] = [404]

    done = check(spec, GCE_METADATA_HOST=storage.url.removeprefix("http://"), STORAGE_EMULATOR_HOST="")

    assert "The service account tiny gets no Google Cloud identity" in done.stderr
    assert "Workload Identity" in done.stderr
