"""Schedules: from an expression to fire times, and from fire times to what is enqueued. Pure; time is an argument.

Daylight saving, as Debian's cron has it, by what the expression says:

    fixed times      neither the minute nor the hour field begins with `*`: once a day means once a day. A time that the
                     clocks skip is fired at the first instant after the gap; one that comes twice is fired the first time.
    elapsed time     one of the two begins with `*`: every such minute that comes is fired, and none that does not.

Expressions are parsed by cronsim; the walk is this module's own, because cronsim's does not get past transitions of half
an hour (Lord Howe), and starts again where it should not after an instant in the second pass of an overlap.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from msgspec import Struct

MISSED = ("coalesce", "skip", "catch_up")
OVERLAP = ("allow", "skip", "cancel_previous")
EVERY_SECONDS = (1.0, 366 * 86_400.0)
JITTER_SECONDS = (0.0, 86_400.0)
CATCH_UP = (1, 1_000)
CRON_LENGTH = 200
# A fire no later than this is on time, whatever the policy for missed ones.
GRACE = 60.0

_MACROS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_MINUTE, _QUARTER, _DAY = timedelta(minutes=1), timedelta(minutes=15), timedelta(days=1)
_YEARS = 28  # after so many the days of the week fall on the same dates again


class Cron:
    """A parsed expression of five fields. Raises `ValueError` saying what is wrong with it."""

    def __init__(self, expression: str) -> None:
        text = _MACROS.get(expression.strip().lower(), expression)
        fields = text.split()
        if len(text) > CRON_LENGTH or len(fields) != 5:
            raise ValueError("a cron expression of five fields, such as `0 3 * * *`: minute, hour, day, month, weekday")
        try:
            # Its own walk is not used; a naive time keeps its constructor from thinking about zones.
            self._parsed = CronSim(text, datetime(2000, 1, 1))  # noqa: DTZ001
        except (CronSimError, ValueError, OverflowError) as error:
            raise ValueError(f"a cron expression: {error} in `{expression[:CRON_LENGTH]}`") from None
        self.elapsed = fields[0].startswith("*") or fields[1].startswith("*")
        self._minutes = sorted(self._parsed.minutes)
        self._hours = sorted(self._parsed.hours)

    def after(self, moment: datetime, zone: ZoneInfo) -> datetime | None:
        """The first fire time later than `moment`, in UTC; None: there is none within 28 years."""
        start = moment.astimezone(UTC)
        # A day earlier: what a gap at midnight has skipped is fired on the day after.
        for day in self._days(start.astimezone(zone).date() - _DAY):
            for at in self._elapsed(day, zone, start) if self.elapsed else self._fixed(day, zone):
                if at > start:
                    return at
        return None

    def _days(self, first: date) -> Iterator[date]:
        """The days that the expression's last three fields allow."""
        day = first
        for _ in range(_YEARS * 366):
            if day.month in self._parsed.months and self._parsed.match_day(day):
                yield day
            try:
                day += _DAY
            except OverflowError:
                return

    def _fixed(self, day: date, zone: ZoneInfo) -> Iterator[datetime]:
        for hour in self._hours:
            for minute in self._minutes:
                wall = datetime(day.year, day.month, day.day, hour, minute, tzinfo=zone)
                while not _exists(wall):
                    wall += _MINUTE
                yield wall.astimezone(UTC)

    def _elapsed(self, day: date, zone: ZoneInfo, after: datetime) -> Iterator[datetime]:
        """Every minute of the day that comes and fits. Zones change at quarters of an hour, so hours are looked at by those."""
        at = datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC) - timedelta(hours=4)
        end = at + timedelta(hours=36)
        if after > at:
            at += (after - at) // _QUARTER * _QUARTER
        while at < end:
            local = at.astimezone(zone)
            if local.date() == day and local.hour in self._parsed.hours:
                for minutes in range(15):
                    if (local.minute + minutes) % 60 in self._parsed.minutes:
                        yield at + minutes * _MINUTE
            at += _QUARTER


def _exists(wall: datetime) -> bool:
    return wall.replace(tzinfo=None) == wall.astimezone(UTC).astimezone(wall.tzinfo).replace(tzinfo=None)


@lru_cache(maxsize=512)
def cron_of(expression: str) -> Cron:
    """`expression`, parsed. Raises `ValueError`."""
    return Cron(expression)


