"""What the transfer benchmarks share: the sandbox's servers, and processes that are measured from outside."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

START_SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one process, with its children, took.

    Args:
        seconds: From start to end.
        cpu_seconds: User and system time.
        peak_bytes: Largest resident memory of all its processes together, sampled; at least the kernel's own figure.
        output: What it printed.
        written_bytes: What it wrote to disk, or to the page cache on the way there.
        machine_cpu_seconds: What all processes of the machine used meanwhile.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    output: str
    written_bytes: int
    machine_cpu_seconds: float


def measure(command: Sequence[str], *, environment: Mapping[str, str]) -> Measured:
    """Run a process to its end and measure it and its descendants."""
    began, busy = time.monotonic(), machine_cpu_seconds()
    process = subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    watcher = _Watcher(process.pid)
    output = watcher.read(process)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - began
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed with {process.returncode}:\n{output}")
    return Measured(
        seconds=seconds,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_bytes=max(watcher.peak_bytes, usage.ru_maxrss * 1024),
        output=output,
        written_bytes=watcher.written_bytes,
        machine_cpu_seconds=machine_cpu_seconds() - busy,
    )


def machine_cpu_seconds() -> float:
    """Return the processor time that everything on this machine has used since it started (proc(5), /proc/stat)."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    return (sum(fields[:3]) + sum(fields[5:8])) / os.sysconf("SC_CLK_TCK")


class _Watcher:
    """Samples the memory and the writes of a process and its descendants."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._written: dict[int, int] = {}
        self.peak_bytes = 0

    @property
    def written_bytes(self) -> int:
        return sum(self._written.values())

    def read(self, process: "subprocess.Popen[bytes]") -> str:
        """Collect what a process prints until it ends, sampling all the while."""
        assert process.stdout
        os.set_blocking(process.stdout.fileno(), False)
        output = b""
        while not self._ended():
            self._sample()
            output += _drain(process.stdout.fileno())
            time.sleep(0.02)
        return (output + _drain(process.stdout.fileno())).decode()

    def _ended(self) -> bool:
        state = _read(Path(f"/proc/{self._pid}/stat"))
        return state.rpartition(")")[2].split()[:1] in ([], ["Z"])

    def _sample(self) -> None:
        memory = 0
        for pid in family(self._pid):
            status = _read(Path(f"/proc/{pid}/status"))
            memory += sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))
            for line in _read(Path(f"/proc/{pid}/io")).splitlines():
                if line.startswith("write_bytes"):
                    self._written[pid] = int(line.split()[1])
        self.peak_bytes = max(self.peak_bytes, memory)


def family(pid: int) -> list[int]:
    """Return a process and its living descendants."""
    found = [pid]
    for parent in found:
        for tasks in Path(f"/proc/{parent}/task").glob("*/children"):
            found += [int(child) for child in _read(tasks).split()]
    return found


def _drain(descriptor: int) -> bytes:
    found = b""
    with contextlib.suppress(BlockingIOError):
        while chunk := os.read(descriptor, 65536):
            found += chunk
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


class Servers:
    """The sandbox's Hub and Cloud Storage, with their data under one folder."""

    def __init__(self, work: Path, *, buckets: str) -> None:
        self._state = work / "servers"
        self._buckets = buckets
        self._processes: list[subprocess.Popen[bytes]] = []
        self._described: dict[str, dict[str, object]] = {}

    def __enter__(self) -> Self:
        shutil.rmtree(self._state, ignore_errors=True)
        self._state.mkdir(parents=True)
        for name, more in (("hub", ()), ("bucket", ("--buckets", self._buckets))):
            command = [sys.executable, "-m", f"streamway.sandbox.{name}", "--state", str(self._state), *more]
            log = (self._state / f"{name}.log").open("w")
            self._processes.append(subprocess.Popen(command, stderr=log))
            self._described[name] = self._wait_for(name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(30)
        shutil.rmtree(self._state, ignore_errors=True)

    def _wait_for(self, name: str) -> dict[str, object]:
        path, deadline = self._state / f"{name}.json", time.monotonic() + START_SECONDS
        while not path.exists():
            if time.monotonic() > deadline:
                raise SystemExit(f"{name} does not serve; see {self._state / name}.log")
            time.sleep(0.05)
        return dict(json.loads(path.read_text()))

    @property
    def environment(self) -> dict[str, str]:
        found = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        for described in self._described.values():
            found |= dict(described["environment"])  # type: ignore[call-overload]
        return found

    @property
    def repos(self) -> Path:
        return self._state / "hub" / "repos"

    def url(self, name: str) -> str:
        return str(self._described[name]["url"])

    def push(self, model_id: str, files: Mapping[str, Path | bytes]) -> str:
        """Add a commit to the local Hub."""
        from streamway.sandbox.hub_repository import add_commit

        return add_commit(self.repos, model_id, files)

    def push_file(self, model_id: str, path: str, file: Path) -> str:
        """Add a file to the local Hub and return the signed address of its bytes."""
        commit = self.push(model_id, {path: file})
        request = urllib.request.Request(f"{self.url('hub')}/{model_id}/resolve/{commit}/{path}", method="HEAD")
        opener = urllib.request.build_opener(_NoRedirect)
        try:
            opener.open(request)
        except urllib.error.HTTPError as answer:
            return str(answer.headers["Location"])
        raise SystemExit("the local Hub did not redirect to a file")

    def counters(self, name: str) -> tuple[int, int, int]:
        """Return requests, bytes in and bytes out since the last call."""
        found = []
        for method in ("GET", "DELETE"):
            request = urllib.request.Request(f"{self.url(name)}/sandbox/counters", method=method)
            with urllib.request.urlopen(request) as answer:
                found.append(json.load(answer)["total"])
        return int(found[0]["count"]), int(found[0]["bytes_in"]), int(found[0]["bytes_out"])

    def cpu_seconds(self) -> float:
        """Return the processor time that the servers have used so far."""
        ticks = 0
        for process in self._processes:
            for pid in family(process.pid):
                fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12]) if fields else 0
        return ticks / os.sysconf("SC_CLK_TCK")

    def empty_bucket(self, bucket: str) -> None:
        from streamway import storage

        os.environ.update(self.environment)
        storage.delete_files([file.uri for file in storage.list_files(f"gs://{bucket}")])

    def remove(self, path: Path) -> None:
        shutil.rmtree(path, ignore_errors=True)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:  # type: ignore[override]
        return None
