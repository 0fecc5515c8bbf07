"""The owner of every process of a sandbox: it starts them in order, watches them, and leaves nothing behind.

    python -m streamway.sandbox.supervisor --state DIR [--owner-pid PID]

It starts what DIR/plan.json lists and writes

    DIR/supervisor.json    its own identity, at once
    DIR/sandbox.json       parts and the environment for clients, once all parts serve
    DIR/failure.json       why it gave up, in a message for the user

A part that ends later is reported in sandbox.json with its last lines, and not started again: whoever uses the
sandbox must know that its state was lost. Everything ends on SIGTERM, and when the owner process ends. Parts are
signalled by the kernel if the supervisor itself is killed.
"""

import argparse
import contextlib
import fcntl
import logging
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from streamway.errors import SandboxError
from streamway.sandbox.parts import PartSpec, read_plan, sockets_path, write_images
from streamway.sandbox.processes import (
    OWNER_VARIABLE,
    ProcessIdentity,
    adopt_orphans,
    die_with_parent,
    end_processes,
    identify,
    last_lines,
    owned_processes,
    read_json,
    write_json,
)

log = logging.getLogger("streamway.sandbox.supervisor")

_POLL_SECONDS = 0.05
_WATCH_SECONDS = 1.0
# What the end of a part's log tells about why it could not start, and what to do about it.
_ADVICE = (
    ("address already in use", "Another program uses the port; end it, or let the part choose one with --port 0."),
    ("no space left on device", "Free some disk space and start the sandbox again."),
    ("no module named", "Install the sandbox's requirements: pip install 'streamway[sandbox]'."),
    ("no such file or directory", "Install the sandbox's requirements: pip install 'streamway[sandbox]'."),
    ("permission denied", "Make the state folder and the files it names readable and writable for this user."),
)


@dataclass(kw_only=True)
class _Part:
    """A part that was started."""

    spec: PartSpec
    process: "subprocess.Popen[bytes]"
    identity: ProcessIdentity | None
    log_path: Path
    exit_code: int | None = None


