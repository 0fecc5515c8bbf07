"""A schedule fires when a person who wrote it would expect, in the time zone that they meant."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamway.cron import Cron
from streamway.errors import LaunchError


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("expression", "after", "first"),
    [
        ("* * * * *", "2026-11-22T10:00:30", "2026-11-22T10:01:00"),
        ("* * * * *", "2026-11-22T10:00:00", "2026-11-22T10:01:00"),
        ("30 4 * * *", "2026-11-22T04:30:00", "2026-11-23T04:30:00"),
        ("*/15 * * * *", "2026-11-22T10:16:00", "2026-11-22T10:30:00"),
        ("5/20 * * * *", "2026-11-22T10:26:00", "2026-11-22T10:45:00"),
        ("0 0 1 1 *", "2026-11-22T00:00:00", "2027-01-01T00:00:00"),
        ("0 9 * * mon-fri", "2026-11-20T09:00:00", "2026-11-23T09:00:00"),
        ("0 9 * * 7", "2026-11-16T09:00:00", "2026-11-22T09:00:00"),
        ("0 0 29 2 *", "2096-03-01T00:00:00", "2104-02-29T00:00:00"),
        ("0 0 13 * fri", "2026-11-07T00:00:00", "2026-11-13T00:00:00"),
        ("0 0 1 * fri", "2026-11-03T00:00:00", "2026-11-06T00:00:00"),
        ("0 12 ? DEC ?", "2026-11-22T00:00:00", "2026-12-01T12:00:00"),
        ("1,2,50-52 * * * *", "2026-11-22T10:02:00", "2026-11-22T10:50:00"),
        ("30 0 4 * * *", "2026-11-22T04:00:00", "2026-11-22T04:00:30"),
        ("TZ=America/New_York 0 9 * * *", "2026-11-22T00:00:00", "2026-11-22T14:00:00"),
        ("CRON_TZ=Asia/Kolkata 0 0 * * *", "2026-11-22T00:00:00", "2026-11-22T18:30:00"),
    ],
)
def test_the_next_time_is_the_first_that_matches(expression: str, after: str, first: str) -> None:
    assert Cron.parse(expression).next_after(at(after)) == at(first)


def test_a_daily_time_follows_the_clocks_of_its_zone() -> None:
    cron = Cron.parse("0 9 * * *", zone="Europe/Berlin")
    times = list(cron.upcoming(at("2026-10-23T12:00:00"), 3))
    assert [time.hour for time in times] == [7, 8, 8]


def test_a_time_that_the_clocks_leave_out_does_not_fire() -> None:
    cron = Cron.parse("30 2 * * *", zone="Europe/Berlin")
    assert cron.next_after(at("2026-03-28T12:00:00")) == at("2026-03-30T00:30:00")


def test_a_zone_of_the_expression_comes_before_the_given_one() -> None:
    assert str(Cron.parse("TZ=Asia/Tokyo 0 9 * * *", zone="UTC")) == "TZ=Asia/Tokyo 0 9 * * *"
    assert str(Cron.parse(" 0   9 * * * ", zone="Asia/Tokyo")) == "TZ=Asia/Tokyo 0 9 * * *"


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("* * * *", "4 fields"),
        ("60 * * * *", "minute has '60', expected 0 to 59"),
        ("* 5-2 * * *", "hour has '5-2'"),
        ("* * 0 * *", "day of month has '0'"),
        ("* * * foo *", "month has 'foo'"),
        ("*/0 * * * *", "step '0'"),
        ("* * * * -1", "day of week has ''"),
        ("0 0 31 2 *", "no date ever matches"),
        ("@daily", "1 fields"),
        ("", "0 fields"),
        ("\u0661 * * * *", "minute has"),
    ],
)
def test_a_wrong_expression_says_which_field(expression: str, problem: str) -> None:
    with pytest.raises(LaunchError, match=problem):
        Cron.parse(expression)


@pytest.mark.parametrize("zone", ["Europe/Berln", "../../etc/passwd", "Not a zone"])
def test_an_unknown_time_zone_is_named(zone: str) -> None:
    with pytest.raises(LaunchError, match="There is no time zone"):
        Cron.parse("* * * * *", zone=zone)


@settings(deadline=None, max_examples=60)
@given(
    minute=st.sampled_from(["*", "0", "*/7", "5,55"]),
    hour=st.sampled_from(["*", "3", "2-4", "*/5"]),
    weekday=st.sampled_from(["*", "1", "sat-sat", "0,3"]),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns", "Pacific/Chatham", "America/Sao_Paulo"]),
    start=st.datetimes(min_value=datetime(2018, 1, 1), max_value=datetime(2030, 1, 1)),
)
def test_nothing_that_matches_is_passed_over(minute: str, hour: str, weekday: str, zone: str, start: datetime) -> None:
    cron = Cron.parse(f"{minute} {hour} * * {weekday}", zone=zone)
    begin = start.replace(second=0, microsecond=0, tzinfo=UTC)
    found = cron.next_after(begin)
    assert found is not None and found > begin

    def matches(moment: datetime) -> bool:
        local = moment.astimezone(ZoneInfo(zone))
        in_day = local.isoweekday() % 7 in cron.weekdays
        return local.minute in cron.minutes and local.hour in cron.hours and in_day

    assert matches(found)
    step = begin + timedelta(minutes=1)
    while step < min(found, begin + timedelta(days=2)):
        assert not matches(step)
        step += timedelta(minutes=1)
