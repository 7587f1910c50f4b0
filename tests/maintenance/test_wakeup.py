"""Wake-ups are hints: they arrive, they are coalesced, and a lost connection is replaced."""

from __future__ import annotations

import asyncio
import time
from uuid import UUID

import asyncpg
import pytest

from dhara import Registry
from dhara.store import wakeup
from dhara.store.ids import new_id
from dhara.store.pool import DatabaseSettings, Pool
from dhara.store.tasks import Tasks
from dhara.store.wakeup import Listener, Notifier
from tests.factories import new_task
from tests.proxy import Proxy
from tests.waiting import Signal, eventually
from tests.worker.kit import Desk, running


@pytest.fixture(autouse=True)
def no_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is woken then is woken by hints."""
    monkeypatch.setattr(wakeup, "COMMIT_LAGS", ())


async def test_a_hint_arrives(dsn: str, pool: Pool) -> None:
    woken, canceled, worker = Signal("wake"), Signal("cancel"), new_id()
    async with Listener(DatabaseSettings(dsn=dsn), woken.fire, canceled.fire) as listener:
        await listener.connected.wait()
        assert await woken.wait() == [""], "one look at once, since hints may have been missed"
        notifier = Notifier(pool)
        notifier.wake("mail")
        notifier.cancel(worker)
        assert (await woken.wait(2))[1:] == ["mail"]
        assert [UUID(text) for text in await canceled.wait()] == [worker]
        await notifier.close()


async def test_hints_are_coalesced(dsn: str, pool: Pool) -> None:
    woken = Signal("wake")
    async with Listener(DatabaseSettings(dsn=dsn), woken.fire):
        await woken.wait()
        notifier = Notifier(pool)
        for _ in range(1_000):
            notifier.wake("mail")
        await notifier.close()
        await woken.wait(2)
        notifier.wake("last")
        await eventually(lambda: "last" in woken.values, what="the last hint")
        assert woken.values.count("mail") <= 2
        await notifier.close()


async def test_another_schema_is_another_channel(dsn: str, pool: Pool) -> None:
    woken = Signal("wake")
    async with Listener(DatabaseSettings(dsn=dsn), woken.fire):
        await woken.wait()
        other, own = Notifier(pool, "other"), Notifier(pool)
        other.wake("mail")
        await other.close()
        own.wake("print")
        assert (await woken.wait(2))[1:] == ["print"]
        await own.close()


async def test_a_lost_connection_is_replaced_and_looks_at_once(
    dsn: str, pool: Pool, db: asyncpg.Connection[asyncpg.Record]
) -> None:
    woken = Signal("wake")
    async with Listener(DatabaseSettings(dsn=dsn), woken.fire):
        await woken.wait()
        await db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'dhara listener'"
            " AND datname = current_database()"
        )
        assert await woken.wait(2) == ["", ""]
        notifier = Notifier(pool)
        notifier.wake("mail")
        assert (await woken.wait(3))[2:] == ["mail"]
        await notifier.close()


async def test_sql_enqueue_wakes_in_its_transaction(dsn: str, db: asyncpg.Connection[asyncpg.Record]) -> None:
    woken = Signal("wake")
    async with Listener(DatabaseSettings(dsn=dsn), woken.fire):
        await woken.wait()
        async with db.transaction():
            await db.execute("SELECT dhara.enqueue('t', queue => 'lost')")
            rollback = db.transaction()
            await rollback.start()
            await db.execute("SELECT dhara.enqueue('t', queue => 'never')")
            await rollback.rollback()
        assert (await woken.wait(2))[1:] == ["lost"]


async def test_a_half_open_link_is_found(dsn: str, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing comes through any more and nobody says so; the liveness query does not come back."""
    monkeypatch.setattr(wakeup, "LIVENESS_INTERVAL", 0.1)
    monkeypatch.setattr(wakeup, "LIVENESS_TIMEOUT", 0.3)
    woken = Signal("wake")
    async with Proxy(dsn) as proxy, Listener(DatabaseSettings(dsn=proxy.dsn), woken.fire) as listener:
        await woken.wait()
        await listener.connected.wait()
        proxy.freeze()
        await eventually(lambda: not listener.connected.is_set(), what="the dead link to be noticed")
        monkeypatch.setattr(wakeup, "LIVENESS_TIMEOUT", 30)
        proxy.thaw()
        assert await woken.wait(2) == ["", ""]
        notifier = Notifier(pool)
        notifier.wake("mail")
        assert (await woken.wait(3))[2:] == ["mail"]
        await notifier.close()