class Supervisor:
    """Starts, watches and ends the parts of one sandbox.

    Args:
        state_path: Folder of the sandbox.
        owner_pid: Process whose end is the sandbox's end; 0 for none.
    """

    def __init__(self, state_path: Path, owner_pid: int) -> None:
        self._state_path = state_path
        self._specs, self._images, self._project = read_plan(state_path)
        self._parts: list[_Part] = []
        self._stopping = False
        self._since = datetime.now(UTC).isoformat(timespec="seconds")
        self._owner = os.pidfd_open(owner_pid) if owner_pid else None
        self._wake_up, signalled = socket.socketpair()
        for one in (self._wake_up, signalled):
            one.setblocking(False)
        signal.set_wakeup_fd(signalled.fileno(), warn_on_full_buffer=False)
        self._signalled = signalled
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._ask_to_stop)
        # Without a handler of its own this signal would not wake anybody up.
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def run(self) -> None:
        """Start everything, and watch until asked to stop.

        Raises:
            SandboxError: a part did not come to serve.
        """
        sockets_path(self._state_path).mkdir(mode=0o700, exist_ok=True)
        try:
            for spec in self._specs:
                if self._stopping:
                    return
                self._start(spec)
            if not self._stopping:
                self._report()
                log.info("the sandbox is up")
            while not self._stopping:
                self._wait(_WATCH_SECONDS)
                self._notice_ends()
        finally:
            self._end_all()

    def _start(self, spec: PartSpec) -> None:
        write_images(self._state_path, self._images, self._environment(), self._project)
        record = self._state_path / f"{spec.name}.json"
        record.unlink(missing_ok=True)
        part = self._spawn(spec)
        started = time.monotonic()
        while (read_json(record) or {}).get("pid") != part.process.pid:
            self._wait(_POLL_SECONDS)
            self._reap()
            if self._stopping:
                return
            if part.exit_code is not None:
                raise self._cannot_start(part, f"ended with exit code {part.exit_code} before it served")
            if time.monotonic() - started > spec.deadline_seconds:
                raise self._cannot_start(part, f"did not serve within {spec.deadline_seconds:.0f} s")
        url = (read_json(record) or {}).get("url", "")
        log.info("%s: serving at %s (%.1f s)", spec.name, url, time.monotonic() - started)

    def _spawn(self, spec: PartSpec) -> _Part:
        log_path = self._state_path / "logs" / f"{spec.name}.log"
        command = [*spec.argv, "--state", str(self._state_path), "--port", "0"]
        with log_path.open("wb") as output:
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, OWNER_VARIABLE: str(self._state_path), "PYTHONUNBUFFERED": "1"},
                    start_new_session=True,
                    preexec_fn=die_with_parent,
                )
            except OSError as error:
                raise SandboxError(
                    f"The sandbox's part {spec.name} cannot start: {error.strerror}: {command[0]}",
                    next_step=_advice(str(error)),
                ) from error
        part = _Part(spec=spec, process=process, identity=identify(process.pid), log_path=log_path)
        self._parts.append(part)
        return part

    def _cannot_start(self, part: _Part, what: str) -> SandboxError:
        end = last_lines(part.log_path)
        return SandboxError(
            f"The sandbox's part {part.spec.name} {what}. The end of {part.log_path}:\n{end or '(it said nothing)'}",
            next_step=_advice(end),
        )

    def _notice_ends(self) -> None:
        before = [part.exit_code for part in self._parts]
        self._reap()
        if [part.exit_code for part in self._parts] != before and not self._stopping:
            for part, code in zip(self._parts, before, strict=True):
                if part.exit_code is not None and code is None:
                    log.error("%s: ended with exit code %d", part.spec.name, part.exit_code)
            self._report()
        if self._owner is not None and select.select([self._owner], [], [], 0)[0]:
            log.info("the process that this sandbox was for has ended")
            self._stopping = True

    def _reap(self) -> None:
        """Collect every child that has ended, also those that were adopted from a part that died."""
        by_pid = {part.process.pid: part for part in self._parts}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in by_pid:
                code = os.waitstatus_to_exitcode(status)
                by_pid[pid].exit_code = by_pid[pid].process.returncode = code

    def _report(self) -> None:
        record = {
            "pid": os.getpid(),
            "since": self._since,
            "parts": [self._describe(part) for part in self._parts],
            "environment": self._environment(),
        }
        write_json(self._state_path / "sandbox.json", record)

    def _describe(self, part: _Part) -> dict[str, Any]:
        announced = read_json(self._state_path / f"{part.spec.name}.json") or {}
        ended = part.exit_code is not None
        return {
            "name": part.spec.name,
            "state": "ended" if ended else "serving",
            "pid": part.process.pid,
            "url": announced.get("url", ""),
            "log_path": str(part.log_path),
            "exit_code": part.exit_code,
            "last_lines": last_lines(part.log_path) if ended else "",
        }

    def _environment(self) -> dict[str, str]:
        """Merge what the parts have announced so far."""
        merged = {"GOOGLE_CLOUD_PROJECT": self._project}
        for part in self._parts:
            record = read_json(self._state_path / f"{part.spec.name}.json") or {}
            merged.update(record.get("environment", {}))
        return merged

    def _end_all(self) -> None:
        """End the parts in reverse order, then whatever they left behind."""
        for part in reversed(self._parts):
            self._reap()
            if part.exit_code is None and part.identity:
                part.process.terminate()
                self._wait_for_end(part)
                if part.exit_code is None:
                    log.warning("%s: did not end within %.0f s", part.spec.name, part.spec.stop_seconds)
                    part.process.kill()
            (self._state_path / f"{part.spec.name}.json").unlink(missing_ok=True)
        leftovers = [one for one in owned_processes(self._state_path) if one.pid != os.getpid()]
        end_processes(leftovers, grace_seconds=0.5)
        shutil.rmtree(sockets_path(self._state_path), ignore_errors=True)
        (self._state_path / "sandbox.json").unlink(missing_ok=True)
        log.info("the sandbox is down")

    def _wait_for_end(self, part: _Part) -> None:
        deadline = time.monotonic() + part.spec.stop_seconds
        while part.exit_code is None and time.monotonic() < deadline:
            self._wait(_POLL_SECONDS)
            self._reap()

    def _wait(self, seconds: float) -> None:
        """Sleep until a signal arrives, the owner ends, or time is up."""
        watched: list[Any] = [self._wake_up, *([] if self._owner is None else [self._owner])]
        select.select(watched if not self._stopping else [self._wake_up], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            self._wake_up.recv(4096)

    def _ask_to_stop(self, number: int, frame: object) -> None:
        self._stopping = True


def hold_lock(state_path: Path) -> Any:
    """Return the open lock file of a state folder, or None where another supervisor holds it."""
    lock = (state_path / "supervisor.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def _advice(text: str) -> str:
    lowered = text.lower()
    fallback = "Read the part's log, put right what it names, and start the sandbox again."
    return next((advice for sign, advice in _ADVICE if sign in lowered), fallback)


def main(arguments: list[str]) -> int:
    """Run the supervisor; exits with 1 where a part did not come to serve."""
    parser = argparse.ArgumentParser(prog="python -m streamway.sandbox.supervisor")
    parser.add_argument("--state", type=Path, required=True, help="folder of the sandbox")
    parser.add_argument("--owner-pid", type=int, default=0, help="end when this process ends")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    lock = hold_lock(given.state)
    if lock is None:
        log.error("another supervisor holds %s", given.state)
        return 1
    adopt_orphans()
    identity = identify(os.getpid())
    assert identity is not None
    write_json(given.state / "supervisor.json", vars(identity))
    try:
        Supervisor(given.state, given.owner_pid).run()
    except SandboxError as error:
        failure = {"problem": error.problem, "next_step": error.next_step}
        write_json(given.state / "failure.json", failure)
        return 1
    finally:
        (given.state / "supervisor.json").unlink(missing_ok=True)
        lock.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
