"""Schedules fire once for each fire time, whoever fires (F49), and after a downtime as their policy says (F50)."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import msgspec
import pytest

from dhara.domain.lifecycle import Event, State
from dhara.domain.schedule import Spec, fire_id
from dhara.errors import NotFound
from dhara.maintenance import Maintenance
from dhara.maintenance import chores as chores_module
from dhara.maintenance.bulk import Bulk
from dhara.maintenance.chores import Chores
from dhara.maintenance.scheduler import Scheduler
from dhara.maintenance.settings import MaintenanceSettings
from dhara.store.audit import Audit
from dhara.store.pool import TRANSIENT, DatabaseSettings, Pool
from dhara.store.schedules import Schedules
from dhara.store.tasks import Tasks
from dhara.store.workers import Workers
from fuzz import fires
from tests.factories import claim, make_task, settlement
from tests.proxy import Proxy
from tests.waiting import eventually


@pytest.fixture
def schedules(pool: Pool) -> Schedules:
    return Schedules(pool)


async def make(pool: Pool, name: str = "s", *, late: float | None = None, **fields: Any) -> None:
    """A schedule, hourly unless told otherwise; `late`: its next fire is moved so many seconds into the past."""
    usual: dict[str, Any] = {"type": "t", "cron": None, "every": 3_600.0}
    assert await Schedules(pool).create(Spec(name=name, **usual | fields), "ada") is not None
    if late is not None:
        await pool.execute(
            "UPDATE dhara.schedules SET next_at = clock_timestamp() - $2 * interval '1 second',"
            " anchor = clock_timestamp() - $2 * interval '1 second' WHERE name = $1",
            name,
            late,
        )


async def enqueued(pool: Pool) -> int:
    count: int = await pool.fetchval("SELECT count(*) FROM dhara.tasks")
    return count


async def test_a_fire_is_a_task_with_all_that_was_said(pool: Pool, schedules: Schedules) -> None:
    await make(pool, payload='{"a":  1}', queue="q", priority=7, max_retries=2, timeout=9.0, late=1)
    before = await schedules.get("s")
    assert before.next_at is not None
    await Scheduler(pool).tick()
    after = await schedules.get("s")
    (fire,) = await schedules.fires("s")
    assert (fire.fire_at, fire.outcome, fire.status) == (before.next_at, "enqueued", "PENDING")
    assert fire.task_id == after.last_task == fire_id("s", before.next_at)
    assert (after.last_at, after.next_at) == (before.next_at, before.next_at + timedelta(hours=1))
    assert fire.task_id is not None
    task = await Tasks(pool).get(fire.task_id)
    assert (task.type, task.payload, task.queue, task.priority, task.max_retries, task.timeout) == (
        "t", '{"a":  1}', "q", 7, 2, 9.0,
    )  # fmt: skip
    assert task.idempotency_key == f"schedule:s:{before.next_at:%Y-%m-%dT%H:%M:%S.%fZ}"
    assert await Scheduler(pool).tick() is None
    assert await enqueued(pool) == 1


async def test_a_thousand_fires_with_rival_schedulers(dsn: str, pool: Pool) -> None:
    """F49: no leader is needed for it. Each schedule catches up 250 fires; some rivals die between fire and fire."""
    for n in range(4):
        await make(pool, f"s{n}", every=3600.0, missed="catch_up", catch_up_most=1_000, late=249 * 3600 + 1800)
    due = {coming.name: coming.next_at for coming in await Schedules(pool).due()}
    async with Pool(DatabaseSettings(dsn=dsn)) as other:
        rivals = [asyncio.create_task(Scheduler(p).tick()) for p in (pool, other, pool, other)]
        await asyncio.sleep(0)
        rivals[0].cancel()
        await asyncio.wait(rivals)
        while await Schedules(pool).due():
            await asyncio.gather(Scheduler(pool).tick(), Scheduler(other).tick())
    wanted = {(name, first + timedelta(hours=n)) for name, first in due.items() for n in range(250)}
    rows = await pool.fetch("SELECT schedule, fire_at, task_id FROM dhara.schedule_fires")
    assert (len(rows), {(row[0], row[1]) for row in rows}) == (1_000, wanted)
    ids = {row[0] for row in await pool.fetch("SELECT id FROM dhara.tasks")}
    assert ids == {row[2] for row in rows} == {fire_id(*one) for one in wanted}


@pytest.mark.slow
async def test_the_firer_is_killed_and_stopped_as_it_fires(dsn: str) -> None:
    """F49, a taste of `python -m fuzz.fires`: real processes, and real seconds."""
    verdict = await fires.run(dsn, 12, schedules=6, processes=2)
    assert verdict.fires >= 12 and verdict.faults, verdict
    assert (verdict.missing, verdict.twice, verdict.strange) == (0, 0, 0), verdict


@pytest.mark.parametrize("reply", [True, False])
async def test_a_fire_whose_commit_is_cut_off_happens_once(
    dsn: str, pool: Pool, schedules: Schedules, reply: bool
) -> None:
    """F20, F21: the COMMIT's answer is lost, or it never reaches the server."""
    await make(pool, late=1)
    async with Proxy(dsn) as proxy, Pool(DatabaseSettings(dsn=proxy.dsn, pool_max=1)) as cut:
        (proxy.lose_reply if reply else proxy.lose_request)("schedules/advance")
        with suppress(*TRANSIENT):
            await Scheduler(cut).tick()
        assert proxy.cuts == 1
        assert await enqueued(pool) == reply, "within a transaction it is the commit that is cut off"

        async def fired() -> bool:
            await Scheduler(cut).tick()
            return len(await schedules.fires("s")) > 0

        await eventually(fired)  # not the first time, where the session that was cut off still holds the schedule
        await Scheduler(cut).tick()
    assert len(await schedules.fires("s")) == await enqueued(pool) == 1


