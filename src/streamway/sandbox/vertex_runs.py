"""Runs of pipelines: queued, started a few at a time, followed, cancelled, and remembered.

A run is what Vertex AI calls a pipeline job and Kubeflow calls a run; both surfaces of this part keep their own
descriptions of it and share this queue. A run is executed by the worker that `streamway run` uses, in a process group
of its own, with the environment that the other parts of the sandbox announce.
"""

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from streamway import storage
from streamway.errors import StreamwayError
from streamway.sandbox.processes import die_with_parent, read_json, write_json
from streamway.sandbox.vertex_tasks import Task, TaskTree, timestamp

QUEUED, PENDING, RUNNING = "QUEUED", "PENDING", "RUNNING"
SUCCEEDED, FAILED, CANCELLING, CANCELLED = "SUCCEEDED", "FAILED", "CANCELLING", "CANCELLED"
FINAL_STATES = frozenset({SUCCEEDED, FAILED, CANCELLED})

# A worker that is told to stop unwinds its tasks; they give back what they hold.
_GRACE_SECONDS = 8.0
_LONGEST_LINE_BYTES = 1 << 20
_JOB_NAME = "{{$.pipeline_job_name}}"

log = logging.getLogger("streamway.sandbox.vertex")


@dataclass(kw_only=True)
class Run:
    """One run of a pipeline.

    Args:
        id: Unique in this sandbox; also the name of its folder.
        name: What the pipeline is told as its job's name.
        schedule: Id of the schedule that started it; empty for a person.
        state: One of the states above.
        created: When it was asked for.
        started: When it began; empty before.
        ended: When it ended; empty before.
        error: Why it failed; empty otherwise.
        output_uri: Where its artifacts go; empty or local for this machine's disk.
        tasks: Its tasks, parents first.
    """

    id: str
    name: str
    schedule: str = ""
    state: str = QUEUED
    created: str = ""
    started: str = ""
    ended: str = ""
    error: str = ""
    output_uri: str = ""
    tasks: list[Task]

    @property
    def is_over(self) -> bool:
        return self.state in FINAL_STATES


