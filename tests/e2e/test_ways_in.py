"""Every way to enqueue, with two workers of which one dies as a whole, and a server that dies under its clients.

The worker that dies is blocked at that moment by one of its handlers; its watchdog has said by which.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from typing import Any

import pytest

from dhara import AsyncClient, Client
from dhara.embedded.server import free_port
from tests import invariants
from tests.drivers import ASYNC, SYNC
from tests.e2e.kit import SHORT, Facts, Fleet
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300, func_only=True)]


class Rollback(Exception):
    """Raised inside a transaction to end it."""


async def _by_each_driver(dhara: AsyncClient, dsn: str) -> list[Any]:
    """One task by each driver's transaction that commits; those of the others must never run."""
    ids = []
    for through in ASYNC.values():
        async with through(dsn) as connection:
            ids.append((await dhara.enqueue_tx(connection, "steady")).id)
        with suppress(Rollback):
            async with through(dsn) as connection:
                await dhara.enqueue_tx(connection, "brief")
                raise Rollback
    return ids + await asyncio.to_thread(_by_each_sync_driver, dsn)


def _by_each_sync_driver(dsn: str) -> list[Any]:
    ids = []
    with Client(dsn, pool_max=1) as dhara:
        for through in SYNC.values():
            with through(dsn) as connection:
                ids.append(dhara.enqueue_tx(connection, "steady").id)
            with suppress(Rollback), through(dsn) as connection:
                dhara.enqueue_tx(connection, "brief")
                raise Rollback
    return ids


async def test_every_way_in_outlives_deaths(fleet: Fleet, facts: Facts, dsn: str) -> None:
    victim = fleet.start("--concurrency", "40", module="tests.e2e.features", **SHORT)
    port = free_port()
    server = await fleet.serve(port)
    # As patient as the wait for the server that comes back.
    async with AsyncClient(dsn, pool_max=2) as dhara, AsyncClient(f"http://127.0.0.1:{port}", patience=60) as remote:
        doomed = await _by_each_driver(dhara, dsn)
        doomed.append((await remote.enqueue("steady")).id)
        doomed.append(await facts.one("SELECT * FROM dhara.enqueue('steady', '{}')"))
        # So many go by COPY; one that is not brief among them is caught by the death, too.
        copied = await dhara.enqueue_many([{"type": "steady" if n == 300 else "brief"} for n in range(600)])
        doomed.append(copied[300].id)
        running = "SELECT count(*) = $1 FROM dhara.tasks WHERE status = 'RUNNING' AND progress IS NOT NULL"
        await facts.until(running, len(doomed))

        # The server dies under its clients, whose calls go on by themselves: with the same keys, so there is no task twice.
        async def post(n: int) -> Any:
            return (await remote.enqueue("brief", queue="remote")).id

        posted = [asyncio.create_task(post(n)) for n in range(200)]
        await asyncio.wait(posted, return_when=asyncio.FIRST_COMPLETED)
        server.signal(signal.SIGKILL, *server.family)
        await server.ended()
        await fleet.serve(port)
        acknowledged = await asyncio.gather(*posted)
        assert len(set(acknowledged)) == 200
        assert await facts.one("SELECT count(*) FROM dhara.tasks WHERE queue = 'remote'") == 200

        # Else the blocker could stop the loop before their outcomes are written.
        await facts.until("SELECT count(*) = 799 FROM dhara.tasks WHERE type = 'brief' AND status = 'COMPLETED'")
        blocker = (await dhara.enqueue("blocker")).id
        await eventually(
            lambda: f"task {blocker} (blocker) holds it" in victim.log, what="the watchdog to name the task"
        )
        other = fleet.start("--concurrency", "40", module="tests.e2e.features", **SHORT)
        await facts.until("SELECT count(*) = 2 FROM dhara.workers WHERE beat_seq > 0")
        victim.signal(signal.SIGKILL, *victim.family)
        await victim.ended()
        doomed.append(blocker)
        await facts.all_final()

        assert await facts.states() == {"COMPLETED": len(doomed) + 599 + 200}
        twice = await facts.rows("SELECT id, attempts, crashes FROM dhara.tasks WHERE attempts <> 1")
        assert {row[0]: row[1:] for row in twice} == dict.fromkeys(doomed, (2, 1))
        assert await facts.events() == {"REAPED": len(doomed)}
    assert await other.stop() == 0
    assert not await invariants.violations(await facts.connection())
