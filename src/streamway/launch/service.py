"""One vocabulary for every service that runs pipelines, so that each verb means the same on Vertex AI and Kubeflow.

A request has a digest of everything that makes it what it is. Runs are named after it, so two people who submit the
same thing at the same time start one run: the second one joins the first.
"""

import hashlib
import json
import logging
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from streamway.cron import Cron
from streamway.errors import AlreadyThereError, LaunchError, ServiceUnreachableError

logger = logging.getLogger("streamway.launch")

QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED = "queued", "running", "succeeded", "failed", "cancelled"
ACTIVE_STATES = frozenset({QUEUED, RUNNING})

REQUEST_LABEL = "streamway-request"
"""Label that carries the digest of a request on the service's side."""

_MOST_ATTEMPTS = 1000
_LONGEST_POLL_SECONDS = 30.0
_LOST_POLLS = 10
"""Polls in a row that may fail before waiting is given up; with the pauses between them some minutes."""


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """A run that somebody wants.

    Args:
        pipeline_path: The compiled pipeline.
        parameters: Its parameters; never a secret.
        name: What the run is for, such as the endpoint's name; the run's id begins with it.
        service_account: Account that the tasks run as; empty for the service's default.
        network: VPC network to peer with, on Vertex AI.
        pipeline_root: Where small outputs go.
        labels: Labels of the run, on Vertex AI.
    """

    pipeline_path: Path
    parameters: Mapping[str, Any]
    name: str
    service_account: str = ""
    network: str = ""
    pipeline_root: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Twelve hex digits over everything that makes this run what it is."""
        fields = (self.parameters, self.name, self.service_account, self.network, self.pipeline_root)
        content = json.dumps(fields, sort_keys=True).encode() + self.pipeline_path.read_bytes()
        return hashlib.sha256(content).hexdigest()[:12]

    @property
    def stem(self) -> str:
        """What the ids of this request's runs begin with."""
        return f"{id_part(self.name)[:60]}-{self.digest}"


@dataclass(frozen=True, kw_only=True)
class TaskStatus:
    """One task of a run; times are RFC 3339 and empty where they have not come."""

    name: str
    state: str
    started: str = ""
    ended: str = ""


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """A run as the service describes it.

    Args:
        id: Its id on the service.
        display_name: Its name for people.
        state: One of the states above.
        created: RFC 3339.
        started: RFC 3339; empty before.
        ended: RFC 3339; empty before.
        error: The service's own words; empty where nothing failed.
        page: Where a person looks at it.
        schedule: Id of the schedule that started it; empty for none.
        service_account: As in RunRequest.
        parameters: As in RunRequest, with whatever the service filled in.
        tasks: Its tasks, groups left out.
        joined: Whether this run was there before it was asked for.
    """

    id: str
    display_name: str
    state: str
    created: str
    started: str = ""
    ended: str = ""
    error: str = ""
    page: str = ""
    schedule: str = ""
    service_account: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    tasks: tuple[TaskStatus, ...] = ()
    joined: bool = False

    @property
    def is_over(self) -> bool:
        return self.state not in ACTIVE_STATES


@dataclass(frozen=True, kw_only=True)
class ScheduleRequest:
    """A schedule that somebody wants.

    Args:
        name: Its name for people, unique among the schedules of one place.
        cron: When it fires.
        run: What it runs.
        most_at_once: Runs of it that may go on at the same time.
        end: RFC 3339 time after which it starts nothing; empty for never.
    """

    name: str
    cron: Cron
    run: RunRequest
    most_at_once: int = 1
    end: str = ""


@dataclass(frozen=True, kw_only=True)
class ScheduleStatus:
    """A schedule as the service describes it.

    Args:
        id: Its id on the service.
        name: Its name for people.
        state: "active", "paused" or "completed".
        cron: The fields of its expression.
        time_zone: Of the expression.
        location: Where it runs.
        service_account: Account that its runs use.
        parameters: What its runs are given.
        network: As in RunRequest.
        pipeline_root: As in RunRequest.
        most_at_once: As in ScheduleRequest.
        pipeline: Digest of the compiled pipeline that it runs.
        end: As in ScheduleRequest.
        next_run: RFC 3339; empty where none comes.
        last_run: What became of the last time; empty before the first.
        page: Where a person looks at it.
    """

    id: str
    name: str
    state: str
    cron: str
    time_zone: str
    location: str
    service_account: str
    parameters: Mapping[str, Any]
    network: str
    pipeline_root: str
    most_at_once: int
    pipeline: str
    end: str = ""
    next_run: str = ""
    last_run: str = ""
    page: str = ""


