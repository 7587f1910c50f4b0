"""Wake-ups are hints: they arrive, they are coalesced, and a lost connection is replaced."""

from __future__ import annotations

from uuid import UUID

import asyncpg

from dhara.domain.ids import new_id
from dhara.store.pool import DatabaseSettings, Pool
from dhara.store.wakeup import Listener, Notifier
from tests.waiting import Signal, eventually


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