async def test_a_stale_reader_fires_nothing(pool: Pool, schedules: Schedules) -> None:
    await make(pool, late=1)
    (seen,) = await schedules.due()
    await Scheduler(pool).tick()
    await Scheduler(pool)._fire(seen.name, seen.next_at)
    assert await enqueued(pool) == 1
    # Even where the schedule's own row knows nothing of the fire any more, its record does.
    await pool.execute("UPDATE dhara.schedules SET next_at = $1", seen.next_at)
    await Scheduler(pool).tick()
    assert (await enqueued(pool), len(await schedules.fires("s"))) == (1, 1)


@pytest.mark.parametrize("missed, tasks, outcomes", [("coalesce", 1, 1), ("skip", 0, 1), ("catch_up", 26, 26)])
async def test_26_hours_down(pool: Pool, schedules: Schedules, missed: str, tasks: int, outcomes: int) -> None:
    await make(pool, missed=missed, late=25 * 3_600 + 120)
    first = (await schedules.get("s")).next_at
    assert first is not None
    await Scheduler(pool).tick()
    fires = await schedules.fires("s", 100)
    assert (await enqueued(pool), len(fires)) == (tasks, outcomes)
    assert fires[0].fire_at == first + timedelta(hours=25)
    assert {fire.outcome for fire in fires} == {"missed" if missed == "skip" else "enqueued"}
    assert (await schedules.get("s")).next_at == first + timedelta(hours=26)


async def test_overlap(pool: Pool, schedules: Schedules) -> None:
    for name in ("allow", "skip", "cancel_previous"):
        await make(pool, name, overlap=name, missed="catch_up", late=3_630)
    await Scheduler(pool).tick()
    found = {
        name: [f.status or f.outcome for f in await schedules.fires(name)]
        for name in ("allow", "skip", "cancel_previous")
    }
    assert found == {
        "allow": ["PENDING", "PENDING"],
        "skip": ["overlap", "PENDING"],
        "cancel_previous": ["PENDING", "CANCELED"],
    }
    # Once the task before has ended, the next fire is no overlap.
    last = (await schedules.get("skip")).last_task
    assert last is not None
    await Tasks(pool).settle([settlement(await claim(pool, last), Event.COMPLETED)])
    await pool.execute("UPDATE dhara.schedules SET next_at = clock_timestamp() WHERE name = 'skip'")
    await Scheduler(pool).tick()
    assert (await schedules.fires("skip"))[0].status == "PENDING"


