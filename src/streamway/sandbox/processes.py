"""Process manners of the sandbox, so that nothing outlives its owner and no state file is read half-written.

A process is known by its id together with its start time, because ids are used again: a state file left by a
killed sandbox must never make a later one end somebody else's process.
"""

import contextlib
import ctypes
import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Set for every process of a sandbox, so that what a killed one left behind is found again. No step reads it.
OWNER_VARIABLE = "STREAMWAY_SANDBOX_STATE"

# prctl(2): option numbers from <linux/prctl.h>.
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_POLL_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True)
class ProcessIdentity:
    """One process that ran or runs on this machine.

    Args:
        pid: Its id.
        started_ticks: When it started, in clock ticks since boot: field 22 of /proc/PID/stat.
    """

    pid: int
    started_ticks: int

    def is_alive(self) -> bool:
        """Say whether this very process still runs; a zombie does not."""
        return identify(self.pid) == self


def identify(pid: int) -> ProcessIdentity | None:
    """Return who has this id now, or None where nobody has or only a zombie is left."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in field 2 may hold spaces and brackets, so fields are counted from the last bracket.
    fields = stat[stat.rindex(")") + 2 :].split()
    if fields[0] in ("Z", "X"):
        return None
    return ProcessIdentity(pid=pid, started_ticks=int(fields[19]))


def owned_processes(state_path: Path) -> list[ProcessIdentity]:
    """Return every process that was started for a sandbox, by the mark in its environment."""
    mark = f"{OWNER_VARIABLE}={state_path}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    identity = identify(int(entry.name))
                    found += [identity] if identity else []
    return found


def die_with_parent(signal_number: int = signal.SIGTERM) -> None:
    """Ask the kernel to signal this process when the thread that started it ends.

    Fit for `preexec_fn`: it takes no lock and imports nothing.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, int(signal_number), 0, 0, 0)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies, so that none escapes being ended."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_processes(identities: Iterable[ProcessIdentity], *, grace_seconds: float) -> list[ProcessIdentity]:
    """Ask processes to end, and make those end that have not after a while.

    Args:
        identities: Which ones; those that are gone are left out.
        grace_seconds: How long SIGTERM is given before SIGKILL.

    Returns:
        Those that had to be killed.
    """
    alive = [identity for identity in identities if _signal(identity, signal.SIGTERM)]
    alive = _wait_for_end(alive, grace_seconds)
    killed = [identity for identity in alive if _signal(identity, signal.SIGKILL)]
    _wait_for_end(killed, 2.0)
    return killed


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a state file so that a reader sees the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a state file's content, or None where there is none or it is not a JSON object."""
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def announce(state_path: Path, part: str, *, url: str, environment: Mapping[str, str], **more: Any) -> None:
    """Write `<part>.json`, by which the owner and clients learn that a part of the sandbox serves.

    Args:
        state_path: Folder of the sandbox.
        part: Name of the part.
        url: Where it answers.
        environment: What a client must have in its environment to use it.
        more: Anything else worth knowing about it.
    """
    record = {"pid": os.getpid(), "url": url, "environment": dict(environment), **more}
    write_json(state_path / f"{part}.json", record)


def wait_until(condition: Callable[[], bool], *, seconds: float) -> bool:
    """Look until a condition holds; say whether it did in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def last_lines(path: Path, *, count: int = 15) -> str:
    """Return the end of a log, for a message; empty where there is none."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - 16384))
            text = log.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-count:])


def _signal(identity: ProcessIdentity, signal_number: int) -> bool:
    if not identity.is_alive():
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(identity.pid, signal_number)
    return True


def _wait_for_end(identities: list[ProcessIdentity], seconds: float) -> list[ProcessIdentity]:
    def all_gone() -> bool:
        return not any(identity.is_alive() for identity in identities)

    wait_until(all_gone, seconds=seconds)
    return [identity for identity in identities if identity.is_alive()]


# Loaded at import, because `preexec_fn` runs between fork and exec, where loading a library may deadlock.
_libc = ctypes.CDLL(None, use_errno=True)