def zone_of(name: str) -> ZoneInfo:
    """The IANA zone of that name. Raises `ValueError`."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"an IANA time zone such as Europe/Berlin, not {name[:100]!r}") from None


class Timing(Struct, frozen=True, kw_only=True):
    """When a schedule fires: by `cron` in `timezone`, or `every` so many seconds from `anchor`."""

    cron: str | None = None
    every: float | None = None
    timezone: str = "UTC"
    anchor: datetime | None = None

    def after(self, moment: datetime) -> datetime | None:
        """The first fire time later than `moment`; None: there is none."""
        if self.cron is not None:
            return cron_of(self.cron).after(moment, zone_of(self.timezone))
        assert self.every is not None
        assert self.anchor is not None
        step = timedelta(seconds=self.every)
        fires = (moment - self.anchor) // step + 1
        return self.anchor + max(1, fires) * step

    def upcoming(self, moment: datetime, most: int) -> list[datetime]:
        """The next `most` fire times after `moment`."""
        found: list[datetime] = []
        at: datetime | None = moment
        while len(found) < most and at is not None and (at := self.after(at)) is not None:
            found.append(at)
        return found


class Due(Struct, frozen=True):
    """What is to be done about fire times that have come: `fire` these, note these as `missed`, and look again at `next`."""

    fire: list[datetime]
    missed: list[datetime]
    next: datetime | None


def due(timing: Timing, first: datetime, now: datetime, missed: str, most: int) -> Due:
    """What has come between `first`, the fire time that was expected, and `now`.

    `missed` is the policy for all but what is on time: `coalesce`: one fire stands for all, at the latest of their times;
    `skip`: none; `catch_up`: each, the latest `most` of them. The looks at the past are bounded by `most` too.
    """
    came, following = _came(timing, first, now, max(most, 1) if missed == "catch_up" else 1)
    late = [at for at in came if (now - at).total_seconds() > GRACE]
    if missed == "skip":
        on_time = [at for at in came if at not in late]
        return Due(on_time, late, following)
    return Due(came, [], following)


def _came(timing: Timing, first: datetime, now: datetime, most: int) -> tuple[list[datetime], datetime | None]:
    """The last `most` fire times from `first` to `now`, and the one after `now`."""
    if timing.every is not None:
        return _came_every(timing, first, now, most)
    # From the end, so that a year's outage of a minutely schedule costs no year's walk.
    window, before = timedelta(hours=1), first - timedelta(microseconds=1)
    while True:
        start = max(before, now - window)
        came: list[datetime] = []
        at = timing.after(start)
        while at is not None and at <= now:
            came.append(at)
            at = timing.after(at)
        if len(came) >= most or start == before:
            return came[-most:], at
        window *= 4


def _came_every(timing: Timing, first: datetime, now: datetime, most: int) -> tuple[list[datetime], datetime | None]:
    assert timing.every is not None
    step = timedelta(seconds=timing.every)
    fires = (now - first) // step if now >= first else -1
    came = [first + n * step for n in range(max(0, fires - most + 1), fires + 1)]
    return came, first + (fires + 1) * step


def fire_id(name: str, at: datetime) -> UUID:
    """The id of the task of one fire: the same whoever makes it, a UUIDv7 of the fire time."""
    digest = hashlib.sha256(f"{name}\0{at.astimezone(UTC).isoformat()}".encode()).digest()
    ms = int(at.timestamp() * 1000) & ((1 << 48) - 1)
    tail = int.from_bytes(digest[:10], "big")
    rand_a, rand_b = tail >> 62 & 0xFFF, tail & ((1 << 62) - 1)
    return UUID(int=ms << 80 | 0x7 << 76 | rand_a << 64 | 0b10 << 62 | rand_b)


def jitter_of(name: str, at: datetime, most: float) -> float:
    """Seconds from 0 to `most` by which the task of this fire is put off, the same whoever asks."""
    return (fire_id(name, at).int & 0xFFFFFFFF) / 2**32 * most


class Spec(Struct, frozen=True, kw_only=True):
    """A schedule as it is defined: when (`cron` in `timezone`, or `every` so many seconds), what it enqueues, and what to do
    about missed fires and about a task that still runs. `payload` is JSON text; `jitter` and `timeout` are seconds."""

    name: str
    type: str
    cron: str | None = None
    every: float | None = None
    timezone: str = "UTC"
    payload: str = "{}"
    queue: str = "default"
    priority: int = 0
    max_retries: int = 5
    timeout: float | None = None
    jitter: float = 0.0
    missed: str = "coalesce"
    overlap: str = "allow"
    catch_up_most: int = 100

    def timing(self, anchor: datetime) -> Timing:
        """When it fires; `every` counts from `anchor`."""
        return Timing(cron=self.cron, every=self.every, timezone=self.timezone, anchor=anchor)
