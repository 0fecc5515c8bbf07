"""Runs as their steps leave them, and a real browser to look at what becomes of them."""

import itertools
import json
import shutil
import subprocess
import tempfile
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest
import websocket

from streamway import report
from streamway.cache import CacheResult, ZoneCache, estimate_cost
from streamway.errors import RolloutError
from streamway.hub.pull import PulledModel
from streamway.report.journal import STEPS
from streamway.server import Phase
from streamway.server.deploy import DeployedServer
from streamway.server.streamer_log import StreamerFigures
from streamway.smoke import Answer, Check, SmokeReport
from streamway.storage import Manifest, ManifestFile, Release
from streamway.storage.records import RecordedFile
from streamway.weights.convert import ConvertedWeights

MODEL, SHA = "HuggingFaceTB/SmolLM2-135M-Instruct", "ea2b317803084b3647549c880ad9a0ebb759367b"
RELEASE = f"gs://streamway-models/models/{MODEL}/{SHA}/"
SIZE, TENSOR_BYTES = 272_629_760, 269_060_552
QUESTION = "What is the capital of France? Answer with the name of the city."


def pulled() -> PulledModel:
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    files = tuple(RecordedFile(path=name, uri=RELEASE + name, size_bytes=10, sha256="0" * 64) for name in names)
    return PulledModel(
        uri=RELEASE, model_id=MODEL, commit_sha=SHA, licence="apache-2.0", size_bytes=SIZE, moved_bytes=SIZE,
        already_published=False, files=files,
    )  # fmt: skip


def converted() -> ConvertedWeights:
    tensors = {
        f"model.layers.{layer}.self_attn.{part}_proj.weight": "BF16 [576, 576] model.safetensors crc32c:1c2d3e4f"
        for layer in range(30)
        for part in "qkvo"
    }
    told = {
        "format": "torch zip", "tensors": 272, "tensor_bytes": TENSOR_BYTES, "converted": True, "realigned": [],
        "aliases": {"lm_head.weight": "model.embed_tokens.weight"},
        "shards": [{"path": "model.safetensors", "tensors": 272, "size_bytes": TENSOR_BYTES}],
        "left_behind": [{"path": "onnx/model.onnx", "reason": "not needed for serving"}],
        "proof": {
            "method": "crc32c of the source's tensors adds up to the checksum that Cloud Storage computed",
            "tensors_compared": 272, "bytes_compared": TENSOR_BYTES, "tensors": tensors,
        },
    }  # fmt: skip
    return ConvertedWeights(
        uri=RELEASE, files=(), tensors=272, tensor_bytes=TENSOR_BYTES, aliases={}, converted=True, realigned=(),
        moved_bytes=TENSOR_BYTES, report=told,
    )  # fmt: skip


