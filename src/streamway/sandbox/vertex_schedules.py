"""Schedules that fire: one timetable for Vertex AI's schedules and Kubeflow's recurring runs.

A timetable knows when it is due, how many of its runs may go on at once, and what becomes of a time that comes too
early. What a run consists of is known to the surface that made the schedule.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta

from streamway.cron import Cron
from streamway.sandbox.clock import Clock, write_time
from streamway.sandbox.vertex_store import Resource, Shelf, read_time

ACTIVE, PAUSED, COMPLETED = "ACTIVE", "PAUSED", "COMPLETED"
_LONGEST_SLEEP_SECONDS = 60.0

log = logging.getLogger("streamway.sandbox.vertex")


@dataclass(kw_only=True)
class Timetable:
    """When a schedule is due.

    Args:
        cron: Its expression; empty for a period.
        period_seconds: The period; 0 for an expression.
        start: No run before this time; empty for at once.
        end: No run after this time; empty for never.
        most_runs: Runs after which it is complete; 0 for no bound.
        most_at_once: Runs that may go on at the same time.
        queueing: Whether a time that finds too many runs waits for one to end; otherwise it is passed over.
        state: ACTIVE, PAUSED or COMPLETED.
        runs: How many have been started.
        next: When it is due next; empty for never.
        waiting: Times that wait for a run to end.
        last: The last time that came, and what became of it.
    """

    cron: str = ""
    period_seconds: int = 0
    start: str = ""
    end: str = ""
    most_runs: int = 0
    most_at_once: int = 1
    queueing: bool = False
    state: str = ACTIVE
    runs: int = 0
    next: str = ""
    waiting: list[str] = field(default_factory=list)
    last: dict[str, str] = field(default_factory=dict)

    def set_next(self, after: datetime) -> None:
        """Find the first time after a moment at which it is due."""
        if self.start:
            after = max(after, read_time(self.start) - timedelta(seconds=1))
        period = timedelta(seconds=self.period_seconds)
        due = Cron.parse(self.cron).next_after(after) if self.cron else after + period
        over = due is None or (self.end and due > read_time(self.end))
        self.next = "" if over or due is None else write_time(due)

    def settle(self) -> None:
        """Complete it where no run will ever come again."""
        used_up = bool(self.most_runs) and self.runs >= self.most_runs
        if self.state == ACTIVE and (used_up or (not self.next and not self.waiting)):
            self.state, self.next, self.waiting = COMPLETED, "", []


class Scheduler:
    """Fires what is due.

    Args:
        shelf: Where schedules are kept: {"timetable": ..., "surface": ..., "resource": ...} by id.
        clock: What time it is.
        count_active: Says how many runs of a schedule are not over.
        fire: Starts a run of a schedule for a time that has come.
    """

    def __init__(
        self,
        shelf: Shelf,
        clock: Clock,
        *,
        count_active: Callable[[str], int],
        fire: Callable[[str, Resource, datetime], None],
    ) -> None:
        self.shelf = shelf
        self._clock = clock
        self._count_active = count_active
        self._fire = fire

    def add(self, schedule_id: str, timetable: Timetable, surface: str, resource: Resource) -> None:
        """Take up a new schedule."""
        timetable.set_next(self._clock.now())
        timetable.settle()
        self.save(schedule_id, timetable, {"surface": surface, "resource": resource})

    def timetable(self, schedule_id: str) -> Timetable:
        """Return the timetable of a schedule."""
        return Timetable(**self.shelf.entries[schedule_id]["timetable"])

    def save(self, schedule_id: str, timetable: Timetable, more: Resource | None = None) -> None:
        """Keep a changed timetable, and look again at what is due."""
        entry = {**self.shelf.entries.get(schedule_id, {}), **(more or {}), "timetable": asdict(timetable)}
        self.shelf.put(schedule_id, entry)
        self._clock.moved.set()

    def pause(self, schedule_id: str) -> None:
        """Start nothing until it is resumed."""
        timetable = self.timetable(schedule_id)
        timetable.state, timetable.next = PAUSED, ""
        self.save(schedule_id, timetable, {"paused": self._clock.stamp()})

    def resume(self, schedule_id: str, *, catch_up: bool) -> None:
        """Go on: from the next time, or from the first that was missed."""
        timetable = self.timetable(schedule_id)
        paused = self.shelf.entries[schedule_id].get("paused")
        timetable.state = ACTIVE
        timetable.set_next(read_time(paused) if catch_up and paused else self._clock.now())
        timetable.settle()
        self.save(schedule_id, timetable, {"resumed": self._clock.stamp()})

    async def serve(self) -> None:
        """Fire what is due, for as long as it is not cancelled."""
        while True:
            self._clock.moved.clear()
            soonest = min((self._advance(schedule_id) for schedule_id in list(self.shelf.entries)), default=None)
            seconds = _LONGEST_SLEEP_SECONDS
            if soonest is not None:
                seconds = min(seconds, max(0.0, (soonest - self._clock.now()).total_seconds()))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._clock.moved.wait(), seconds)

    def _advance(self, schedule_id: str) -> datetime:
        """Fire what is due of one schedule; return when to look at it again."""
        timetable = self.timetable(schedule_id)
        before = asdict(timetable)
        now = self._clock.now()
        while timetable.state == ACTIVE and timetable.waiting and self._has_room(schedule_id, timetable):
            self._start(schedule_id, timetable, timetable.waiting.pop(0))
        while timetable.state == ACTIVE and timetable.next and read_time(timetable.next) <= now:
            due = timetable.next
            timetable.set_next(read_time(due))
            self._meet(schedule_id, timetable, due)
        if asdict(timetable) != before:
            self.shelf.put(schedule_id, {**self.shelf.entries[schedule_id], "timetable": asdict(timetable)})
        waits = timetable.state == ACTIVE and timetable.next
        return read_time(timetable.next) if waits else now + timedelta(seconds=_LONGEST_SLEEP_SECONDS)

    def _meet(self, schedule_id: str, timetable: Timetable, due: str) -> None:
        if self._has_room(schedule_id, timetable):
            self._start(schedule_id, timetable, due)
        elif timetable.queueing:
            timetable.waiting.append(due)
        else:
            log.info("schedule %s passes over %s: %d runs go on", schedule_id, due, timetable.most_at_once)
            timetable.last = {"scheduledRunTime": due, "runResponse": "Skipped: too many runs of this schedule go on."}
        timetable.settle()

    def _start(self, schedule_id: str, timetable: Timetable, due: str) -> None:
        log.info("schedule %s fires for %s", schedule_id, due)
        self._fire(schedule_id, self.shelf.entries[schedule_id], read_time(due))
        timetable.runs += 1
        timetable.last = {"scheduledRunTime": due, "runResponse": "OK"}
        timetable.settle()

    def _has_room(self, schedule_id: str, timetable: Timetable) -> bool:
        return self._count_active(schedule_id) < timetable.most_at_once
