"""The reaper takes back what lost workers hold, on the word of two witnesses, and nothing else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from uuid import UUID, uuid4

import pytest
from msgspec import Struct

from dhara.domain.lifecycle import State
from dhara.maintenance.reaper import Reaper, Watch
from dhara.maintenance.settings import MaintenanceSettings
from dhara.store.tasks import Tasks
from dhara.store.workers import Sighting, Workers
from tests import invariants
from tests.factories import Connection, history, make_task, make_worker

L, C = 30.0, 10.0
SETTINGS = MaintenanceSettings(stale_after=L, confirm_after=C, reaper_interval=20.0)


class Clock:
    """This process's monotonic clock, in the test's hands."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def reaper(db: Connection, clock: Clock) -> Reaper:
    return Reaper(Tasks(db), Workers(db), SETTINGS, clock)


class Case(Struct, frozen=True, kw_only=True):
    """A worker that holds one task; what happens between two looks of the reaper; is it taken back?"""

    why: str
    beat_age: float = 3600
    claim_age: float = 3600
    state: str = "live"
    watched: float = C
    beats: bool = False
    restarted: bool = False
    reaped: bool


CASES = [
    Case(why="both witnesses agree", reaped=True),
    Case(why="a draining worker is no different", state="draining", reaped=True),
    Case(
        why="the beat is old, but it moved while we watched: its clock jumped, or the database's",
        beats=True,
        reaped=False,
    ),
    Case(why="the beat stands still, but not for long enough", watched=C - 0.1, reaped=False),
    Case(why="the beat stood still all the time, but it is not old", beat_age=L / 2, reaped=False),
    Case(why="this reaper has just been started: its watch begins anew", restarted=True, reaped=False),
    Case(why="claimed a moment ago, by a worker that is just coming back", claim_age=L / 2, reaped=False),
    Case(why="stopped in order, but it still holds a task", state="stopped", beat_age=0.1, reaped=True),
    Case(why="called lost before, and holds a task", state="lost", beat_age=0.1, reaped=True),
    Case(
        why="stopped a moment ago with a task that it claimed a moment ago", state="stopped", claim_age=1, reaped=False
    ),
]


@pytest.mark.parametrize("case", CASES, ids=[case.why for case in CASES])
async def test_two_witnesses(db: Connection, case: Case) -> None:
    worker = await make_worker(db, state=case.state, beats=3, beat_age=case.beat_age)
    task = await make_task(db, "RUNNING", worker=worker, age=case.claim_age)
    clock = Clock()
    looking = reaper(db, clock)
    assert await looking.look() == 0, "nobody is lost at the first look"
    if case.beats:
        await db.execute("UPDATE dhara.workers SET beat_seq = beat_seq + 1 WHERE id = $1", worker)
    if case.restarted:
        looking = reaper(db, clock)
    clock.now += case.watched
    assert await looking.look() == int(case.reaped)
    after = await Tasks(db).get(task.id)
    assert after.status is (State.PENDING if case.reaped else State.RUNNING)
    assert (after.failures, after.crashes) == ((1, 1) if case.reaped else (0, 0))
    state = await db.fetchval("SELECT state FROM dhara.workers WHERE id = $1", worker)
    gone = case.state in ("stopped", "lost")
    late = not case.beats and not case.restarted and case.watched >= C and case.beat_age > L
    assert state == (case.state if gone or not late else "lost")
    assert not await invariants.violations(db)


async def test_what_it_writes(db: Connection) -> None:
    worker = await make_worker(db, beats=3, beat_age=3600)
    plain = await make_task(db, "RUNNING", worker=worker, age=60)
    canceled = await make_task(db, "RUNNING", worker=worker, age=60, cancel_requested=True)
    tired = await make_task(db, "RUNNING", worker=worker, age=60, max_retries=0)
    poison = await make_task(db, "RUNNING", worker=worker, age=60, failures=2, crashes=2)
    clock = Clock()
    looking = reaper(db, clock)
    await looking.look()
    clock.now += C
    assert await looking.look() == 4
    found = {task.id: task for task in [await Tasks(db).get(t.id) for t in (plain, canceled, tired, poison)]}
    assert (found[plain.id].status, found[plain.id].reason) == (State.PENDING, None)
    wait = (found[plain.id].run_at - found[plain.id].updated_at).total_seconds()
    assert 0 <= wait <= 1, "back after U(0, 1 s) the first time"
    assert found[canceled.id].status is State.CANCELED
    assert (found[tired.id].status, found[tired.id].reason) == (State.DEAD, "exhausted")
    assert (found[poison.id].status, found[poison.id].reason) == (State.DEAD, "poison")
    (entry,) = await history(db, plain.id)
    assert (entry["event"], entry["lease"], entry["worker_id"]) == ("REAPED", plain.lease, worker)
    assert entry["reason"] == "lease lost: its worker stopped beating"
    assert not await invariants.violations(db)


