"""One sandbox for all end-to-end tests: they share its Hub, its bucket and its one GPU, as tenants of a cloud do."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
STREAMWAY = str(Path(sys.executable).with_name("streamway"))
RUN_SECONDS = 900


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a command line run left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True, kw_only=True)
class Terminal:
    """A shell in which `streamway` is run, as a person runs it."""

    state_path: Path

    def streamway(self, *arguments: str, state: bool = True, environment: dict[str, str] | None = None) -> Outcome:
        command = [STREAMWAY, *arguments, *(["--state", str(self.state_path)] if state else [])]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
        )
        return Outcome(code=done.returncode, out=done.stdout, err=done.stderr)

    def run(self, *settings: str) -> Outcome:
        """`streamway run configs/sandbox.yaml --json` with settings replaced."""
        replaced = [part for setting in settings for part in ("--set", setting)]
        return self.streamway("run", "configs/sandbox.yaml", "--json", *replaced)

    def kubectl(self, *arguments: str, stdin: str = "") -> Outcome:
        command = [str(Path(sys.executable).with_name("kubectl")), *arguments]
        environment = {**os.environ, **self.environment}
        done = subprocess.run(
            command, env=environment, input=stdin, capture_output=True, text=True, timeout=RUN_SECONDS
        )
        return Outcome(code=done.returncode, out=done.stdout, err=done.stderr)

    @property
    def environment(self) -> dict[str, str]:
        lines = self.streamway("sandbox", "env").out.splitlines()
        return dict(line.removeprefix("export ").replace("'", "").split("=", 1) for line in lines)


@pytest.fixture(scope="session")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    shell = Terminal(state_path=tmp_path_factory.mktemp("sandbox"))
    up = shell.streamway("sandbox", "up")
    try:
        assert up.code == 0, up.err
        yield shell
    finally:
        down = shell.streamway("sandbox", "down")
    assert down.code == 0, down.err
    assert not processes_of(shell.state_path)


@pytest.fixture(scope="session")
def processes_naming() -> Callable[[Path], list[str]]:
    return processes_of


def processes_of(state_path: Path) -> list[str]:
    """Command lines of processes that name a state folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(state_path) in line:
            found.append(line)
    return found
