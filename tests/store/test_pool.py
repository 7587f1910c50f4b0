"""The pool: connections at hand, and nobody passed over."""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import AsyncIterator

import asyncpg
import msgspec
import pytest

from dhara.errors import Unavailable
from dhara.store.pool import AWAY, SMALL, DatabaseSettings, Pool, _is_alive, is_transient, unless_cut
from tests.proxy import Proxy
from tests.waiting import eventually


@pytest.fixture
async def narrow(dsn: str) -> AsyncIterator[Pool]:
    async with Pool(DatabaseSettings(dsn=dsn, pool_max=2, connect_timeout=10)) as pool:
        yield pool


async def pid(pool: Pool) -> int:
    number: int = await pool.fetchval("SELECT pg_backend_pid()")
    return number


async def test_a_connection_stays_at_hand(narrow: Pool) -> None:
    assert await pid(narrow) == await pid(narrow)
    assert (narrow.size, narrow.idle) == (1, 1)


async def test_more_callers_than_connections_all_come_through(narrow: Pool) -> None:
    async def transaction(n: int) -> int:
        async with narrow.acquire() as connection, connection.transaction():
            return int(await connection.fetchval("SELECT $1::int + 0 * length(pg_sleep(0.001)::text)", n))

    async def statement(n: int) -> int:
        return int(await narrow.fetchval("SELECT $1::int + 0 * length(pg_sleep(0.001)::text)", n))

    found = await asyncio.gather(*((transaction if n % 2 else statement)(n) for n in range(40)))
    assert found == list(range(40))
    assert narrow.size == narrow.idle == 2


async def test_one_that_was_killed_at_hand_is_not_used_again(narrow: Pool, db: asyncpg.Connection) -> None:
    before = await pid(narrow)
    held = narrow._hand[0]
    await db.execute("SELECT pg_terminate_backend($1)", before)
    await eventually(lambda: not _is_alive(held))
    assert await pid(narrow) != before


async def test_an_error_leaves_it_usable_and_a_cancellation_waits_for_its_end(narrow: Pool) -> None:
    before = await pid(narrow)
    with pytest.raises(asyncpg.DivisionByZeroError):
        await narrow.fetchval("SELECT 1 / 0")
    assert await pid(narrow) == before
    sleeper = asyncio.create_task(narrow.fetchval("SELECT pg_sleep(60)"))
    await eventually(lambda: narrow.idle < narrow.size)
    sleeper.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sleeper
    assert [await narrow.fetchval("SELECT $1::int", n) for n in range(3)] == [0, 1, 2]


async def test_closing_waits_for_what_is_out(dsn: str) -> None:
    pool = await Pool(DatabaseSettings(dsn=dsn)).open()
    await pid(pool)
    async with pool.acquire() as connection:
        closing = asyncio.create_task(pool.close())
        await asyncio.sleep(0)
        assert await connection.fetchval("SELECT 1") == 1
    await closing
    assert pool.size == 0
    with pytest.raises(Unavailable):
        await pid(pool)


