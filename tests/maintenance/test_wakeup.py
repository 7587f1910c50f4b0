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
from dhara.store.wakeup import Listener, Notifier
from tests.proxy import Proxy
from tests.waiting import Signal, eventually
from tests.worker.kit import Desk, running


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
        proxy.freeze()
        await eventually(lambda: not listener.connected.is_set(), what="the dead link to be noticed")
        proxy.thaw()
        assert await woken.wait(2) == ["", ""]
        notifier = Notifier(pool)
        notifier.wake("mail")
        assert (await woken.wait(3))[2:] == ["mail"]
        await notifier.close()


async def test_it_comes_back_as_quickly_the_tenth_time(dsn: str, db: asyncpg.Connection[asyncpg.Record]) -> None:
    """Connections that worked before they ended do not add up to ever longer pauses."""
    woken = Signal("wake")
    async with Proxy(dsn) as proxy, Listener(DatabaseSettings(dsn=proxy.dsn), woken.fire):
        for times in range(1, 11):
            await woken.wait(times, timeout=5)
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
