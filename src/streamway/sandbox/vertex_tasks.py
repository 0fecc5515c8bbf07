"""What a run's tasks are doing, as told by the lines of KFP's local runner.

Vertex AI and Kubeflow both show a run as a tree of tasks. The tree is known from the compiled pipeline; each task's
state follows from what the runner says, and its outputs from the file that every task leaves behind.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PENDING, RUNNING, SUCCEEDED, FAILED = "PENDING", "RUNNING", "SUCCEEDED", "FAILED"
CANCELLED, SKIPPED, NOT_TRIGGERED = "CANCELLED", "SKIPPED", "NOT_TRIGGERED"

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# kfp.local.task_dispatcher, run_single_task_implementation, in 2.17.
_EXECUTING = re.compile(r"- INFO - Executing task '(?P<name>[^']+)'")
_FINISHED = re.compile(r"- (?:INFO|ERROR) - Task '(?P<name>[^']+)' finished with status (?P<status>\w+)")
_ROOT_ID = 1


def timestamp() -> str:
    """Return the present as both services write it."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


@dataclass(kw_only=True)
class Task:
    """One task of a run, or a group of tasks.

    Args:
        id: Number of the task in its run.
        parent: Number of the group that it belongs to; 0 for the run itself.
        name: Its name in the pipeline.
        component: The component that it runs, as the local runner calls it; empty for a group.
        state: One of the states above.
        created: When the run was created.
        started: When it began to run; empty before.
        ended: When it ended; empty before.
        outputs: The artifacts it wrote: name to {"name", "uri", "type", "metadata"}.
        parameters: The values it returned.
    """

    id: int
    parent: int
    name: str
    component: str = ""
    state: str = PENDING
    created: str = ""
    started: str = ""
    ended: str = ""
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)


class TaskTree:
    """All tasks of a run.

    Args:
        tasks: The tasks, parents before their children.
    """

    def __init__(self, tasks: list[Task]) -> None:
        self.tasks = tasks

    @classmethod
    def plan(cls, spec: Mapping[str, Any], root_name: str) -> "TaskTree":
        """Lay out the tasks of a compiled pipeline."""
        created = timestamp()
        tasks = [Task(id=_ROOT_ID, parent=0, name=root_name, created=created)]
        for parent, name, component in _walk(spec, spec["root"], _ROOT_ID, tasks):
            tasks.append(Task(id=len(tasks) + 1, parent=parent, name=name, component=component, created=created))
        return cls(tasks)

    def read_line(self, line: str) -> bool:
        """Follow one line of the runner; say whether it changed anything."""
        plain = _COLOUR.sub("", line)
        if match := _EXECUTING.search(plain):
            return self._move(match["name"], (PENDING, FAILED), RUNNING)
        if match := _FINISHED.search(plain):
            state = SUCCEEDED if match["status"] == "SUCCESS" else FAILED
            return self._move(match["name"], (RUNNING,), state)
        return False

    def finish(self, *, succeeded: bool, cancelled: bool) -> None:
        """Settle what the runner has not: tasks that were cut off, and tasks that never began."""
        for task in self.tasks:
            if task.state == RUNNING and task.component:
                task.state, task.ended = (CANCELLED if cancelled else FAILED), timestamp()
            elif task.state == PENDING and task.component:
                task.state = SKIPPED if succeeded else NOT_TRIGGERED
        self._settle_groups()
        root = self.tasks[0]
        root.state = SUCCEEDED if succeeded else CANCELLED if cancelled else FAILED
        root.ended = timestamp()

    def failed(self) -> list[str]:
        """Names of the tasks that failed, without the groups that failed because of them."""
        return [task.name for task in self.tasks if task.state == FAILED and task.component]

    def read_outputs(self, folder: Path) -> None:
        """Take each task's outputs from the files that its executor wrote under `folder`."""
        for path in sorted(folder.glob("**/executor_output.json")):
            written = _read_json(path)
            for task in self.tasks:
                if task.component == path.parent.name and task.state in (SUCCEEDED, FAILED):
                    task.parameters = dict(written.get("parameterValues", {}))
                    task.outputs = dict(_artifacts(written))

    def _move(self, component: str, before: tuple[str, ...], after: str) -> bool:
        for state in before:
            for task in self.tasks:
                if task.component == component and task.state == state:
                    task.state = after
                    if after == RUNNING:
                        task.started, task.ended = task.started or timestamp(), ""
                    else:
                        task.ended = timestamp()
                    self._settle_groups()
                    return True
        return False

    def _settle_groups(self) -> None:
        for group in reversed([task for task in self.tasks if not task.component]):
            children = [task for task in self.tasks if task.parent == group.id]
            states = {task.state for task in children}
            if states <= {PENDING}:
                continue
            group.started = group.started or min((task.started for task in children if task.started), default="")
            group.state = _state_of_group(states)
            if group.state not in (PENDING, RUNNING):
                group.ended = max((task.ended for task in children), default="")


def _state_of_group(states: set[str]) -> str:
    if states & {PENDING, RUNNING}:
        return RUNNING
    for state in (FAILED, CANCELLED, NOT_TRIGGERED):
        if state in states:
            return state
    return SUCCEEDED if SUCCEEDED in states else SKIPPED


def _walk(
    spec: Mapping[str, Any], component: Mapping[str, Any], parent: int, tasks: list[Task]
) -> Iterator[tuple[int, str, str]]:
    """Yield (parent, name, component) of each task; `tasks` grows by one before the next is asked for."""
    for name, task in component.get("dag", {}).get("tasks", {}).items():
        reference = task["componentRef"]["name"]
        inner = spec.get("components", {}).get(reference, {})
        if "dag" in inner:
            yield parent, name, ""
            yield from _walk(spec, inner, len(tasks), tasks)
        else:
            yield parent, name, reference.removeprefix("comp-")


def _artifacts(written: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, held in written.get("artifacts", {}).items():
        for artifact in held.get("artifacts", [])[:1]:
            yield (
                name,
                {
                    "name": artifact.get("name", name),
                    "uri": artifact.get("uri", ""),
                    "type": artifact.get("type", {}).get("schemaTitle", "system.Artifact"),
                    "metadata": artifact.get("metadata", {}),
                },
            )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
