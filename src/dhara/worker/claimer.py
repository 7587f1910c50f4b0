"""The claimer: asks for as many tasks as can start soon, woken or polling.

    woken          -> claim from the known lanes; if that gives nothing, scan for new ones
    busy           -> claim every PACE by itself, and say that nobody need wake it, until there is nothing to claim
    claim is full  -> claim again as soon as there is room
    claim is short -> scan (if the last scan is long enough ago), else wait to be woken
    no own slot    -> a queue with slots of its own had more than those took: claim again when a slot is free
    nothing heard  -> after the poll interval, or when the next delayed task is due: scan, and claim if it found any; where
                      scans are dear, claim from the known lanes instead

The scan's share of the time is bounded: after two that took at least t, the next comes no sooner than 20 t, so that it costs
little even where dead index entries make it slow: each worker of a fleet scans, and a snapshot that is held for ten minutes
leaves an entry of each task since. Where nothing could be claimed, it waits for SCAN_EVERY at most, and for less than the poll
interval when a hint told of a queue that is not known. The same share holds for claims from the front of the lanes, where there
may be a long backlog of tasks that this worker does not know; but only up to FRONT_EVERY, since what made one slow may have been
the database, and something may have come to lie below the marks.
Where such a claim does not even come to its end, the lane is walked in slices (`passes`), which get a tenth of the time.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from uuid import UUID

import asyncpg

from dhara.domain.task import Claim
from dhara.service import Service
from dhara.store.tasks import BEGINNING, Tasks, Watermark
from dhara.worker.lanes import Lanes
from dhara.worker.passes import Passes

log = logging.getLogger(__name__)

MOST = 1_000
SCAN_EVERY = 5.0
SCAN_SHARE = 20
CHEAP_SCAN = 0.005
CHEAP_FRONT = 0.05
# Where a queue is not known yet, a scan is worth its cost after so much of the poll interval.
URGENT = 0.8
FRONT_EVERY = 15.0
PASS_SHARE, LONGEST_REST = 10, 5.0
# With this share of known types, a claim gets on by itself.
WORTHWHILE = 0.05
# Seconds from one claim to the next of a worker that is busy; busy is one whose last claims found several tasks each.
PACE = 0.003
BUSY_CLAIMS, BUSY_WITHIN = 3, 0.05
IDLE_CLAIMS = 2
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0


class Claimer(Service):
    """Claims for one worker. `room()` says how many tasks may come, `rooms()` how many of each queue."""

    def __init__(
        self,
        *,
        tasks: Tasks,
        worker: UUID,
        types: list[str],
        queues: Mapping[str, int],
        poll_interval: float,
        room: Callable[[], int],
        rooms: Callable[[], Mapping[str, int]],
        deliver: Callable[[list[Claim]], None],
        rng: random.Random,
        clock: Callable[[], float] = time.monotonic,
        observe: Callable[[str, int, float], None] = lambda name, tasks, seconds: None,
        rest: Callable[[bool], None] = lambda asleep: None,
    ) -> None:
        super().__init__()
        self._tasks = tasks
        self._worker = worker
        self._types = types
        self._lanes = Lanes(queues)
        self._passes = Passes()
        self._next_step = float("-inf")
        self._poll_interval = poll_interval
        self._room = room
        self._rooms = rooms
        self._deliver = deliver
        self._rng = rng
        self._clock = clock
        self._observe = observe
        self._rest = rest
        self._busy = False
        self._streak = 0
        self._last_got = float("-inf")
        self._news = asyncio.Event()
        self._roomy = asyncio.Event()
        self._woken = True
        self._strangers: set[str] = set()  # queues that hints told of and no scan has found yet
        self._absent: set[str] = set()  # of these, those that the last scan did not find: others were faster
        self._last_scan = float("-inf")
        self._scan_costs = (0.0, 0.0)
        self._scanned_at = BEGINNING
        self._last_front = float("-inf")
        self._front_cost = 0.0
        self._next_due = float("inf")
        self._held_back = False
        self._freed = False
        self._asked: float | None = None
        self._unanswered = float("-inf")
        self._last_claim = self._clock()

    @property
    def in_flight(self) -> bool:
        """True while a claim is under way."""
        return self._asked is not None

    def asking(self) -> float:
        """Seconds that the claim that is under way has been so; 0 if there is none."""
        return 0.0 if self._asked is None else self._clock() - self._asked

    def quiet_for(self) -> float:
        """Seconds since a claim was under way."""
        return 0.0 if self._asked is not None else self._clock() - self._last_claim

    def unanswered_for(self) -> float:
        """Seconds since a claim ended without an answer, which may have taken tasks all the same."""
        return self._clock() - self._unanswered

    def wake(self, queue: str) -> None:
        """A hint that `queue` (empty: any) has a ready task."""
        if not queue or self._lanes.serves(queue):
            if queue and queue not in self._absent and not self._lanes.knows(queue):
                self._strangers.add(queue)
            self._hint()

    def _hint(self) -> None:
        self._woken = True
        self._news.set()

    def expect(self, seconds: float) -> None:
        """A hint that a task is due in `seconds`: before the next poll, a look at the lanes says when exactly."""
        if seconds < self._poll_interval:
            self._news.set()

    def freed(self) -> None:
        """A hint that there is room again."""
        self._freed = True
        if not self._roomy.is_set():
            self._roomy.set()
        if self._held_back:
            self._hint()

    async def run(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            try:
                await self._round()
                if pause > _FIRST_PAUSE:
                    log.info("claiming works again")
                pause = _FIRST_PAUSE
            except Exception as error:
                # Once at warning, then quietly: an outage of a minute must not fill the log.
                level = logging.WARNING if pause == _FIRST_PAUSE else logging.DEBUG
                log.log(level, "claiming failed, trying again in about %.1f s: %s", pause, error)
                await asyncio.sleep(pause * self._rng.uniform(0.5, 1.5))
                pause = min(_LONGEST_PAUSE, pause * 2)
                self._woken = True

    async def _round(self) -> None:
        room = min(self._room(), MOST)
        if room <= 0:
            self._roomy.clear()
            if self._room() <= 0:
                with suppress(TimeoutError):  # room may also come without an attempt that ends
                    async with asyncio.timeout(self._poll_interval):
                        await self._roomy.wait()
            return
        if self._passes and self._clock() >= self._next_step:
            await self._step(room)
            room = min(self._room(), MOST)
            if room <= 0:
                return
        woken, self._woken = self._woken or self._busy, False
        self._news.clear()
        start = self._clock()
        got = await self._claim(room) if woken and len(self._lanes) else 0
        if got == room and not self._may_scan(urgently=False, least=SCAN_EVERY):
            self._woken = True  # a full claim: there is likely more
            return
        if self._may_scan(urgently=not got):
            if await self._scan() and await self._claim_found():
                return
        elif not got:
            if not woken and len(self._lanes) and await self._claim(room):
                self._woken = True
                return
            # What was due has been asked for. Not before a scan is allowed, or this would spin until then.
            allowed = self._last_scan + self._scan_rest(urgently=True)
            self._next_due = min(self._next_due, allowed) if self._next_due > start else allowed
        await self._wait()

    async def _claim_found(self) -> bool:
        """Claim after a scan that found ready tasks. True if there is more to do than to wait."""
        room = min(self._room(), MOST)
        if room <= 0:
            self._woken = True  # as soon as there is some
            return True
        self._woken = False
        if not await self._claim(room):
            return False  # of unknown types, in paused queues, or others were faster
        self._woken = True
        return True

    async def _claim(self, most: int) -> int:
        rooms, self._freed = self._rooms(), False
        lanes = self._lanes.known(rooms, most)
        claims: list[Claim] = []
        if lanes:
            start = self._clock()
            front = any(lane.run_at == BEGINNING for lane in lanes)
            try:
                claims = await self._ask(most, lanes)
                self._lanes.passed(lanes, claims, most, self._scanned_at)
            except (asyncpg.QueryCanceledError, TimeoutError):
                # A backlog too long to be gone through, or the database was busy or away; nobody can tell. What is enqueued
                # from now on shall be claimed all the same, and what was there is found on a walk.
                self._walk(lanes)
                front = False  # what was so slow is walked from now on
            finally:
                if front:
                    self._last_front = self._clock()
                    self._front_cost = self._last_front - start
        self._held_back = bool(rooms) and self._exhausted(rooms, claims)
        self._mind(len(claims), most)
        return len(claims)

    def _mind(self, got: int, most: int) -> None:
        """Tell by what the last claims found whether hints are wanted: not while each is full, or finds several tasks."""
        now = self._clock()
        if self._busy:
            self._streak = 0 if got else self._streak + 1
            if self._streak == IDLE_CLAIMS:
                self._busy, self._streak = False, 0
                self._rest(True)
            return
        more = got == most or (got > 1 and now - self._last_got < BUSY_WITHIN)
        self._streak = self._streak + 1 if more else 0
        self._last_got = now if got else self._last_got
        if self._streak == BUSY_CLAIMS:
            self._busy, self._streak = True, 0
            self._rest(False)

    async def _ask(
        self, most: int, lanes: Sequence[Watermark], until: tuple[datetime, UUID] | None = None
    ) -> list[Claim]:
        self._asked = self._clock()
        try:
            claims = await self._tasks.claim(self._worker, self._types, most, lanes, until)
            if claims:
                self._observe("claim", len(claims), self._clock() - self._asked)
                self._lanes.took(claims)
                self._deliver(claims)
            return claims
        except asyncpg.QueryCanceledError:
            raise  # an answer: it has taken nothing
        except BaseException:
            self._unanswered = self._clock()
            raise
        finally:
            self._asked = None
            self._last_claim = self._clock()

    def _walk(self, lanes: Sequence[Watermark]) -> None:
        log.warning("a claim took too long; is there a long backlog of tasks of types that this worker does not know?")
        for lane in lanes:
            self._passes.begin((lane.queue, lane.priority), (lane.run_at, lane.id), self._clock())
        self._lanes.left(lanes, self._scanned_at)

    async def _step(self, room: int) -> None:
        """Look at the next slice of a long lane, and claim what it holds."""
        rooms = self._rooms()
        turn = self._passes.turn(lambda key: rooms.get(key[0], MOST) > 0)
        start = self._clock()
        if turn is None:
            self._next_step = start + self._poll_interval
            return
        key, walk = turn
        lane = Watermark(*key, *walk.mark, min(room, rooms.get(key[0], MOST)))
        try:
            seen = await self._tasks.slice(self._types, lane, walk.most)
            if seen and seen.known >= WORTHWHILE * seen.looked:
                self._lanes.back(key, walk.mark)
                self._passes.arrived(key, self._clock())
                self._woken = True
                return
            wanted = min(lane.room, seen.known) if seen else 0
            got = len(await self._ask(wanted, [lane], (seen.run_at, seen.id))) if seen and wanted else 0
            if seen is None or got < wanted or wanted == seen.known:  # else there is more in this slice
                self._passes.step(key, seen, self._clock())
        except asyncpg.QueryCanceledError:
            self._passes.too_slow(key, self._clock())
        now = self._clock()
        self._next_step = now + min(LONGEST_REST, self._rng.uniform(0.8, 1.2) * PASS_SHARE * (now - start))

    def _exhausted(self, rooms: Mapping[str, int], claims: list[Claim]) -> bool:
        """Whether a queue may have more than its own slots took: then the next free slot must lead to a claim."""
        taken = Counter(claim.queue for claim in claims)
        return any(taken[queue] >= room for queue, room in rooms.items() if self._lanes.knows(queue))

    def _may_scan(self, urgently: bool, least: float = 0.0) -> bool:
        return self._clock() - self._last_scan >= self._scan_rest(urgently, least)

    def _scan_rest(self, urgently: bool, least: float = 0.0) -> float:
        """Seconds from one scan to the next. Urgently: nothing could be claimed, so there may be what only a scan finds."""
        cost = min(self._scan_costs)
        if urgently and cost < CHEAP_SCAN:
            return 0.0
        rest = max(least, SCAN_SHARE * cost)
        if self._strangers or not len(self._lanes):
            return min(rest, URGENT * self._poll_interval)
        return min(rest, SCAN_EVERY) if urgently else rest

    async def _scan(self) -> bool:
        start, wanted = self._clock(), set(self._strangers)
        try:
            lanes = await self._tasks.lanes()
        finally:
            self._last_scan = self._clock()
            self._scan_costs = (self._last_scan - start, self._scan_costs[0])
        self._strangers -= wanted
        self._absent = wanted - {lane.queue for lane in lanes}
        self._held_back = False
        waits = [lane.due_in for lane in lanes if not lane.ready and self._lanes.serves(lane.queue)]
        self._next_due = self._last_scan + min(waits) if waits else float("inf")
        self._scanned_at = max((lane.at for lane in lanes), default=self._scanned_at)
        self._passes.keep({(lane.queue, lane.priority) for lane in lanes})
        for lane in lanes:
            if lane.ready:
                self._passes.again((lane.queue, lane.priority), self._last_scan)
        return self._lanes.seen(lanes, self._may_start_from_front(), self._passes)

    def _may_start_from_front(self) -> bool:
        since = self._clock() - self._last_front
        return self._front_cost < CHEAP_FRONT or since >= min(FRONT_EVERY, SCAN_SHARE * self._front_cost)

    async def _wait(self) -> None:
        """Until woken, or the poll interval is over, or the next delayed task is due; a busy worker not for long."""
        if self._busy:
            await asyncio.sleep(max(0.0, self._last_claim + PACE - self._clock()))
            return
        next_due = min(self._next_due, self._next_step if self._passes else float("inf"))
        seconds = min(self._poll_interval * self._rng.uniform(0.9, 1.0), max(0.001, next_due - self._clock()))
        if self._held_back and self._freed:
            self._woken = True
        if self._woken:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()