async def test_pause_resume_delete_and_by_hand(pool: Pool, schedules: Schedules) -> None:
    await make(pool, late=7_200)
    await schedules.pause("s", "ada")
    await Scheduler(pool).tick()
    assert await enqueued(pool) == 0
    task = await Scheduler(pool).run_now("s", "bob")
    assert (await Tasks(pool).get(task)).status is State.PENDING
    await schedules.resume("s", "ada")  # what was missed in the pause was not meant to be
    await Scheduler(pool).tick()
    assert [fire.outcome for fire in await schedules.fires("s")] == ["by_hand"]
    following = (await schedules.get("s")).next_at
    assert following is not None
    assert following > datetime.now(UTC)
    await schedules.delete("s", "ada")
    for gone in (schedules.get("s"), schedules.delete("s", "a"), schedules.pause("s", "a"), schedules.resume("s", "a")):
        with pytest.raises(NotFound):
            await gone
    actions = [(one.actor, one.action) for one in await Audit(pool).list()]
    assert actions == [
        ("ada", "schedule.delete"),
        ("ada", "schedule.resume"),
        ("bob", "schedule.run"),
        ("ada", "schedule.pause"),
        ("ada", "schedule.create"),
    ]


async def test_code_declares_and_declares_again(pool: Pool, schedules: Schedules) -> None:
    spec = Spec(name="nightly", type="t", cron="0 3 * * *", timezone="Europe/Berlin")
    await schedules.declare([spec])
    made = await schedules.get("nightly")
    assert (made.source, made.spec) == ("code", spec)
    await schedules.pause("nightly", "ada")
    await schedules.declare([spec])
    assert (await schedules.get("nightly")).paused_by == "ada"
    changed = Spec(name="nightly", type="t", cron="0 4 * * *", timezone="Europe/Berlin")
    await schedules.declare([changed])
    again = await schedules.get("nightly")
    assert (again.spec, again.paused_by) == (changed, "ada")
    assert again.next_at != made.next_at
    actions = [one.action for one in await Audit(pool).list(actor="code")]
    assert actions == ["schedule.update", "schedule.create"]


@pytest.mark.parametrize(
    "usual, changed, fires",
    [
        ({"every": 3_600.0}, {"payload": "[1]", "priority": 9, "jitter": 1.0, "overlap": "skip"}, 1),
        ({"every": 3_600.0}, {"every": 7_200.0}, 0),
        ({"every": None, "cron": "0 3 * * *"}, {"type": "other", "queue": "q"}, 1),
        ({"every": None, "cron": "0 3 * * *"}, {"timezone": "Europe/Berlin"}, 0),
    ],
)
async def test_another_definition_loses_no_fire_that_is_due_but_another_time_does(
    pool: Pool, schedules: Schedules, usual: dict[str, Any], changed: dict[str, Any], fires: int
) -> None:
    await make(pool, **usual, late=2 * 86_400)
    spec = msgspec.structs.replace((await schedules.get("s")).spec, **changed)
    await schedules.declare([spec])
    assert (await schedules.get("s")).spec == spec
    await Scheduler(pool).tick()
    assert await enqueued(pool) == fires


async def test_what_cannot_be_fired_is_paused_and_says_why(pool: Pool, schedules: Schedules) -> None:
    await make(pool, every=None, cron="0 3 * * *", late=1)
    await pool.execute("UPDATE dhara.schedules SET timezone = 'Mars/Olympus'")
    await Scheduler(pool).tick()
    assert "Mars/Olympus" in ((await schedules.get("s")).paused_by or "")
    assert await enqueued(pool) == 0


