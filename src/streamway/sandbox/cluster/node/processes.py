"""Containers as processes: starting one with its keeper, signalling it, and measuring its memory."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_SHIM = Path(__file__).with_name("shim.py")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, kw_only=True)
class Command:
    """What to run.

    Args:
        argv: The command line.
        environment: The whole environment.
        directory: The working directory.
    """

    argv: list[str]
    environment: dict[str, str]
    directory: Path


class ContainerProcess:
    """A running container.

    Args:
        keeper: Its keeper (see shim.py), whose exit code is the container's.
    """

    def __init__(self, keeper: asyncio.subprocess.Process) -> None:
        self._keeper = keeper
        self.killed_for_memory = False

    @property
    def is_running(self) -> bool:
        return self._keeper.returncode is None

    async def wait(self) -> int:
        """Wait for the end and give the exit code, 128 plus the number for a signal."""
        code = await self._keeper.wait()
        return code if code >= 0 else 128 - code

    def terminate(self) -> None:
        """Ask the main process to end, with SIGTERM."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End everything in the container at once."""
        self._signal(signal.SIGQUIT)

    def kill_for_memory(self) -> None:
        """End the container as the kernel does when its memory limit is exceeded."""
        self.killed_for_memory = True
        self.kill()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            self._keeper.send_signal(number)

    def signal_main(self, number: int) -> None:
        """Send a signal to the main process alone."""
        for pid, parent in read_parents().items():
            if parent == self._keeper.pid:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
                return

    def memory_bytes(self, parents: dict[int, int]) -> int:
        """Measure the memory that is the container's own: not counting pages that are backed by files.

        Args:
            parents: The parent of each process, as read for all containers at once.
        """
        return sum(_own_memory(pid) for pid in _below(self._keeper.pid, parents))


async def start_container(command: Command, log: Path) -> ContainerProcess:
    """Start a container with a keeper, in a session of its own.

    Args:
        command: What to run.
        log: Where its output goes.
    """
    described = {
        "command": command.argv,
        "environment": command.environment,
        "directory": str(command.directory),
        "log": str(log),
    }
    devnull, pipe = asyncio.subprocess.DEVNULL, asyncio.subprocess.PIPE
    keeper = await _launch(described, [], stdin=devnull, stdout=pipe, stderr=None)
    assert keeper.stdout is not None
    await keeper.stdout.read(1)
    return ContainerProcess(keeper)


async def start_inside(
    command: Command, *, with_stdin: bool, terminal: int | None = None
) -> asyncio.subprocess.Process:
    """Start a process beside a container, with pipes to its input and outputs, or with a terminal."""
    described = {
        "command": command.argv,
        "environment": command.environment,
        "directory": str(command.directory),
    }
    if terminal is not None:
        return await _launch(described, ["--terminal"], stdin=terminal, stdout=terminal, stderr=terminal)
    pipe = asyncio.subprocess.PIPE
    stdin = pipe if with_stdin else asyncio.subprocess.DEVNULL
    return await _launch(described, ["--direct"], stdin=stdin, stdout=pipe, stderr=pipe)


async def _launch(
    described: Mapping[str, object], mode: list[str], *, stdin: int, stdout: int, stderr: int | None
) -> asyncio.subprocess.Process:
    reader, writer = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            str(_SHIM),
            str(reader),
            str(os.getpid()),
            *mode,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=(reader,),
            start_new_session=True,
        )
        # A description is larger than a pipe holds, so it is written while the keeper reads.
        await asyncio.get_running_loop().run_in_executor(None, _write_all, writer, json.dumps(described).encode())
        writer = -1
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
    return process


def _write_all(descriptor: int, data: bytes) -> None:
    with suppress(BrokenPipeError), os.fdopen(descriptor, "wb") as pipe:
        pipe.write(data)


def read_parents() -> dict[int, int]:
    """Read the parent of every process of this machine."""
    found: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                found[int(entry.name)] = int((entry / "stat").read_bytes().rpartition(b") ")[2].split()[1])
    return found


def _below(root: int, parents: dict[int, int]) -> list[int]:
    found, waiting = [], [root]
    while waiting:
        above = waiting.pop()
        children = [pid for pid, parent in parents.items() if parent == above]
        found += children
        waiting += children
    return found


def _own_memory(pid: int) -> int:
    """Read resident minus file-backed memory: what a memory limit is about."""
    with suppress(OSError, IndexError, ValueError):
        fields = Path(f"/proc/{pid}/statm").read_text().split()
        return max(0, int(fields[1]) - int(fields[2])) * _PAGE_BYTES
    return 0
