"""One container's keeper: a small process between the node and the container, as container runtimes have one.

It outlives nothing and lets nothing outlive it: it collects every process the container leaves behind (as a
subreaper), kills them all when the main process ends or when the node dies, and writes the log with the time of each
line. It is run as a script, isolated and without site packages, so that it starts in a few milliseconds.

    python -I -S shim.py FD PARENT              keep a container described as JSON on that descriptor
    python -I -S shim.py FD PARENT --direct     become the described process, dying with the parent
    python -I -S shim.py FD PARENT --terminal   the same, taking the standard input for its terminal

SIGTERM is passed on to the main process; SIGQUIT kills everything at once.
"""

import ctypes
import fcntl
import json
import os
import selectors
import signal
import sys
import termios
import time
from typing import Any, BinaryIO, NoReturn

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# Container runtimes split longer lines into parts.
_LONGEST_LINE_BYTES = 16384
_NOT_EXECUTABLE = 126
_NOT_FOUND = 127

_libc = ctypes.CDLL(None, use_errno=True)


def _die_with_parent(signal_number: int, parent: int) -> None:
    """Ask the kernel for a signal when the parent dies, and go now if it has died already."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _become(described: dict[str, Any]) -> NoReturn:
    try:
        os.chdir(described["directory"])
        os.execvpe(described["command"][0], described["command"], described["environment"])
    except OSError as error:
        os.write(2, f"{described['command'][0]}: {error.strerror}\n".encode())
        os._exit(_NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE)


class _Log:
    """Writes lines with their time and stream, in the format of the container runtime interface."""

    def __init__(self, path: str) -> None:
        self._file: BinaryIO = open(path, "ab", buffering=0)  # noqa: PTH123, SIM115
        self._rest = {"stdout": b"", "stderr": b""}

    def write(self, stream: str, data: bytes) -> None:
        """Take bytes as they come; whole lines are written."""
        seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nanoseconds:09d}Z"
        head = f"{stamp} {stream} ".encode()
        *lines, rest = (self._rest[stream] + data).split(b"\n")
        written = b"".join(head + b"F " + line + b"\n" for line in lines)
        if len(rest) >= _LONGEST_LINE_BYTES or (not data and rest):
            written += head + b"P " + rest + b"\n"
            rest = b""
        self._rest[stream] = rest
        if written:
            self._file.write(written)


class _Keeper:
    def __init__(self, described: dict[str, Any]) -> None:
        self._described = described
        self._log = _Log(described["log"])
        self._selector = selectors.DefaultSelector()
        self._main = 0
        self._code: int | None = None

    def run(self) -> int:
        """Start the main process, keep it, and give its exit code."""
        wake, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(waker)
        for number, handler in ((signal.SIGTERM, self._pass_on), (signal.SIGQUIT, self._kill_all)):
            signal.signal(number, handler)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._selector.register(wake, selectors.EVENT_READ, "wake")
        self._start()
        while self._code is None or len(self._selector.get_map()) > 1:
            self._step()
        return self._code

    def _start(self) -> None:
        pipes = {"stdout": os.pipe(), "stderr": os.pipe()}
        # Closed by the kernel when the main process has become the container's program.
        becoming, became = os.pipe()
        keeper = os.getpid()
        self._main = os.fork()
        if self._main == 0:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(pipes["stdout"][1], 1)
            os.dup2(pipes["stderr"][1], 2)
            os.closerange(3, became)
            os.closerange(became + 1, 256)
            for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGCHLD, signal.SIGINT, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            _die_with_parent(signal.SIGKILL, keeper)
            _become(self._described)
        for stream, (reader, writer) in pipes.items():
            os.close(writer)
            self._selector.register(reader, selectors.EVENT_READ, stream)
        os.close(became)
        os.read(becoming, 1)
        os.close(becoming)
        # The node waits for this before it calls the container running.
        os.write(1, b"started")

    def _step(self) -> None:
        for key, _ in self._selector.select():
            data = os.read(key.fd, 65536)
            if key.data == "wake":
                self._reap()
                continue
            self._log.write(key.data, data)
            if not data:
                self._selector.unregister(key.fd)
                os.close(key.fd)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._main:
                code = os.waitstatus_to_exitcode(status)
                self._code = code if code >= 0 else 128 - code
                self._kill_descendants()

    def _pass_on(self, *_: object) -> None:
        if self._code is None and self._main:
            os.kill(self._main, signal.SIGTERM)

    def _kill_all(self, *_: object) -> None:
        if self._code is None and self._main:
            os.kill(self._main, signal.SIGKILL)
        self._kill_descendants()

    def _kill_descendants(self) -> None:
        """Kill what the container started; what they start meanwhile is found in the next round."""
        while found := _descendants(os.getpid()):
            for pid in found:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            for pid in found:
                if pid == self._main:
                    continue
                try:
                    os.waitpid(pid, 0)
                except ChildProcessError:
                    continue
            if found == [self._main]:
                return


def _descendants(root: int) -> list[int]:
    """List all living processes below one."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as stat:  # noqa: PTH123
                state, parent = stat.read().rpartition(b") ")[2].split()[:2]
        except OSError:
            continue
        if state != b"Z":
            parents[int(name)] = int(parent)
    found = []
    for pid in parents:
        above = parents[pid]
        while above in parents and above != root:
            above = parents[above]
        if above == root:
            found.append(pid)
    return found


def main() -> None:
    """Keep the container that is described on a descriptor."""
    parent = int(sys.argv[2])
    with open(int(sys.argv[1]), "rb") as source:  # noqa: PTH123
        described = json.loads(source.read())
    if sys.argv[3:]:
        _die_with_parent(signal.SIGKILL, parent)
        if sys.argv[3] == "--terminal":
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        _become(described)
    _die_with_parent(signal.SIGQUIT, parent)
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    os._exit(_Keeper(described).run())


if __name__ == "__main__":
    main()
