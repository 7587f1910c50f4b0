"""Fire times against an oracle that walks minute by minute (F48), missed fires, and ids of fires."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from dhara.domain.schedule import Cron, Timing, due, fire_id, jitter_of, zone_of

ZONES = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca", "Asia/Kathmandu", "UTC")
MINUTE = timedelta(minutes=1)
# F48 wants 10,000 in all, for a night: HYPOTHESIS_PROFILE=thorough.
CASES = 1_700 if os.environ.get("HYPOTHESIS_PROFILE") == "thorough" else 12


class Oracle:
    """What fires when, by looking at each minute that passes and at the wall clock it shows. Shares nothing with the
    code under test: its own parser, its own walk."""

    def __init__(self, expression: str, zone: ZoneInfo) -> None:
        self.fields = expression.split()
        self.zone = zone
        self.fixed = not self.fields[0].startswith("*") and not self.fields[1].startswith("*")
        ranges = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
        self.sets = [self._values(f, low, high) for f, (low, high) in zip(self.fields, ranges, strict=True)]

    @staticmethod
    def _values(field: str, low: int, high: int) -> set[int]:
        found: set[int] = set()
        for part in field.split(","):
            span, _, step = part.partition("/")
            first, _, last = span.partition("-")
            begin = low if first == "*" else int(first)
            end = high if first == "*" or (step and not last) else int(last or first)
            found |= set(range(begin, end + 1, int(step or 1)))
        return found

    def fits(self, wall: datetime) -> bool:
        minute, hour, day, month, weekday = self.sets
        by_day, by_weekday = wall.day in day, bool({wall.isoweekday(), wall.isoweekday() % 7} & weekday)
        either = self.fields[2].startswith("*") or self.fields[4].startswith("*")
        days = by_day and by_weekday if either else by_day or by_weekday
        return wall.minute in minute and wall.hour in hour and wall.month in month and days

    def fires(self, start: datetime, end: datetime) -> Iterator[datetime]:
        """Later than `start`, up to `end`; the walk begins a day before, so that it knows which walls were seen."""
        at = start.replace(second=0, microsecond=0) - timedelta(days=1)
        expected = at.astimezone(self.zone).replace(tzinfo=None)
        while at <= end:
            wall = at.astimezone(self.zone).replace(tzinfo=None)
            if self.fixed:
                # The clocks went forward: whatever they skipped is due now. Back: what was seen is not due again.
                hit = False
                while expected <= wall:
                    hit |= self.fits(expected)
                    expected += MINUTE
            else:
                hit = self.fits(wall)
            if hit and at > start:
                yield at
            at += MINUTE


def expression(rng: random.Random) -> str:
    def field(low: int, high: int) -> str:
        a, b = sorted(rng.sample(range(low, high + 1), 2))
        return rng.choice(["*", "*", f"*/{rng.randint(2, 7)}", str(a), f"{a},{b}", f"{a}-{b}", f"{a}-{b}/2", f"{a}/3"])

    hour = rng.choice([field(0, 23), field(0, 4), rng.choice(["2", "1", "3", "1-3"])])
    days = rng.choice(["* * *"] * 3 + [f"{field(1, 28)} * *", f"* * {field(0, 7)}", f"{field(1, 28)} * {field(0, 6)}"])
    return f"{field(0, 59)} {hour} {days}"


@cache
def transitions(year: int, zone: ZoneInfo) -> list[datetime]:
    """Midnights before a change of the clocks."""
    days = [datetime(year, 1, 1, tzinfo=UTC) + timedelta(days=n) for n in range(366)]
    return [a for a, b in pairwise(days) if a.astimezone(zone).utcoffset() != b.astimezone(zone).utcoffset()]


def near_a_transition(rng: random.Random, zone: ZoneInfo) -> datetime:
    """An instant within a day of a change of the clocks, if the zone has any; else any."""
    year = rng.randint(2000, 2035)
    changes = transitions(year, zone)
    at = rng.choice(changes) if changes else datetime(year, 1, 1, tzinfo=UTC) + timedelta(days=rng.randrange(365))
    return at + timedelta(minutes=rng.randrange(-720, 2_160), seconds=rng.choice([0, 0, 7]))


@pytest.mark.parametrize("name", ZONES)
def test_fires_are_the_oracles(name: str) -> None:
    rng, zone = random.Random(name), ZoneInfo(name)
    for _ in range(CASES):
        text, start = expression(rng), near_a_transition(rng, zone)
        end = start + timedelta(hours=36)
        wanted = list(Oracle(text, zone).fires(start, end))
        cron, found = Cron(text), []
        at = cron.after(start, zone)
        while at is not None and at <= end:
            found.append(at)
            at = cron.after(at, zone)
        assert found == wanted, (text, name, start)
        if wanted:
            # Asked from anywhere, also from within an overlap's second pass, the answer is the next one.
            between = start + (end - start) * rng.random()
            assert cron.after(between, zone) == next((f for f in wanted if f > between), cron.after(wanted[-1], zone))


@pytest.mark.parametrize(
    "text, zone, start, wanted",
    [
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00Z", ["2026-03-29T01:00Z", "2026-03-30T00:30Z"]),
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00Z", ["2026-10-25T00:30Z", "2026-10-26T01:30Z"]),
        ("*/30 2 * * *", "Europe/Berlin", "2026-03-28T12:00Z", ["2026-03-30T00:00Z", "2026-03-30T00:30Z"]),
        (
            "*/30 2 * * *",
            "Europe/Berlin",
            "2026-10-24T12:00Z",
            ["2026-10-25T00:00Z", "2026-10-25T00:30Z", "2026-10-25T01:00Z"],
        ),
        ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T10:00Z", ["2026-10-03T15:30Z", "2026-10-04T15:15Z"]),
        ("0 0 29 2 *", "UTC", "2026-01-01T00:00Z", ["2028-02-29T00:00Z", "2032-02-29T00:00Z"]),
        ("@daily", "Asia/Kathmandu", "2026-01-01T00:00Z", ["2026-01-01T18:15Z"]),
        ("0 9 * * MON-FRI", "America/New_York", "2026-01-02T15:00Z", ["2026-01-05T14:00Z"]),
    ],
)
def test_days_that_the_calendar_knows(text: str, zone: str, start: str, wanted: list[str]) -> None:
    timing = Timing(cron=text, timezone=zone)
    assert timing.upcoming(moment(start), len(wanted)) == [moment(at) for at in wanted]


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


@pytest.mark.parametrize(
    "text",
    ["", "* * * *", "* * * * * *", "60 * * * *", "* * 0 * *", "0 0 30 2 *", "a b c d e", "*/0 * * * *", "1" * 300],
)
def test_bad_expressions_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a cron expression"):
        Cron(text)


@pytest.mark.parametrize("name", ["", "Mars/Olympus", "../etc/passwd", "Europe", "x" * 500, "a\x00b"])
def test_bad_zones_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="IANA"):
        zone_of(name)


NOW = moment("2026-06-01T12:30:00Z")
HOURLY = Timing(cron="0 * * * *")


def hours(*numbers: int) -> list[datetime]:
    return [datetime(2026, 6, 1, 12, tzinfo=UTC) - timedelta(hours=n) for n in numbers]


NEXT = hours(-1)[0]


def test_26_hours_down() -> None:
    """F50: each policy exact."""
    first = hours(25)[0]
    found = {policy: due(HOURLY, first, NOW, policy, 100) for policy in ("coalesce", "skip", "catch_up")}
    assert (found["coalesce"].fire, found["coalesce"].missed) == (hours(0), [])
    assert (found["skip"].fire, found["skip"].missed) == ([], hours(0))
    assert (found["catch_up"].fire, found["catch_up"].missed) == (hours(*range(25, -1, -1)), [])
    assert {one.next for one in found.values()} == {NEXT}
    assert due(HOURLY, first, NOW, "catch_up", 3).fire == hours(2, 1, 0)


@pytest.mark.parametrize("policy", ["coalesce", "skip", "catch_up"])
def test_what_is_on_time_is_fired_whatever_the_policy(policy: str) -> None:
    found = due(HOURLY, hours(0)[0], hours(0)[0] + timedelta(seconds=59), policy, 10)
    assert (found.fire, found.missed, found.next) == (hours(0), [], NEXT)
    assert due(HOURLY, NEXT, NOW, policy, 10) == due(HOURLY, NEXT, NOW, "skip", 10)
    assert due(HOURLY, NEXT, NOW, policy, 10).fire == []


def test_every_counts_from_its_anchor() -> None:
    every = Timing(every=90, anchor=hours(3)[0])
    assert every.after(hours(3)[0]) == hours(3)[0] + timedelta(seconds=90)
    assert every.after(hours(4)[0]) == hours(3)[0] + timedelta(seconds=90)
    at = every.after(NOW)
    assert at is not None
    assert ((at - hours(3)[0]).total_seconds() % 90, 0 < (at - NOW).total_seconds() <= 90) == (0, True)
    found = due(every, hours(3)[0] + timedelta(seconds=90), NOW, "catch_up", 4)
    assert [(b - a).total_seconds() for a, b in pairwise(found.fire)] == [90, 90, 90]
    assert found.fire[-1] <= NOW < found.fire[-1] + timedelta(seconds=90) == found.next
    assert len(due(every, hours(3)[0] + timedelta(seconds=90), NOW, "coalesce", 4).fire) == 1


def test_a_year_of_minutes_is_no_years_walk() -> None:
    found = due(Timing(cron="* * * * *"), NOW - timedelta(days=365), NOW, "catch_up", 1_000)
    assert (len(found.fire), found.fire[-1]) == (1_000, NOW)


def test_the_same_fire_has_the_same_id_and_jitter() -> None:
    one, other = hours(1, 2)
    assert fire_id("a", one) == fire_id("a", one.astimezone(ZoneInfo("Asia/Tokyo")))
    ids = {fire_id(name, at) for name in ("a", "b") for at in (one, other)}
    assert len(ids) == 4
    assert all((id.version, id.variant) == (7, UUID(int=0x8 << 60).variant) for id in ids)
    assert fire_id("a", one).int >> 80 == int(one.timestamp() * 1000)
    spread = [jitter_of("a", NOW + timedelta(minutes=n), 30) for n in range(200)]
    assert all(0 <= seconds <= 30 for seconds in spread)
    assert 12 < sum(spread) / 200 < 18
    assert jitter_of("a", one, 0) == 0
