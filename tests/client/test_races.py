"""Many clients, one key; and connections that are lost when it matters most."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import pytest

from dhara import AsyncClient, IdempotencyConflict, Unavailable
from dhara.store.pool import Pool


async def test_one_key_from_many_clients_is_one_task(dsn: str, pool: Pool) -> None:
    clients = [await AsyncClient(dsn, pool_max=2).open() for _ in range(5)]
    try:
        for key in ("a", "b", "c"):
            handles = await asyncio.gather(
                *(client.enqueue("t", {"key": key}, idempotency_key=key) for client in clients for _ in range(8))
            )
            assert len({handle.id for handle in handles}) == 1
            assert Counter(handle.created for handle in handles)[True] == 1
    finally:
        await asyncio.gather(*(client.close() for client in clients))
    assert await pool.fetchval("SELECT count(*) FROM dhara.tasks") == 3


async def test_one_key_with_many_payloads_has_one_winner(dsn: str) -> None:
    clients = [await AsyncClient(dsn, pool_max=2).open() for _ in range(5)]
    try:
        answers = await asyncio.gather(
            *(client.enqueue("t", {"n": n}, idempotency_key="k") for n, client in enumerate(clients)),
            return_exceptions=True,
        )
    finally:
        await asyncio.gather(*(client.close() for client in clients))
    conflicts = [answer for answer in answers if isinstance(answer, IdempotencyConflict)]
    assert len(conflicts) == 4
    winner = next(answer for answer in answers if not isinstance(answer, BaseException))
    assert {conflict.existing for conflict in conflicts} == {winner.id}


async def test_batches_with_the_same_keys_in_any_order_end_well(dsn: str, pool: Pool) -> None:
    async with AsyncClient(dsn, pool_max=4) as client:
        items = [{"type": "t", "payload": n, "idempotency_key": f"k{n}"} for n in range(200)]
        batches = await asyncio.gather(*(client.enqueue_many(items[::step]) for step in (1, -1, 1, -1)))
    assert len({handle.id for batch in batches for handle in batch}) == 200
    assert sum(handle.created for batch in batches for handle in batch) == 200
    assert await pool.fetchval("SELECT count(*) FROM dhara.tasks") == 200


async def test_a_backend_killed_at_its_commit(dsn: str, pool: Pool) -> None:
    """The transaction dies with its connection; the client tries again and the task is there once."""
    await pool.execute("CREATE TABLE killed (n int)")
    await pool.execute(
        """CREATE FUNCTION kill_once() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            -- A sequence survives the rollback, so this strikes just once.
            IF nextval('strikes') = 1 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;
            RETURN NULL;
        END $$"""
    )
    await pool.execute("CREATE SEQUENCE strikes")
    await pool.execute(
        "CREATE CONSTRAINT TRIGGER kill AFTER INSERT ON dhara.tasks DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION kill_once()"
    )
    async with AsyncClient(dsn) as client:
        handle = await client.enqueue("t", {"n": 1})
        assert handle.created
        await pool.execute("SELECT setval('strikes', 1, false)")
        handles = await client.enqueue_many([{"type": "t"}] * 3)
    assert len(handles) == 3
    assert await pool.fetchval("SELECT count(*) FROM dhara.tasks") == 4


class Cutter:
    """A proxy before PostgreSQL that, armed, swallows the answer to the next commit and hangs up.

    What was asked for is done, but nobody knows.
    """

    def __init__(self, dsn: str) -> None:
        self._target = urlsplit(dsn)
        self.armed = False
        self.cuts = 0
        self._pumps: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Cutter:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    @property
    def dsn(self) -> str:
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        user = self._target.netloc.rpartition("@")[0]
        return self._target._replace(netloc=f"{user}@127.0.0.1:{port}").geturl()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(self._target.hostname, self._target.port or 5432)
        for pump in (self._up(reader, up_writer), self._down(up_reader, writer, up_writer)):
            task = asyncio.create_task(pump)
            self._pumps.add(task)
            task.add_done_callback(self._pumps.discard)

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, up: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                # ReadyForQuery, idle: whatever was asked for is committed.
                if self.armed and data.endswith(b"Z\x00\x00\x00\x05I"):
                    self.armed = False
                    self.cuts += 1
                    break
                if not self.armed:
                    writer.write(data)
                    await writer.drain()
        writer.close()
        up.close()


async def test_a_commit_whose_answer_is_lost(dsn: str, pool: Pool) -> None:
    if urlsplit(dsn).hostname is None:
        pytest.skip("the server has no TCP address")
    async with Cutter(dsn) as cutter, AsyncClient(cutter.dsn, pool_max=1, wakeups=False) as client:
        await client.enqueue(
            "warm", idempotency_key="k"
        )  # From now on the statement is prepared: one round trip an enqueue.
        cutter.armed = True
        handle = await client.enqueue("t", {"n": 1}, idempotency_key="k")
        assert (cutter.cuts, handle.created) == (1, True)
        again = await client.enqueue("t", {"n": 1}, idempotency_key="k")
        assert (again.id, again.created) == (handle.id, False)
    assert await pool.fetchval("SELECT count(*) FROM dhara.tasks WHERE type = 't'") == 1


async def test_patience_has_an_end(dsn: str, pool: Pool) -> None:
    async with AsyncClient(dsn, patience=0.2, wakeups=False) as client:
        await client.enqueue("t")
        await pool.execute("ALTER TABLE dhara.tasks RENAME TO away")
        await pool.execute(
            """CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$"""
        )
        await pool.execute("CREATE TRIGGER die BEFORE INSERT ON dhara.away FOR EACH STATEMENT EXECUTE FUNCTION die()")
        await pool.execute("ALTER TABLE dhara.away RENAME TO tasks")
        with pytest.raises(Unavailable):
            await client.enqueue("t")
    assert await pool.fetchval("SELECT count(*) FROM dhara.tasks") == 1