class RunQueue:
    """Every run of the sandbox.

    Args:
        folder: Where runs are kept, one folder each.
        environment: Gives the variables that a worker gets, read anew for each run.
        concurrency: How many run at a time; the others wait in order.
        on_change: Called when a run has ended.
    """

    def __init__(
        self,
        folder: Path,
        *,
        environment: Callable[[], Mapping[str, str]],
        concurrency: int,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder = folder
        self._environment = environment
        self._slots = asyncio.Semaphore(concurrency)
        self._running: dict[str, asyncio.Task[None]] = {}
        self.on_change = on_change
        self.runs = {run.id: run for run in map(_load, sorted(folder.glob("*/run.json"))) if run}

    def submit(
        self,
        run_id: str,
        *,
        name: str,
        spec: Mapping[str, Any],
        parameters: Mapping[str, Any],
        output_uri: str = "",
        schedule: str = "",
    ) -> Run:
        """Queue a run of a compiled pipeline."""
        tasks = TaskTree.plan(spec, name).tasks
        run = Run(id=run_id, name=name, schedule=schedule, created=timestamp(), output_uri=output_uri, tasks=tasks)
        self.runs[run_id] = run
        place = self.folder(run_id)
        place.mkdir(parents=True)
        # The services fill this in before a task sees it; the local runner would use a name of its own.
        (place / "pipeline.json").write_text(json.dumps(spec).replace(_JOB_NAME, name))
        (place / "parameters.json").write_text(json.dumps(dict(parameters)))
        self._save(run)
        self._running[run_id] = asyncio.create_task(self._execute(run))
        self._running[run_id].add_done_callback(_tell_defect)
        return run

    def cancel(self, run_id: str) -> None:
        """Ask a run to stop; one that is over stays as it is."""
        run = self.runs[run_id]
        if not run.is_over:
            run.state = CANCELLING
            self._save(run)
            self._running[run_id].cancel()

    async def remove(self, run_id: str) -> None:
        """Forget a run that is over, with all it left on disk."""
        del self.runs[run_id]
        await asyncio.to_thread(shutil.rmtree, self.folder(run_id), True)

    async def close(self) -> None:
        """Stop everything that runs."""
        for run_id in list(self._running):
            self.cancel(run_id)
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    def folder(self, run_id: str) -> Path:
        """Where a run's log, report and outputs are."""
        return self._folder / run_id

    async def _execute(self, run: Run) -> None:
        tree = TaskTree(run.tasks)
        succeeded = False
        try:
            async with self._slots:
                run.state, run.started = RUNNING, timestamp()
                self._save(run)
                log.info("run %s begins", run.id)
                succeeded = await self._follow(run, tree) == 0
                tree.finish(succeeded=succeeded, cancelled=False)
                tree.read_outputs(self.folder(run.id))
                await asyncio.to_thread(self._deliver, run)
        except asyncio.CancelledError:
            tree.finish(succeeded=False, cancelled=True)
            run.state = CANCELLED
        else:
            run.state = SUCCEEDED if succeeded else FAILED
            run.error = "" if succeeded else _explain(tree)
        run.ended = timestamp()
        self._save(run)
        self._running.pop(run.id, None)
        log.info("run %s ended as %s", run.id, run.state)
        self.on_change()

    async def _follow(self, run: Run, tree: TaskTree) -> int:
        place = self.folder(run.id)
        temporary = place / "tmp"
        temporary.mkdir(exist_ok=True)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-u", "-m", "streamway.launch.local_worker"),
            *(str(place / "pipeline.json"), str(place)),
            env={**os.environ, **self._environment(), "TMPDIR": str(temporary)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
            limit=_LONGEST_LINE_BYTES,
        )
        assert process.stdout is not None
        try:
            with (place / "run.log").open("wb") as written:
                while line := await _read_line(process.stdout):
                    written.write(line)
                    written.flush()
                    if tree.read_line(line.decode(errors="replace")):
                        self._save(run)
            return await process.wait()
        finally:
            await asyncio.shield(_end_group(process))
            shutil.rmtree(temporary, ignore_errors=True)

    def _deliver(self, run: Run) -> None:
        """Bring what tasks wrote on this machine's disk to where the run was told to keep its outputs."""
        bucket = self._environment().get("STORAGE_EMULATOR_HOST")
        if not bucket or not storage.is_gs(run.output_uri):
            return
        os.environ["STORAGE_EMULATOR_HOST"] = bucket
        for task in run.tasks:
            for name, artifact in task.outputs.items():
                path = Path(artifact["uri"])
                if not path.is_file():
                    continue
                uri = storage.join(run.output_uri, run.name, f"{task.name}_{task.id}", name)
                try:
                    storage.write_file(uri, path.read_bytes())
                except StreamwayError as error:
                    log.warning("%s stays on disk: %s", path, error.problem)
                else:
                    artifact["uri"] = uri

    def _save(self, run: Run) -> None:
        write_json(self.folder(run.id) / "run.json", asdict(run))


def _tell_defect(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("a run could not be followed", exc_info=task.exception())


def _load(path: Path) -> Run | None:
    """Read a run of an earlier process; one that was not over then will never be."""
    fields = read_json(path)
    if fields is None:
        return None
    run = Run(**{**fields, "tasks": [Task(**task) for task in fields["tasks"]]})
    if not run.is_over:
        TaskTree(run.tasks).finish(succeeded=False, cancelled=False)
        run.state, run.ended = FAILED, timestamp()
        run.error = "The machine that ran the pipeline was stopped."
        write_json(path, asdict(run))
    return run


async def _read_line(stream: asyncio.StreamReader) -> bytes:
    """Read up to the end of a line, or as much of a line as the limit allows."""
    try:
        return await stream.readuntil()
    except asyncio.IncompleteReadError as error:
        return error.partial
    except asyncio.LimitOverrunError as error:
        return await stream.readexactly(error.consumed)


async def _end_group(process: asyncio.subprocess.Process) -> None:
    for number, seconds in ((signal.SIGTERM, _GRACE_SECONDS), (signal.SIGKILL, 2.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        deadline = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < deadline:
            if process.returncode is not None and not _group_lives(process.pid):
                return
            await asyncio.sleep(0.02)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _explain(tree: TaskTree) -> str:
    """Word a failure as Vertex AI does, which never says more than which task it was."""
    failed = tree.failed()
    if not failed:
        return "The pipeline could not be executed."
    return f"The DAG failed because some tasks failed. The failed tasks are: [{', '.join(failed)}]."