async def _link(settings: DatabaseSettings, patience: float | None = None) -> tuple[float, float]:
    """Seconds after which a link is taken for dead: by its probes, by what was sent."""
    async with Pool(settings, patience=patience) as pool, pool.acquire() as connection:
        sock = connection._transport.get_extra_info("socket")
        names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_USER_TIMEOUT")
        idle, interval, limit = (sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    return idle + interval * max(1, math.ceil((limit / 1e3 - idle) / interval)), limit / 1e3


async def test_a_dead_link_is_found_within_twelve_seconds(dsn: str) -> None:
    """F38. At worst its probes are about to tell, and a query stops them and waits for its own time-out: so long for a keeper."""
    probes, sent = await _link(DatabaseSettings(dsn=dsn), SMALL)
    assert probes + sent <= 11.5
    probes, sent = await _link(DatabaseSettings(dsn=dsn))
    assert max(probes, sent) <= 11.5


async def test_a_live_server_may_be_busy_for_as_long_as_its_lock_time_out(dsn: str) -> None:
    """What is sent and not taken in, since a COPY waits for a lock, looks to Linux as if the server were dead."""
    settings = DatabaseSettings(dsn=dsn)
    async with Pool(settings) as pool:
        waits = await pool.fetchval("SELECT extract(epoch FROM current_setting('lock_timeout')::interval)::float8")
    assert (await _link(settings))[1] > waits


async def test_a_migration_that_passes_by_is_worth_another_try(narrow: Pool, db: asyncpg.Connection) -> None:
    """F27: the driver tries again by itself, but once, and not in a transaction; a client must not fail for it."""
    await db.execute("CREATE TABLE dhara.passing (a int)")
    try:
        async with narrow.acquire() as connection:
            await connection.fetch("SELECT * FROM dhara.passing")
            await db.execute("ALTER TABLE dhara.passing ADD COLUMN b int")
            transaction = connection.transaction()
            await transaction.start()
            with pytest.raises(asyncpg.InvalidCachedStatementError) as found:
                await connection.fetch("SELECT * FROM dhara.passing")
            await transaction.rollback()
        assert is_transient(found.value)
    finally:
        await db.execute("DROP TABLE dhara.passing")


async def test_a_copy_ends_with_its_connection(narrow: Pool, db: asyncpg.Connection) -> None:
    """It waits for a row with more to send than anybody takes in, and its link is lost: the driver would not notice."""
    await db.execute("CREATE TABLE dhara.copied (id integer PRIMARY KEY, a text)")
    try:
        async with narrow.acquire() as connection, db.transaction():
            await db.execute("INSERT INTO dhara.copied VALUES (0, '')")  # an uncommitted row in its way
            backend = await connection.fetchval("SELECT pg_backend_pid()")
            rows = ((n, "x" * 28_000) for n in range(2_000))
            copy = connection.copy_records_to_table("copied", schema_name="dhara", records=rows)
            ending = asyncio.create_task(unless_cut(connection, copy))

            async def waits() -> bool:
                query = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $1"
                return bool(await db.fetchval(query, backend)) and connection._transport.get_write_buffer_size() > 0

            await eventually(waits)
            connection._transport.abort()  # as the kernel does with a link that it takes for dead
            with pytest.raises((ConnectionError, asyncpg.PostgresError)) as found:
                await asyncio.wait_for(ending, 5)
        assert is_transient(found.value)
    finally:
        await db.execute("DROP TABLE dhara.copied")


async def test_a_database_that_is_away_is_not_asked_by_everybody(dsn: str) -> None:
    """A few parts of a process ask, each at its own pace: together they try to connect twice a second at most, by this pool."""
    # Without a floor, which the driver would restore by itself, once a second at first.
    async with Proxy(dsn) as proxy, Pool(DatabaseSettings(dsn=proxy.dsn, pool_min=0, pool_max=4)) as pool:
        await pool.fetchval("SELECT 1")
        proxy.close()

        await eventually(lambda: _refused(pool))
        before, begun = proxy.accepted, time.monotonic()
        for _ in range(20):
            await _refused(pool)
        assert proxy.accepted - before <= 2 + (time.monotonic() - begun) / 0.5
        proxy.reopen()

        async def answers() -> bool:
            try:
                return await pool.fetchval("SELECT 1") == 1
            except AWAY:
                return False

        await eventually(answers, 10)


async def test_a_handlers_pool_does_not_rest(dsn: str) -> None:
    """Its failure would be a failed attempt."""
    settings = DatabaseSettings(dsn=dsn, pool_min=0, users=True)
    async with Proxy(dsn) as proxy, Pool(msgspec.structs.replace(settings, dsn=proxy.dsn)) as pool:
        await pool.fetchval("SELECT 1")
        proxy.close()
        await eventually(lambda: _refused(pool))
        assert await _refused(pool)  # the first was told so by a connection that had been open
        proxy.reopen()
        assert await pool.fetchval("SELECT 1") == 1


async def _refused(pool: Pool) -> bool:
    with pytest.raises(AWAY):
        await pool.fetchval("SELECT 1")
    return pool.size == 0
