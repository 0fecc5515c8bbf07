"""Locks between processes, which the kernel gives back when their holder dies, however it dies."""

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from streamway.errors import SandboxError

_LOOK_SECONDS = 0.1


@contextlib.contextmanager
def hold_lock(path: Path, *, doing: str, longest_seconds: float, on_line: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a file, as soon as no other process does.

    Args:
        path: The file; made where it is missing, and left there.
        doing: What the holder does, such as "making the engine's environment".
        longest_seconds: Longest wait, which is longer than any holder needs.
        on_line: Told once if somebody must be waited for.

    Raises:
        SandboxError: somebody else held it all the time.
    """
    with path.open("w") as lock:
        if not _taken(lock):
            on_line(f"another process is {doing}; waiting for it")
            _wait(lock, path, doing, longest_seconds)
        yield


def _wait(lock: IO[str], path: Path, doing: str, longest_seconds: float) -> None:
    deadline = time.monotonic() + longest_seconds
    while not _taken(lock):
        if time.monotonic() > deadline:
            raise SandboxError(
                f"Another process is {doing} for more than {longest_seconds:.0f} s, and holds {path}.",
                next_step=f"Find it with `fuser {path}` and end it.",
            )
        time.sleep(_LOOK_SECONDS)


def _taken(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
