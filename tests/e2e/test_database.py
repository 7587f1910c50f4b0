"""What happens when the database dies, or is away for longer than a lease: nothing is lost, no live worker is reaped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from dhara.embedded import EmbeddedPostgres
from dhara.store import migrate
from dhara.store.pool import DatabaseSettings, Pool
from tests.conftest import PrivateServer
from tests.e2e.fleet import C, Desk, L, alive, crew
from tests.waiting import eventually

pytestmark = pytest.mark.slow


class OwnServer(PrivateServer):
    """A server that a test may stop, and start again at the same address."""

    @property
    def postgres(self) -> EmbeddedPostgres:
        assert self._postgres is not None
        return self._postgres

    def start_at(self, port: int) -> None:
        """The same data again, at a port that its clients know."""
        settings = {"fsync": "off"}
        self._postgres = EmbeddedPostgres(self.folder / "data", binaries=self.postgres.binaries, settings=settings, port=port)
        self._postgres.start()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[OwnServer]:
    server = OwnServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def own_desk(own_server: OwnServer) -> AsyncIterator[Desk]:
    connection = await asyncpg.connect(own_server.dsn)
    await migrate.up(connection)
    await connection.close()
    async with Pool(DatabaseSettings(dsn=own_server.dsn, pool_min=0)) as pool:
        yield Desk(pool)


async def _answers(desk: Desk) -> bool:
    try:
        return bool(await desk.db.fetchval("SELECT true"))
    except Exception:
        return False


async def test_crash_restarts(own_server: OwnServer, own_desk: Desk) -> None:
    desk = own_desk
    with crew(own_server.dsn, slots=20) as worker:
        await desk.enqueue("nap", '{"s": 0.05}', 2_000)
        everybody = None
        for done in (200, 600, 1_000):
            await eventually(lambda done=done: _completed(desk, done), 60, f"{done} tasks to be done")
            everybody = everybody or worker.everybody()
            await asyncio.to_thread(own_server.postgres.restart, "immediate")
            await eventually(lambda: _answers(desk), 20, "the database to answer")
            start = time.monotonic()
            before = await desk.count("status = 'COMPLETED'")
            await eventually(lambda before=before: _completed(desk, before + 20), 20, "work to go on")
            assert time.monotonic() - start <= 10, "T90: 5 s on an idle machine"
        await desk.until("status = 'COMPLETED'", 2_000, 60)
        assert set(everybody or ()) <= set(alive(worker.everybody())), "no process ended"
    events = await desk.events()
    assert "REAPED" not in events
    await desk.starts_are_explained()


async def _completed(desk: Desk, n: int) -> bool:
    try:
        return await desk.count("status = 'COMPLETED'") >= n
    except Exception:
        return False


async def test_outage_longer_than_a_lease(own_server: OwnServer, own_desk: Desk) -> None:
    """Attempts end while nobody can be told: their outcomes wait, and count once the database is back."""
    desk = own_desk
    with crew(own_server.dsn, slots=20) as worker:
        await desk.enqueue("nap", '{"s": 4}', 20)
        await desk.until("status = 'RUNNING'", 20, 20)
        everybody = worker.everybody()
        port = own_server.postgres.port
        await asyncio.to_thread(own_server.postgres.stop)
        # The outage itself is what is waited for: longer than L + C, so that every beat is stale when it ends.
        await asyncio.sleep(L + C + 1)
        assert set(everybody) == set(alive(everybody)), "no process ended"
        await asyncio.to_thread(own_server.start_at, port)
        await desk.until("status = 'COMPLETED'", 20, 20)
    assert await desk.events() == {"CLAIMED": 20, "COMPLETED": 20}
    await desk.starts_are_explained()
