"""Starting, looking at and ending a sandbox, from any process."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from streamway.errors import SandboxError
from streamway.sandbox.engine import Engine, OnLine, ensure_engine
from streamway.sandbox.locks import hold_lock
from streamway.sandbox.parts import SandboxConfig, sockets_path, write_plan
from streamway.sandbox.processes import (
    ProcessIdentity,
    end_processes,
    identify,
    last_lines,
    owned_processes,
    read_json,
    wait_until,
)
from streamway.sandbox.seed import add_synthetic_models, ensure_seeds, install_seeds

# All parts together: each has a deadline of its own in the plan.
_UP_DEADLINE_SECONDS = 300.0
# The parts may take ten seconds; then they are killed.
_DOWN_SECONDS = 12.0


@dataclass(frozen=True, kw_only=True)
class PartStatus:
    """One part as it is now.

    Args:
        name: Its name.
        state: `serving`, or `ended` where it should serve and does not.
        url: Where it answers.
        pid: Its process.
        log_path: Its log.
        detail: For one that ended: its exit code and last lines.
    """

    name: str
    state: str
    url: str
    pid: int
    log_path: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class SandboxStatus:
    """A sandbox as it is now.

    Args:
        running: Whether it is up and every part serves.
        state_path: Its folder.
        since: When it came up, RFC 3339; empty where it is not up.
        pid: Process that owns all parts; 0 where there is none.
        parts: The parts, in the order they started.
    """

    running: bool
    state_path: Path
    since: str = ""
    pid: int = 0
    parts: tuple[PartStatus, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """A sandbox that is up.

    Args:
        state_path: Its folder.
        environment: What a client must have in its environment to use it.
        started_here: False where it was up already.
    """

    state_path: Path
    environment: dict[str, str]
    started_here: bool


def up(
    state_path: Path, *, config: SandboxConfig, on_line: OnLine = lambda line: None, owner_pid: int | None = None
) -> Sandbox:
    """Start a sandbox, or find it up.

    Args:
        state_path: Its folder; made where it is missing.
        config: What it should have; one that is up already keeps what it was started with.
        on_line: Told what is going on, a line at a time.
        owner_pid: Process whose end is the sandbox's end; None for one that runs until `down`.

    Raises:
        SandboxError: the engine, the seed or a part could not be made to work, or a part of the sandbox that is up
            has ended.
    """
    folder = state_path.absolute()
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    with hold_lock(
        folder / "up.lock", doing="starting this sandbox", longest_seconds=_UP_DEADLINE_SECONDS, on_line=on_line
    ):
        found = status(folder)
        if found.running:
            on_line(f"the sandbox in {folder} is already up, since {found.since}")
            return Sandbox(state_path=folder, environment=environment(folder), started_here=False)
        if found.pid:
            raise _broken(found)
        _clear(folder)
        _prepare(folder, config, on_line)
        _start(folder, owner_pid, on_line)
        return Sandbox(state_path=folder, environment=environment(folder), started_here=True)


def status(state_path: Path) -> SandboxStatus:
    """Say how a sandbox is; a folder without one has none running."""
    folder = state_path.absolute()
    owner = _supervisor(folder)
    record = read_json(folder / "sandbox.json")
    if owner is None or record is None or record["pid"] != owner.pid:
        return SandboxStatus(running=False, state_path=folder, pid=owner.pid if owner else 0)
    parts = tuple(
        PartStatus(
            name=part["name"],
            state=part["state"],
            url=part["url"],
            pid=part["pid"],
            log_path=part["log_path"],
            detail=f"exit code {part['exit_code']}\n{part['last_lines']}" if part["state"] == "ended" else "",
        )
        for part in record["parts"]
    )
    running = all(part.state == "serving" for part in parts)
    return SandboxStatus(running=running, state_path=folder, since=record["since"], pid=owner.pid, parts=parts)


def environment(state_path: Path) -> dict[str, str]:
    """Return what a client must have in its environment to use a sandbox that is up.

    Raises:
        SandboxError: none is up there.
    """
    record = read_json(state_path.absolute() / "sandbox.json")
    if record is None:
        raise SandboxError(f"No sandbox is up in {state_path}.", next_step="Start one with: streamway sandbox up")
    return dict(record["environment"])


def down(state_path: Path) -> None:
    """End a sandbox and everything that was started for it; what it stored stays."""
    folder = state_path.absolute()
    if not folder.is_dir():
        return
    owner = _supervisor(folder)
    if owner:
        end_processes([owner], grace_seconds=_DOWN_SECONDS)
    _clear(folder)


def _clear(folder: Path) -> None:
    """Remove what a sandbox that was killed has left: its processes and its state files."""
    leftovers = [one for one in owned_processes(folder) if one.pid != os.getpid()]
    end_processes(leftovers, grace_seconds=2.0)
    shutil.rmtree(sockets_path(folder), ignore_errors=True)
    parts = (read_json(folder / "plan.json") or {}).get("parts", [])
    names = [part["name"] for part in parts] + ["sandbox", "supervisor", "failure", "images"]
    for name in names:
        (folder / f"{name}.json").unlink(missing_ok=True)


def _prepare(folder: Path, config: SandboxConfig, on_line: OnLine) -> None:
    engine: Engine | None = ensure_engine(on_line) if config.engine_image or config.seed else None
    repositories = folder / "hub" / "repos"
    repositories.mkdir(parents=True, exist_ok=True)
    if config.seed and engine:
        install_seeds(ensure_seeds(engine, on_line), repositories)
    add_synthetic_models(repositories)
    write_plan(config, folder, engine if config.engine_image else None)


def _start(folder: Path, owner_pid: int | None, on_line: OnLine) -> None:
    log_path = folder / "logs" / "supervisor.log"
    command = [sys.executable, "-m", "streamway.sandbox.supervisor", "--state", str(folder)]
    if owner_pid is not None:
        command += ["--owner-pid", str(owner_pid)]
    with log_path.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _follow(process, folder, log_path, on_line)
    except BaseException:
        identity = identify(process.pid)
        if identity:
            end_processes([identity], grace_seconds=_DOWN_SECONDS)
        process.wait()
        raise


def _follow(process: "subprocess.Popen[bytes]", folder: Path, log_path: Path, on_line: OnLine) -> None:
    """Pass the supervisor's lines on until everything serves.

    Raises:
        SandboxError: it gave up, or took too long.
    """
    with log_path.open() as lines:

        def settled() -> bool:
            for line in lines:
                on_line(line.rstrip())
            return read_json(folder / "sandbox.json") is not None or process.poll() is not None

        in_time = wait_until(settled, seconds=_UP_DEADLINE_SECONDS)
    if process.poll() is not None:
        failure = read_json(folder / "failure.json") or {
            "problem": f"The sandbox's supervisor ended with exit code {process.returncode}. The end of {log_path}:\n"
            f"{last_lines(log_path)}",
            "next_step": "Put right what it names, and start the sandbox again.",
        }
        raise SandboxError(failure["problem"], next_step=failure["next_step"])
    if not in_time:
        raise SandboxError(
            f"The sandbox in {folder} was not up within {_UP_DEADLINE_SECONDS:.0f} s. The end of {log_path}:\n"
            f"{last_lines(log_path)}",
            next_step=f"Read the logs in {log_path.parent}.",
        )


def _supervisor(folder: Path) -> ProcessIdentity | None:
    record = read_json(folder / "supervisor.json")
    if record is None:
        return None
    identity = ProcessIdentity(pid=record["pid"], started_ticks=record["started_ticks"])
    return identity if identity.is_alive() else None


def _broken(found: SandboxStatus) -> SandboxError:
    ended = [part for part in found.parts if part.state == "ended"]
    details = "\n".join(f"{part.name}: {part.detail}" for part in ended) or "It is still starting."
    names = ", ".join(part.name for part in ended) or "none of its parts"
    return SandboxError(
        f"The sandbox in {found.state_path} is up, but {names} ended, expected every part to serve.\n{details}",
        next_step="Stop it with `streamway sandbox down`, and start it again.",
    )