class PipelineService(Protocol):
    """A service that runs pipelines.

    Every method raises LaunchError with the service's own words; ServiceUnreachableError where it did not answer.
    """

    @property
    def place(self) -> str:
        """Where it is, for messages."""

    def create_run(self, request: RunRequest, run_id: str) -> RunStatus:
        """Start a run under an id of ours.

        Raises:
            AlreadyThereError: there is a run of that id.
        """

    def find_run(self, run_id: str) -> RunStatus | None:
        """Return a run by its id; None where there is none."""

    def list_runs(self, *, limit: int, digest: str = "") -> tuple[RunStatus, ...]:
        """Return the newest runs, newest first; only those of one request where its digest is given."""

    def cancel_run(self, run_id: str) -> None:
        """Ask a run to stop."""

    def create_schedule(self, request: ScheduleRequest) -> str:
        """Make a schedule; return its id."""

    def list_schedules(self) -> tuple[ScheduleStatus, ...]:
        """Return every schedule of the place."""

    def find_schedule(self, schedule_id: str) -> ScheduleStatus | None:
        """Return a schedule by its id; None where there is none."""

    def pause_schedule(self, schedule_id: str) -> None:
        """Start nothing until it is resumed."""

    def resume_schedule(self, schedule_id: str, *, catch_up: bool) -> None:
        """Go on, from the next time or from the first that was missed."""

    def delete_schedule(self, schedule_id: str) -> None:
        """Remove a schedule; its runs stay."""


def submit(service: PipelineService, request: RunRequest) -> RunStatus:
    """Start a run, or join the one that the same request has started and that is not over.

    Raises:
        LaunchError: the service refuses.
    """
    attempts = service.list_runs(limit=_MOST_ATTEMPTS, digest=request.digest)
    going_on = [run for run in attempts if not run.is_over]
    if going_on:
        # Where a service takes a name twice there may be two for a moment, and the first is the one that stays.
        return _join(min(going_on, key=lambda run: (run.created, run.id)))
    for number in range(len(attempts) + 1, _MOST_ATTEMPTS):
        run_id = f"{request.stem}-{number}"
        try:
            return service.create_run(request, run_id)
        except AlreadyThereError:
            found = service.find_run(run_id)
            if found is not None and not found.is_over:
                return _join(found)
    raise LaunchError(
        f"{request.stem} has been started {_MOST_ATTEMPTS} times in {service.place}.",
        next_step="Delete its old runs, then submit again.",
    )


def wait_for_run(
    service: PipelineService,
    run_id: str,
    *,
    timeout_seconds: float,
    poll_seconds: float = 2.0,
    on_status: Callable[[RunStatus], None] = lambda status: None,
) -> RunStatus:
    """Follow a run until it is over.

    Args:
        service: Where it runs.
        run_id: Which one.
        timeout_seconds: Longest wait.
        poll_seconds: First pause between two looks; later ones are longer.
        on_status: Called after every look.

    Raises:
        LaunchError: it is gone, it is not over in time, or the service has been silent for minutes.
    """
    deadline = time.monotonic() + timeout_seconds
    for pause in _pauses(poll_seconds):
        found = _look(service, run_id, deadline)
        on_status(found)
        if found.is_over:
            return found
        if time.monotonic() + pause > deadline:
            raise LaunchError(
                f"{run_id} in {service.place} is still {found.state} after {timeout_seconds:.0f} s; it goes on.",
                next_step=f"Look at {found.page}, or wait longer with --timeout-minutes.",
            )
        time.sleep(pause)
    raise AssertionError


def id_part(text: str) -> str:
    """Make something that may stand in an id: small letters, digits and dashes, a letter first."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return plain if plain[:1].isalpha() else f"run-{plain}".rstrip("-")


def digest_of(spec: Mapping[str, Any]) -> str:
    """Twelve hex digits over a compiled pipeline, however its keys are ordered and its numbers written."""
    return hashlib.sha256(json.dumps(_plain_numbers(spec), sort_keys=True).encode()).hexdigest()[:12]


def same_values(wanted: Any, found: Any) -> bool:
    """Compare values that may have passed through JSON or protobuf, where every number is a float."""
    return _plain_numbers(wanted) == _plain_numbers(found)


def in_order(tasks: Iterable[TaskStatus]) -> tuple[TaskStatus, ...]:
    """Sort tasks by when they began; those that have not come last."""
    return tuple(sorted(tasks, key=lambda task: (not task.started, task.started)))


def _plain_numbers(value: Any) -> Any:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, Mapping):
        return {str(key): _plain_numbers(entry) for key, entry in value.items()}
    return [_plain_numbers(entry) for entry in value]


def _join(run: RunStatus) -> RunStatus:
    logger.info("%s is %s already, with the same pipeline and parameters; joining it", run.id, run.state)
    return RunStatus(**{**vars(run), "joined": True})


def _look(service: PipelineService, run_id: str, deadline: float) -> RunStatus:
    """Look at a run; a service that is away for a moment does not end the wait."""
    for attempt, pause in enumerate(_pauses(1.0), start=1):
        try:
            found = service.find_run(run_id)
        except ServiceUnreachableError:
            if attempt == _LOST_POLLS or time.monotonic() + pause > deadline:
                raise
            time.sleep(pause)
            continue
        if found is None:
            raise LaunchError(f"{run_id} is gone from {service.place}.", next_step="Submit it again.")
        return found
    raise AssertionError


def _pauses(first_seconds: float) -> Iterator[float]:
    pause = first_seconds
    while True:
        # Many who wait must not look at the same moment.
        yield pause * random.uniform(0.9, 1.1)
        pause = min(pause * 1.15, _LONGEST_POLL_SECONDS)