async def test_more_tasks_than_one_batch(db: Connection) -> None:
    worker = await make_worker(db, beats=1)
    await db.execute("ALTER TABLE dhara.tasks DISABLE TRIGGER USER")
    await db.execute(
        "INSERT INTO dhara.tasks (id, type, status, run_at, lease, locked_by, claim_seq, started_at, attempts)"
        " SELECT gen_random_uuid(), 't', 'RUNNING', now(), gen_random_uuid(), $1, nextval('dhara.task_history_seq'),"
        " now() - interval '1 hour', 1 FROM generate_series(1, 1234)",
        worker,
    )
    await db.execute("UPDATE dhara.workers SET beat_at = beat_at - interval '1 hour'")
    clock = Clock()
    looking = reaper(db, clock)
    await looking.look()
    clock.now += C
    assert await looking.look() == 1234
    assert await db.fetchval("SELECT count(*) FROM dhara.tasks WHERE status = 'RUNNING'") == 0


async def test_a_beat_that_comes_at_the_last_moment(db: Connection) -> None:
    """Between the reaper's look and its statement: the statement sees it."""
    worker = await make_worker(db, beats=3, beat_age=3600)
    task = await make_task(db, "RUNNING", worker=worker, age=3600)
    clock = Clock()

    class Late(Workers):
        looks = 0

        async def witness(self) -> list[Sighting]:
            seen = await super().witness()
            self.looks += 1
            if self.looks == 2:
                await self.beat([worker], [1])
            return seen

    looking = Reaper(Tasks(db), Late(db), SETTINGS, clock)
    await looking.look()
    clock.now += C
    assert await looking.look() == 0
    assert (await Tasks(db).get(task.id)).status is State.RUNNING
    assert await db.fetchval("SELECT state FROM dhara.workers WHERE id = $1", worker) == "live"


async def test_a_lost_worker_that_beats_again_is_live_again(db: Connection) -> None:
    worker = await make_worker(db, beats=3, beat_age=3600)
    clock = Clock()
    looking = reaper(db, clock)
    await looking.look()
    clock.now += C
    await looking.look()
    assert await db.fetchval("SELECT state FROM dhara.workers WHERE id = $1", worker) == "lost"
    await Workers(db).beat([worker], [0])
    assert await db.fetchval("SELECT state FROM dhara.workers WHERE id = $1", worker) == "live"
    clock.now += 10 * C
    await looking.look()
    assert await db.fetchval("SELECT state FROM dhara.workers WHERE id = $1", worker) == "live"


async def test_an_outage_is_nobody_s_fault(db: Connection) -> None:
    """All beats are old when the database is back; each worker gets C to beat again."""
    workers = [await make_worker(db, beats=3, beat_age=0) for _ in range(3)]
    for worker in workers:
        await make_task(db, "RUNNING", worker=worker, age=600)
    clock = Clock()
    looking = reaper(db, clock)
    await looking.look()
    clock.now += 300  # reads fail for so long: no look
    await db.execute("UPDATE dhara.workers SET beat_at = beat_at - interval '300 seconds'")
    assert await looking.look() == 0, "this process is back first, and has not seen them stand still for a moment"
    clock.now += C - 0.1
    assert await looking.look() == 0, "although the database's clock says that every beat is five minutes old"
    for worker in workers[1:]:
        await Workers(db).beat([worker], [1])
    clock.now += 0.1
    assert await looking.look() == 1, "who has not beaten by then"


def test_the_watch() -> None:
    a, b = uuid4(), uuid4()

    def seen(*pairs: tuple[UUID, int]) -> list[Sighting]:
        return [Sighting(id, seq, "live", 99.0) for id, seq in pairs]

    watch = Watch(10, 20)
    still: Callable[[list[Sighting], float], list[UUID]] = lambda s, now: [x.id for x in watch.still(s, now)]  # noqa: E731
    assert still(seen((a, 1), (b, 1)), 0) == []
    assert still(seen((a, 1), (b, 2)), 9) == []
    assert still(seen((a, 1), (b, 2)), 10) == [a]
    assert still(seen((a, 2), (b, 2)), 19) == [b], "a has moved"
    assert still(seen((b, 2)), 20) == [b]
    assert still(seen((a, 2), (b, 2)), 40) == [b], "who was out of sight is watched anew"
    assert still(seen((a, 2), (b, 2)), 71) == [], (
        "nobody was in sight for longer than looks are apart: all are watched anew"
    )
    assert still(seen((a, 2), (b, 2)), 81) == [a, b]


async def test_two_reapers_are_as_good_as_one(db: Connection) -> None:
    worker = await make_worker(db, beats=3, beat_age=3600)
    await make_task(db, "RUNNING", worker=worker, age=3600)
    clock = Clock()
    first, second = reaper(db, clock), reaper(db, clock)
    looks: list[Callable[[], Awaitable[int]]] = [first.look, second.look]
    for one in looks:
        await one()
    clock.now += C
    assert [await one() for one in looks] == [1, 0]
    assert not await invariants.violations(db)