async def test_it_comes_back_as_quickly_the_tenth_time(dsn: str, db: asyncpg.Connection[asyncpg.Record]) -> None:
    """Connections that worked before they ended do not add up to ever longer pauses."""
    woken = Signal("wake")
    async with Proxy(dsn) as proxy, Listener(DatabaseSettings(dsn=proxy.dsn), woken.fire) as listener:
        for times in range(1, 11):
            await woken.wait(times, timeout=9)
            await listener.connected.wait()
            proxy.cut()


async def test_while_there_is_no_database_the_pauses_grow(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr("dhara.store.wakeup.asyncio.sleep", noted)
    nowhere = DatabaseSettings(dsn="postgresql://postgres@127.0.0.1:1/none", connect_timeout=1)
    listener = Listener(nowhere, lambda queue: None)
    task = asyncio.create_task(listener.run())
    while len(pauses) < 8:
        await sleep(0.01)
    task.cancel()
    assert not listener.connected.is_set()
    assert pauses[0] < 0.5
    assert 2.5 <= max(pauses) <= 7.5


async def test_a_notifier_without_a_database_loses_hints_and_nothing_else(dsn: str) -> None:
    async with Proxy(dsn) as proxy, Pool(DatabaseSettings(dsn=proxy.dsn)) as cut:
        notifier = Notifier(cut)
        proxy.cut()
        notifier.wake("mail")
        notifier.cancel(new_id())
        await notifier.close()
        proxy.freeze()
        notifier.wake("mail")
        begun = time.monotonic()
        await notifier.close()
        assert time.monotonic() - begun < 15


async def test_workers_do_not_depend_on_hints(dsn: str, pool: Pool) -> None:
    """F43: every notification is lost; a task starts within a poll."""
    tasks = Registry()
    desk = Desk(pool)

    @tasks.task("t")
    async def t() -> None: ...

    async with Proxy(dsn) as proxy, running(proxy.dsn, tasks, poll_interval=0.5) as runner:
        proxy.deaf = True
        await runner._listener.connected.wait()
        begun = time.monotonic()
        await desk.final(await desk.one("t"))
        assert time.monotonic() - begun < 0.5 + 10
    await desk.notifier.close()


async def test_workers_heed_hints(dsn: str, pool: Pool) -> None:
    tasks = Registry()
    desk = Desk(pool)

    @tasks.task("t")
    async def t() -> None: ...

    async with running(dsn, tasks, poll_interval=60) as runner:
        await runner._listener.connected.wait()
        begun = time.monotonic()
        for _ in range(5):
            await desk.final(await desk.one("t"))
        assert time.monotonic() - begun < 30
    await desk.notifier.close()


async def test_only_who_sleeps_is_told_and_by_the_commit(dsn: str, pool: Pool) -> None:
    """Busy workers cost an enqueue nothing; when the last lies down it looks once more, and is told from then on."""
    busy, heard = Signal("the busy one"), Signal("a hint")
    tasks = Tasks(pool, tells=True)
    async with Listener(DatabaseSettings(dsn=dsn), busy.fire) as first:
        await first.connected.wait()
        await tasks.enqueue([new_task(queue="asleep")])
        assert await busy.wait(2) == ["", "asleep"]
        async with Listener(DatabaseSettings(dsn=dsn), heard.fire) as second:
            await second.connected.wait()
            first.rest(asleep=False)
            await tasks.enqueue([new_task(queue="one of two sleeps")])
            assert await heard.wait(2) == ["", "one of two sleeps"]
            assert (await busy.wait(3))[2:] == ["one of two sleeps"]
            second.rest(asleep=False)
            await eventually(lambda: _nobody_sleeps(pool))
            await tasks.enqueue([new_task(queue="nobody sleeps")])
            second.rest(asleep=True)
            assert (await heard.wait(3))[2:] == [""]
            await tasks.enqueue([new_task(queue="again")])
            assert (await heard.wait(4))[3:] == ["again"], "nothing was said while nobody slept"
    assert "nobody sleeps" not in busy.values


async def _somebody_sleeps(pool: Pool) -> bool:
    return not await _nobody_sleeps(pool)


async def _nobody_sleeps(pool: Pool) -> bool:
    query = "SELECT count(*) FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)"
    where = "WHERE locktype = 'advisory' AND application_name = 'dhara listener' AND a.datname = current_database()"
    return bool(await pool.fetchval(f"{query} {where}") == 0)


async def test_an_enqueue_under_way_as_the_worker_lies_down(
    dsn: str, db: asyncpg.Connection[asyncpg.Record], pool: Pool
) -> None:
    """Whoever sleeps is looked for after the insert, however long that takes; the commit after it is awaited by further looks."""
    looks = Signal("a look")
    held = "pg_advisory_xact_lock(hashtextextended('dawdle', 0))"
    await db.execute(
        f"CREATE FUNCTION dhara.dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM {held}; RETURN NULL; END $$;"
        "CREATE TRIGGER dawdle BEFORE INSERT ON dhara.tasks FOR EACH STATEMENT EXECUTE FUNCTION dhara.dawdle()"
    )
    tasks = Tasks(pool, tells=True)
    async with Listener(DatabaseSettings(dsn=dsn), looks.fire) as listener:
        await looks.wait()
        listener.rest(asleep=False)
        await eventually(lambda: _nobody_sleeps(pool))
        async with db.transaction():
            await db.execute(f"SELECT {held}")
            slow = asyncio.create_task(tasks.enqueue([new_task(queue="slow")]))
            waits = "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'advisory' AND datname = current_database()"
            await eventually(lambda: pool.fetchval(waits))
            listener.rest(asleep=True)
            await eventually(lambda: _somebody_sleeps(pool))
        await slow
        await eventually(lambda: "slow" in looks.values)


async def test_further_looks_after_lying_down(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wakeup, "COMMIT_LAGS", (0.01, 0.02))
    looks = Signal("a look")
    async with Listener(DatabaseSettings(dsn=dsn), looks.fire):
        assert await looks.wait(3) == ["", "", ""]


async def test_who_serves_other_queues_is_left_to_sleep(dsn: str, pool: Pool) -> None:
    heard = Signal("a hint")
    tasks = Tasks(pool, tells=True)
    async with Listener(DatabaseSettings(dsn=dsn), heard.fire, queues=["mail", "print"]):
        await heard.wait()
        await tasks.enqueue([new_task(queue="default")])
        await tasks.enqueue([new_task(queue="default"), new_task(queue="print")])
        assert await heard.wait(2) == ["", "print"]


async def test_a_worker_says_that_it_is_busy_and_when_it_no_longer_is(dsn: str, pool: Pool) -> None:
    """A stream of tasks: the last are found though nobody is told of them, and then hints are wanted again."""
    tasks = Registry()
    desk = Desk(pool)

    @tasks.task("t")
    async def t() -> None: ...

    async with running(dsn, tasks, poll_interval=60) as runner:
        await runner._listener.connected.wait()
        store, ids = Tasks(pool, tells=True), list[UUID]()

        async def stream() -> bool:
            new = [new_task("t", payload="{}") for _ in range(200)]
            await store.enqueue(new)
            ids.extend(task.id for task in new)
            return runner.claimer._busy

        await eventually(stream, what="the worker to be busy")
        await eventually(lambda: not runner.claimer._busy, what="the worker to lie down")
        await desk.all_final(ids)
        await eventually(lambda: runner._listener.connected.is_set())
        one = new_task("t", payload="{}")
        await store.enqueue([one])
        await desk.final(one.id)