async def test_one_that_is_blocked_keeps_no_other_from_its_turn(pool: Pool) -> None:
    """Nor bulk operations: whatever stops schedules is said, and the round goes on."""
    await make(pool, "blocked", late=2)
    await make(pool, "free", late=1)
    first = await pool.fetchval("SELECT next_at FROM dhara.schedules WHERE name = 'blocked'")
    async with pool.acquire() as other, other.transaction():
        # Somebody is just about to fire it, and does not come to an end.
        await Schedules(other).note("blocked", first, "enqueued")
        await Scheduler(pool).tick()
        assert await pool.fetchval("SELECT array_agg(schedule) FROM dhara.schedule_fires") == ["free"]
    await Scheduler(pool).tick()
    assert {fire.outcome for fire in await Schedules(pool).fires("blocked")} == {"enqueued"}


async def test_troubled_schedules(pool: Pool, schedules: Schedules) -> None:
    for name, late in (
        ("fine", None),
        ("overdue", 90),
        ("just now", 30),
        ("missed", 90),
        ("paused", None),
        ("broken", 10),
    ):
        await make(pool, name.replace(" ", "-"), late=late)
    await make(pool, "failed")
    dead = await make_task(pool, "DEAD")
    await pool.execute("UPDATE dhara.schedules SET last_task = $1 WHERE name = 'failed'", dead.id)
    for name, by in (("missed", "ben"), ("paused", "ben"), ("broken", "dhara: no such zone")):
        await schedules.pause(name, by)
    found = await schedules.troubled()
    assert [(one.name, one.trouble) for one in found] == [
        (name, name) for name in ("broken", "overdue", "failed", "missed")
    ]
    assert found[2].last_task == dead.id


async def test_jitter_puts_the_task_off(pool: Pool, schedules: Schedules) -> None:
    await make(pool, jitter=3_600.0, late=1)
    await Scheduler(pool).tick()
    (fire,) = await schedules.fires("s")
    assert fire.task_id is not None
    task = await Tasks(pool).get(fire.task_id)
    assert fire.fire_at < task.run_at <= fire.fire_at + timedelta(hours=1)


async def test_maintenance_fires_on_the_second_without_looking_for_it(pool: Pool, schedules: Schedules) -> None:
    """A round says when the next is due; after a fire the one after it is known."""
    maintenance = Maintenance(pool, MaintenanceSettings(reaper_interval=60))
    await make(pool, every=1.0, late=-0.3)

    async def fired() -> bool:
        return len(await schedules.fires("s")) >= 3

    await maintenance._chores.start()
    await maintenance._chores.do()
    assert await enqueued(pool) == 0  # it does not lead
    try:
        await maintenance.round()
        await eventually(fired)
    finally:
        await maintenance.stop()
    assert all(fire.fired_at >= fire.fire_at for fire in await schedules.fires("s"))


async def test_chores_wait_without_a_query_and_go_on_after_a_failure(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chores_module, "_AGAIN", 0.05)
    looks = 0

    class Counting(Workers):
        async def next_chore(self) -> float | None:
            nonlocal looks
            looks += 1
            if looks == 1:
                raise OSError("gone")
            return await super().next_chore()

    async with Chores(Bulk(pool), Scheduler(pool), Counting(pool)) as chores:
        chores.lead(time.monotonic() + 60, None)
        await asyncio.sleep(0.1)
        assert looks == 0, "nothing is due"
        chores.hint()
        await eventually(lambda: looks == 2)
        await asyncio.sleep(0.1)
        assert looks == 2, "nothing is due any more"
        await make(pool, late=1)
        chores.follow()
        chores.hint()  # also where another leads
        await eventually(lambda: looks == 3)
    assert await enqueued(pool) == 1


async def test_schedules_do_not_wait_for_bulk_operations(pool: Pool) -> None:
    class Blocked(Bulk):
        async def drive(self, seconds: float = 0.5) -> int:
            raise asyncpg.LockNotAvailableError("somebody holds the row")

    await make(pool, late=1)
    chores = Chores(Blocked(pool), Scheduler(pool), Workers(pool))
    chores.hint()
    with pytest.raises(asyncpg.LockNotAvailableError):
        await chores.do()
    assert await enqueued(pool) == 1