def published() -> Release:
    files = tuple(
        ManifestFile(path=name, size_bytes=SIZE // 2, sha256="0" * 64, crc32c=1, generation=1)
        for name in ("config.json", "model.safetensors")
    )
    manifest = Manifest(
        model_id=MODEL, revision="main", commit_sha=SHA, licence="apache-2.0", source="https://huggingface.co",
        files=files,
    )  # fmt: skip
    return Release(
        uri=RELEASE, manifest_uri=RELEASE.rstrip("/") + ".manifest.json", manifest=manifest, files=files,
        size_bytes=SIZE, moved_bytes=0, copied_bytes=SIZE, already_published=False,
    )  # fmt: skip


def cached() -> CacheResult:
    zones = tuple(
        ZoneCache(
            zone=zone, state=state, name=f"projects/_/buckets/b/anywhereCaches/{zone}", ttl_seconds=86400, since="",
            ingest_on_write=False, pending_update=False, action=action,
        )
        for zone, state, action in (("us-central1-a", "running", "found"), ("us-central1-b", "creating", "created"))
    )  # fmt: skip
    return CacheResult(
        bucket="streamway-models", location="US-CENTRAL1", zones=zones,
        cost=estimate_cost(SIZE, [zone.zone for zone in zones]),
        note="Caches of gs://streamway-models: us-central1-a running, us-central1-b creating. Creation usually takes "
        "less than an hour; models are served meanwhile. Cost: some.",
    )  # fmt: skip


PHASES = (
    ("stop old revision", 20.1), ("schedule", 2.1), ("pull image", 0.2), ("prepare pod", 0.1), ("start engine", 40.6),
    ("stream weights", 0.8), ("initialise engine", 4.9),
)  # fmt: skip


def deployed(scale: float = 1.0) -> DeployedServer:
    return DeployedServer(
        endpoint="smollm2", namespace="models", service="smollm2-ea2b317-9edff", port=8000,
        revision="smollm2-ea2b317-9edff", commit_sha=SHA, served_model_name=MODEL, changed=True, gap=True,
        phases=tuple(Phase(name=name, seconds=round(scale * seconds, 3)) for name, seconds in PHASES),
        streamer=StreamerFigures(bytes=TENSOR_BYTES, seconds=0.8, gib_per_second=0.31),
        pod="smollm2-ea2b317-9edff-7d9f8", node="gke-l4-pool-1", restarts=0, gpu_count=1,
    )  # fmt: skip


def proved(text: str = "The capital of France is Paris.") -> SmokeReport:
    checks = tuple(
        Check(name=name, ok=True, expected=found, found=found, seconds=0.1)
        for name, found in (
            ("the right model is served", MODEL), ("the context is long enough", "2048 tokens"),
            ("every pod carries the release", SHA), (f"answers {QUESTION!r}", "'The capital of France is Paris.'"),
            ("answers 40 requests, two at a time", "40 answers"),
        )
    )  # fmt: skip
    answers = tuple(
        Answer(
            prompt=QUESTION, kind="chat", text=text, expect="Paris", ok=True, streamed=streamed, seconds=0.292, tokens=8
        )
        for streamed in (False, True)
    )
    latencies = tuple(
        round(0.26 + 0.012 * (place % 7) + 0.0007 * place + (0.14 if place == 31 else 0), 4) for place in range(40)
    )
    return SmokeReport(
        served_model_name=MODEL, commit_sha=SHA, service="smollm2-ea2b317-9edff", namespace="models", checks=checks,
        answers=answers, latencies_seconds=latencies,
        metrics={
            "max_model_len": 2048.0, "first_token_seconds": 0.0861, "tokens_per_second": 39.6, "load_requests": 40.0,
            "latency_p50_seconds": 0.309, "latency_p95_seconds": 0.351, "requests_per_second": 6.86,
        },
    )  # fmt: skip


RESULTS: dict[str, Callable[[], Any]] = {
    "pull_model": pulled, "convert_weights": converted, "upload_model": published, "enable_cache": cached,
    "deploy_server": deployed, "smoke_test": proved,
}  # fmt: skip


def write_run(root: Path, run: str, day: int, **results: Any) -> Path:
    """Write the journal of a run through the steps themselves, and give its records times to look at."""
    folder = root / ".runs" / run
    took = dict(zip(STEPS, (2.7, 2.9, 0.3, 0.1, 68.8, 2.2), strict=True))
    began = 0.0
    for name in STEPS:
        result = results.get(name) or RESULTS[name]()
        expected = type(result) if isinstance(result, Exception) else ()
        with suppress(expected), report.step(name, str(folder)) as running:
            if isinstance(result, Exception):
                raise result
            running.keep(result)
        path = folder / f"{name}.json"
        minute, second = divmod(began, 60)
        started = f"2026-11-{day:02d}T18:{int(minute):02d}:{second:06.3f}+00:00"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": took[name], "started": started}))
        began += took[name] + 1.5
        if isinstance(result, Exception):
            break
    return folder


@pytest.fixture
def success(tmp_path: Path) -> Path:
    """The journal of a run that succeeded, after four others of the same endpoint."""
    for day, scale in ((17, 1.2), (18, 0.9), (19, 1.0), (20, 0.6)):
        earlier = write_run(tmp_path, f"serve-model-{day}", day, deploy_server=deployed(scale))
        report.finish_run(str(earlier), state="SUCCEEDED")
    return write_run(tmp_path, "serve-model-22", 22)


@pytest.fixture
def failure(tmp_path: Path) -> Path:
    """The journal of a run whose server did not become ready."""
    error = RolloutError(
        "Deployment models/smollm2-ea2b317-9edff will not become ready. No node can take the pod for 300 s: 0/3 nodes "
        "are available: 3 Insufficient nvidia.com/gpu. preemption: 0/3 nodes are available.\nIts last lines:\n"
        "  pod didn't trigger scale-up: 2 max node group size reached\nThe endpoint serves smollm2-1b2c3d4 as before.",
        next_step="Raise the maximum size of the node pool with nvidia-l4, or free a GPU; then run again.",
    )
    return write_run(tmp_path, "serve-model-22", 22, deploy_server=error)


def hostile_run(root: Path, text: str) -> Path:
    """The journal of a run in which everything that others write is hostile."""
    model = replace(pulled(), model_id=text, licence=text, commit_sha=text)
    return write_run(
        root, "serve-model-hostile", 22, pull_model=model, smoke_test=proved(text),
        upload_model=replace(published(), manifest=replace(published().manifest, model_id=text)),
        deploy_server=replace(deployed(), phases=(Phase(name=text, seconds=1.0),), pod=text, node=text),
    )  # fmt: skip


class Browser:
    """A page of a headless Chromium, spoken to by its DevTools protocol.

    https://chromedevtools.github.io/devtools-protocol/
    """

    def __init__(self, program: str, profile: Path) -> None:
        self._process = subprocess.Popen(
            [
                program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                "--disable-background-networking", "--no-first-run", "--hide-scrollbars",
                "--disable-features=IsolateSandboxedIframes",  # a snapshot sees only its own process
                "--remote-debugging-port=0", "--remote-allow-origins=*", f"--user-data-dir={profile}", "about:blank",
            ],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._numbers = itertools.count(1)
        self._session = ""
        self.events: list[dict[str, Any]] = []
        address = self._address()
        self._socket = websocket.create_connection(address, timeout=60)
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM", "Network"):
            self.ask(f"{domain}.enable")

    def _address(self) -> str:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if line.startswith("DevTools listening on "):
                return line.removeprefix("DevTools listening on ").strip()
        raise AssertionError("Chromium ended before it could be spoken to")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError, websocket.WebSocketException):
            self._session = ""
            self.ask("Browser.close")
        self._socket.close()
        try:
            self._process.wait(20)
        finally:
            self._process.kill()
            self._process.wait()
            if self._process.stderr is not None:
                self._process.stderr.close()

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        session = {"sessionId": self._session} if self._session else {}
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters, **session}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == number:
                assert "error" not in message, (method, message["error"])
                return dict(message["result"])
            self.events.append(message)

    def open(self, path: Path, *, width: int, dark: bool = False) -> None:
        """Load a page from disk as a screen of this width shows it."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", features=scheme)
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
        self.events.clear()
        self.ask("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(json.loads(self._socket.recv()))

    def evaluate(self, expression: str) -> Any:
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def complaints(self) -> list[str]:
        """What the console and the log have said since the page was opened."""
        self.evaluate("1")
        loud = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Page.javascriptDialogOpening")
        return [json.dumps(event) for event in self.events if event.get("method") in loud]

    def requests(self) -> list[str]:
        """Addresses that the page asked for since it was opened."""
        asked = [event for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in asked]

    def laid_out_text(self) -> str:
        """Return all text that has a place on the screen, also that of frames whose scripts are forbidden."""
        found = self.ask("DOMSnapshot.captureSnapshot", computedStyles=[])
        texts = [document["layout"]["text"] for document in found["documents"]]
        return " ".join(found["strings"][place] for text in texts for place in text if place >= 0)

    def photograph(self, path: Path) -> None:
        """Write a picture of the whole page."""
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.ask("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]
        path.write_bytes(b64decode(shot))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.fail("There is no Chromium. Install it, on Debian with: sudo apt-get install --yes chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, Browser(program, Path(profile)) as opened:
        yield opened
