"""Schedules that are what was asked for: made, read back, compared, and taken away again where they differ.

Services have dropped service accounts and parameters of schedules without a word (googleapis/python-aiplatform#4039),
and such a schedule fails at night, or worse, runs with other rights or another model.
"""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import yaml

from streamway.errors import LaunchError
from streamway.launch.service import PipelineService, ScheduleRequest, ScheduleStatus, digest_of, same_values

logger = logging.getLogger("streamway.launch")

COMPLETED = "completed"


def create_schedule(service: PipelineService, request: ScheduleRequest, *, location: str) -> ScheduleStatus:
    """Make a schedule and prove that it is the one that was asked for; one that is there already is left alone.

    Args:
        service: Where.
        request: What.
        location: Region that its runs must be in.

    Raises:
        LaunchError: it would never fire, another schedule has this name, the service refuses, or what it made differs.
    """
    _check_end(request)
    there = [found for found in service.list_schedules() if found.name == request.name]
    if there:
        return _accept(there[0], request, location, service.place)
    schedule_id = service.create_schedule(request)
    found = service.find_schedule(schedule_id)
    wrong = _compare(request, found, location) if found else ["it cannot be found"]
    if found is not None and not wrong:
        return found
    service.delete_schedule(schedule_id)
    raise LaunchError(
        f"{service.place} made the schedule {request.name} other than it was asked to: {'; '.join(wrong)}. "
        "It has been deleted again.",
        next_step="Try again; if it stays so, create the schedule on the service's own page and report this to it.",
    )


def find_by_name(service: PipelineService, name: str) -> ScheduleStatus:
    """Return the schedule of a name, or of an id.

    Raises:
        LaunchError: there is none.
    """
    known = service.list_schedules()
    for found in known:
        if name in (found.name, found.id):
            return found
    names = ", ".join(sorted(found.name for found in known)) or "none at all"
    raise LaunchError(
        f"There is no schedule {name!r} in {service.place}; there are: {names}.",
        next_step="Choose one of them, or create it with `streamway schedule create`.",
    )


def _check_end(request: ScheduleRequest) -> None:
    """Refuse an end that is none, and one before the first time."""
    if not request.end:
        return
    end = _moment(request.end)
    if end is None:
        raise LaunchError(
            f"The end {request.end!r} of the schedule {request.name} is not a time; expected a date, a time and an "
            "offset, as in RFC 3339.",
            next_step="Write it like 2027-01-31T00:00:00Z or 2027-01-31T00:00:00+01:00.",
        )
    first = next(request.cron.upcoming(datetime.now(UTC), 1))
    if end < first:
        raise LaunchError(
            f"The schedule {request.name} would never fire: it ends at {request.end}, and its first time is "
            f"{first:%Y-%m-%d %H:%M} UTC.",
            next_step="Let it end later, or submit the run now.",
        )


def _moment(text: str) -> datetime | None:
    """Read a time of RFC 3339; None where it is none."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else None


def _accept(there: ScheduleStatus, request: ScheduleRequest, location: str, place: str) -> ScheduleStatus:
    differences = _compare(request, there, location)
    if differences:
        raise LaunchError(
            f"{place} has a schedule {request.name} already, and it differs: {'; '.join(differences)}.",
            next_step=f"Delete it with `streamway schedule delete CONFIG {there.name}`, or give yours another --name.",
        )
    if there.state == COMPLETED:
        raise LaunchError(
            f"{place} has this very schedule {request.name}, but it is completed: it starts nothing any more.",
            next_step=f"Delete it with `streamway schedule delete CONFIG {there.name}`, then create it again.",
        )
    logger.info("the schedule %s is there already, exactly as asked for", request.name)
    return there


def _compare(request: ScheduleRequest, found: ScheduleStatus, location: str) -> list[str]:
    """Name every difference between a schedule and what was asked for, what was asked for first."""
    run = request.run
    pairs: dict[str, tuple[Any, Any]] = {
        "the name": (request.name, found.name),
        "the cron expression": (request.cron.fields, found.cron),
        "the time zone": (request.cron.zone, found.time_zone),
        "the location": (location, found.location),
        "the service account": (run.service_account, found.service_account),
        "the network": (run.network, found.network),
        "the pipeline root": (run.pipeline_root, found.pipeline_root),
        "the runs at once": (request.most_at_once, found.most_at_once),
        "the compiled pipeline": (_digest_of_file(request), found.pipeline),
    }
    # What was left to the service (an empty service account, say) may be anything.
    wrong = {name: pair for name, pair in pairs.items() if pair[0] and pair[0] != pair[1]}
    differences = [f"{name} is {have!r}, not {want!r}" for name, (want, have) in wrong.items()]
    if request.end and _moment(request.end) != _moment(found.end):
        differences.append(f"the end is {found.end!r}, not {request.end!r}")
    return differences + _compare_parameters(run.parameters, found.parameters)


def _compare_parameters(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    differences = []
    for name in sorted({*wanted, *found}):
        if name not in found:
            differences.append(f"the parameter {name} is missing")
        elif name not in wanted:
            differences.append(f"the parameter {name} was not asked for")
        elif not same_values(wanted[name], found[name]):
            differences.append(f"the parameter {name} is {found[name]!r}, not {wanted[name]!r}")
    return differences


def _digest_of_file(request: ScheduleRequest) -> str:
    return digest_of(yaml.safe_load(request.run.pipeline_path.read_text(encoding="utf-8")))
