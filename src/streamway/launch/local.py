"""A compiled pipeline, run on this machine by KFP's own local runner.

The runner lives in a process group of its own, so that one signal ends it and every task it started, whatever they
are doing; and if this process is killed, the runner is told by the kernel and ends as well.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamway.interrupts import terminated_like_interrupt
from streamway.report.journal import FAILED, LINE_PREFIX, STARTED, SUCCEEDED

STEP_LINE = re.compile(rf"^\s*{LINE_PREFIX} (?P<step>\w+) \| (?P<text>.*)$")
STOP_SECONDS = 7.0
"""How long an interrupted run may take to unwind before it is killed; Ctrl-C promises ten seconds in all."""


@dataclass(frozen=True, kw_only=True)
class StepEvent:
    """One line of a step.

    Args:
        step: The component.
        kind: "started", "succeeded", "failed" or "said".
        text: What it said; the seconds it took where it succeeded.
        error: Where it failed: kind, problem, next_step and exit_code.
    """

    step: str
    kind: str
    text: str
    error: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LocalRun:
    """How a local run ended.

    Args:
        succeeded: Whether every task did.
        seconds: Wall time.
        log_path: The runner's whole output.
        report_path: The run's page; None where the exit handler could not write one.
        error: The failed step's error; empty on success.
    """

    succeeded: bool
    seconds: float
    log_path: Path
    report_path: Path | None
    error: dict[str, Any]


def run_locally(
    pipeline_path: Path,
    parameters: Mapping[str, Any],
    *,
    folder: Path,
    environment: Mapping[str, str],
    on_event: Callable[[StepEvent], None],
) -> LocalRun:
    """Run a compiled pipeline and follow its steps.

    Args:
        pipeline_path: The compiled file.
        parameters: Its parameters.
        folder: Where the run's outputs, log and report go; made if missing.
        environment: Variables added to this process's own.
        on_event: Called for each line of a step, in order.

    Raises:
        KeyboardInterrupt: passed on once everything that was started has stopped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log_path = folder / "run.log"
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    (folder / "parameters.json").write_text(json.dumps(dict(parameters), indent=1))
    began = time.monotonic()
    command = [sys.executable, "-u", "-m", "streamway.launch.local_worker", str(pipeline_path), str(folder)]
    error: dict[str, Any] = {}
    # The runner keeps each task's source in a temporary folder, which a killed runner would leave behind.
    with _worker(command, {**os.environ, **environment, "TMPDIR": str(temporary)}) as worker:
        assert worker.stdout is not None
        with log_path.open("w") as log:
            for line in worker.stdout:
                log.write(line)
                event = _read_line(line)
                if event is None:
                    continue
                error = event.error or error
                on_event(event)
        code = worker.wait()
    shutil.rmtree(temporary, ignore_errors=True)
    return LocalRun(
        succeeded=code == 0,
        seconds=time.monotonic() - began,
        log_path=log_path,
        report_path=_keep_report(folder),
        error=error if code else {},
    )


@contextlib.contextmanager
def _worker(command: list[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    with terminated_like_interrupt():
        try:
            yield process
        finally:
            _stop_group(process)


def _stop_group(process: subprocess.Popen[str]) -> None:
    for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, 2.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            process.poll()
            if not _group_lives(process.pid):
                return
            time.sleep(0.05)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _read_line(line: str) -> StepEvent | None:
    match = STEP_LINE.match(line.rstrip("\n"))
    if match is None:
        return None
    step, text = match["step"], match["text"]
    word, _, rest = text.partition(" ")
    if word == FAILED and rest.startswith("{"):
        with contextlib.suppress(ValueError):
            return StepEvent(step=step, kind=FAILED, text="", error=json.loads(rest))
    if text == STARTED:
        return StepEvent(step=step, kind=STARTED, text="")
    if word == SUCCEEDED and rest:
        return StepEvent(step=step, kind=SUCCEEDED, text=rest)
    return StepEvent(step=step, kind="said", text=text)


def _keep_report(folder: Path) -> Path | None:
    """Bring the exit handler's page to where a person looks for it."""
    pages = sorted(folder.glob("*/report-run/page"), key=lambda page: page.stat().st_mtime)
    if not pages:
        return None
    return Path(shutil.copyfile(pages[-1], folder / "report.html"))
