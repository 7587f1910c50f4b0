"""The database is away for longer than a lease, under load: nothing is lost, nobody is reaped, outcomes arrive late."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from uuid import UUID

import pytest

from dhara.store.pool import Pool
from tests.e2e.engine import engine, marks
from tests.e2e.fleet import Desk, L, R
from tests.invariants import i10, violations
from tests.proxy import Proxy
from tests.waiting import eventually

pytestmark = pytest.mark.slow

# Once the database is back one keeper may look at once, and the other's first beat come seconds later.
CONFIRM = 5.0
AWAY = L + R + CONFIRM + 1


def cpu_seconds(pids: list[int]) -> float:
    """What these processes have used so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / 100


async def test_an_outage_longer_than_the_lease(dsn: str, pool: Pool, tmp_path: Path) -> None:
    desk = Desk(pool)
    confirm = f"{CONFIRM}s"
    async with Proxy(dsn) as proxy, Proxy(dsn) as other_proxy:
        with (
            engine(proxy.dsn, slots=40, marks=tmp_path, DHARA_CONFIRM_AFTER=confirm) as one,
            engine(other_proxy.dsn, slots=40, marks=tmp_path, DHARA_CONFIRM_AFTER=confirm) as other,
        ):
            ids = await desk.enqueue("sleep", '{"seconds": 1.5}', n=60)
            await eventually(lambda: all(marks(tmp_path, "start", id) for id in ids), 30, "all to run")
            started = await desk.enqueue("innocent", n=500)
            proxy.close()
            other_proxy.close()
            gone, processes = time.monotonic(), [*one.everybody(), *other.everybody()]
            await eventually(
                lambda: all(marks(tmp_path, "end", id) for id in ids), 30, "all to end, without a database"
            )
            at, used = proxy.accepted, cpu_seconds(processes)
            settled = time.monotonic()
            await asyncio.sleep(max(0.0, gone + AWAY - time.monotonic()))
            seconds = time.monotonic() - settled
            connects, busy = proxy.accepted - at, cpu_seconds(processes) - used
            assert {*one.everybody(), *other.everybody()} >= set(processes), "one has ended"
            before = await desk.count("status = 'COMPLETED'")
            proxy.reopen()
            other_proxy.reopen()
            await desk.until_final(60)
            assert {*one.everybody(), *other.everybody()} >= set(processes), "one has ended"
    print(
        f"{connects / seconds:.1f} connects/s, {busy / seconds / len(processes):.1%} CPU per process while it was away"
    )
    # Supervisor and nursery never connect; keeper and runner do, at most twice a second each.
    assert connects / seconds <= 2 * 2
    assert busy / seconds / 2 < 0.25
    assert before < len(ids) + len(started)
    events = await desk.events()
    assert "REAPED" not in events
    healthy = [row[0] for row in await pool.fetch("SELECT id FROM dhara.workers")]
    assert await i10(pool, L, healthy) == []
    assert "SETTLE_REJECTED" not in events
    assert await desk.count("failures > 0 OR crashes > 0") == 0
    # Each ran once; but for claims whose answers were cut off, which are released.
    ran = {id: len(marks(tmp_path, "end", id)) for id in ids}
    assert ran == dict.fromkeys(ids, 1)
    assert await desk.count("status <> 'COMPLETED'") == 0
    everything: list[UUID] = [*ids, *started]
    assert await violations(pool, acknowledged=everything, asked=everything, quiet=True) == {}
    await desk.starts_are_explained()
