"""When a schedule fires: cron expressions with time zones, read the way that Vertex AI and Kubeflow read them.

Both services take a wrong expression for what it is, or fire at an hour that nobody meant. So an expression is
checked, and its next times are shown, before it is sent; and the sandbox fires by the same rules.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from streamway.errors import LaunchError

_ZONE = re.compile(r"^(?:CRON_)?TZ=(?P<zone>\S+)\s+(?P<rest>.*)$")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_SEARCH_YEARS = 9
"""29 February is at most eight years away (2096 to 2104)."""


@dataclass(frozen=True, kw_only=True)
class _Field:
    name: str
    lowest: int
    highest: int
    names: tuple[str, ...] = ()
    first_name: int = 0


_SECOND = _Field(name="second", lowest=0, highest=59)
_FIELDS = (
    _Field(name="minute", lowest=0, highest=59),
    _Field(name="hour", lowest=0, highest=23),
    _Field(name="day of month", lowest=1, highest=31),
    _Field(name="month", lowest=1, highest=12, names=_MONTHS, first_name=1),
    # 7 is Sunday too.
    _Field(name="day of week", lowest=0, highest=7, names=_WEEKDAYS),
)


@dataclass(frozen=True, kw_only=True)
class Cron:
    """A set of times.

    A local time that a change of clocks leaves out does not fire, and one that comes twice fires twice, as in the
    Go library that both services use (https://pkg.go.dev/github.com/robfig/cron, "Time zones").

    Args:
        zone: IANA name of the time zone.
        fields: The five fields as they were written, with single spaces.
        seconds: Seconds of the minute at which it fires.
        minutes: Minutes of the hour.
        hours: Hours of the day.
        days: Days of the month.
        months: Months.
        weekdays: Days of the week; 0 is Sunday.
        any_day: Whether the day of the month was left open.
        any_weekday: Whether the day of the week was left open.
    """

    zone: str
    fields: str
    seconds: frozenset[int]
    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    any_day: bool
    any_weekday: bool

    @classmethod
    def parse(cls, expression: str, *, zone: str = "") -> Self:
        """Read `minute hour day month weekday`, with seconds before them where there are six fields.

        Args:
            expression: The fields; `TZ=Zone` or `CRON_TZ=Zone` may come before them.
            zone: The time zone where the expression names none; empty means UTC.

        Raises:
            LaunchError: a field or the time zone is wrong, or the times never come.
        """
        match = _ZONE.match(expression.strip())
        rest = match["rest"] if match else expression
        zone = match["zone"] if match else zone or "UTC"
        _find_zone(zone)
        texts = rest.split()
        if len(texts) not in (5, 6):
            raise _wrong(expression, f"it has {len(texts)} fields, expected five: minute hour day month weekday")
        seconds = _parse_field(texts.pop(0), _SECOND, expression) if len(texts) == 6 else frozenset({0})
        minutes, hours, days, months, weekdays = (
            _parse_field(text, field, expression) for text, field in zip(texts, _FIELDS, strict=True)
        )
        cron = cls(
            zone=zone,
            fields=" ".join(texts),
            seconds=seconds,
            minutes=minutes,
            hours=hours,
            days=days,
            months=months,
            weekdays=frozenset(day % 7 for day in weekdays),
            any_day=texts[2][0] in "*?",
            any_weekday=texts[4][0] in "*?",
        )
        if cron.next_after(datetime(2000, 1, 1, tzinfo=UTC)) is None:
            raise _wrong(expression, "no date ever matches it")
        return cron

    def __str__(self) -> str:
        """The expression with its time zone, as Vertex AI takes it."""
        return f"TZ={self.zone} {self.fields}"

    def next_after(self, moment: datetime) -> datetime | None:
        """Return the first time after `moment`, in UTC; None where none comes within nine years."""
        zone = ZoneInfo(self.zone)
        at = moment.astimezone(UTC).replace(microsecond=0) + timedelta(seconds=1)
        last = at.year + _SEARCH_YEARS
        while at.year <= last:
            later = self._skip(at, zone)
            if later is None:
                return at
            at = later
        return None

    def upcoming(self, moment: datetime, count: int) -> Iterator[datetime]:
        """Yield the next `count` times after `moment`."""
        at: datetime | None = moment
        for _ in range(count):
            at = self.next_after(at) if at else None
            if at is None:
                return
            yield at

    def _skip(self, at: datetime, zone: ZoneInfo) -> datetime | None:
        """Return a later time before which nothing matches; None where `at` itself does."""
        local = at.astimezone(zone)
        if local.month not in self.months:
            year, month = (local.year + 1, 1) if local.month == 12 else (local.year, local.month + 1)
            return _not_before(at, datetime(year, month, 1, tzinfo=zone))
        if not self._matches_day(local):
            following = local.date() + timedelta(days=1)
            return _not_before(at, datetime(following.year, following.month, following.day, tzinfo=zone))
        if local.hour not in self.hours:
            return at + timedelta(seconds=3600 - local.minute * 60 - local.second)
        if local.minute not in self.minutes:
            return at + timedelta(seconds=60 - local.second)
        return None if local.second in self.seconds else at + timedelta(seconds=1)

    def _matches_day(self, local: datetime) -> bool:
        by_day, by_weekday = local.day in self.days, local.isoweekday() % 7 in self.weekdays
        # Where both are given, either is enough: crontab(5).
        if self.any_day or self.any_weekday:
            return by_day and by_weekday
        return by_day or by_weekday


def _not_before(at: datetime, local_midnight: datetime) -> datetime:
    return max(local_midnight.astimezone(UTC), at + timedelta(seconds=1))


def _parse_field(text: str, field: _Field, expression: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        span, slash, step_text = part.partition("/")
        step = _number(step_text, field, expression) if slash else 1
        if step < 1:
            raise _wrong(expression, f"the {field.name} has the step {step_text!r}, expected 1 or more")
        if span in ("*", "?"):
            low, high = field.lowest, field.highest
        else:
            first, dash, last = span.partition("-")
            low = _number(first, field, expression)
            # `5/10` means from 5 on, in steps of 10.
            high = _number(last, field, expression) if dash else field.highest if slash else low
        if not field.lowest <= low <= high <= field.highest:
            raise _wrong(
                expression, f"the {field.name} has {span!r}, expected {field.lowest} to {field.highest} in order"
            )
        found.update(range(low, high + 1, step))
    return frozenset(found)


def _number(text: str, field: _Field, expression: str) -> int:
    if text.lower() in field.names:
        return field.names.index(text.lower()) + field.first_name
    if not (text.isascii() and text.isdigit()):
        raise _wrong(expression, f"the {field.name} has {text!r}, expected a number, '*', a range or a list")
    return int(text)


def _find_zone(name: str) -> None:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise LaunchError(
            f"There is no time zone {name!r}.", next_step="Use a name of the IANA database, such as Europe/Berlin."
        ) from error


def _wrong(expression: str, problem: str) -> LaunchError:
    return LaunchError(
        f"The schedule {expression!r} is not a cron expression: {problem}.",
        next_step="Write it like `30 4 * * mon-fri`: minute, hour, day of month, month, day of week.",
    )
