"""The database restarts, goes away, forgets its sessions: workers wait, reconnect, and lose nothing."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from dhara import AsyncClient
from dhara.embedded import DEBIAN_FOLDERS, EmbeddedPostgres, find_binaries
from dhara.embedded.server import free_port
from dhara.store import migrate
from dhara.store.wakeup import channel
from tests import invariants
from tests.e2e.kit import SHORT, SHORT_LEASE, Facts, Fleet, L, P, R, Stopwatch, pause, state
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300, func_only=True)]

both = pytest.mark.parametrize("own_server", ["default", "15"], indirect=True)
FAST = {"fsync": "off", "full_page_writes": "off"}
OLD = DEBIAN_FOLDERS / "15" / "bin"


@pytest.fixture(scope="module")
def own_server(request: pytest.FixtureRequest) -> Iterator[EmbeddedPostgres]:
    """A server of this module's own, on a port that stays."""
    version = getattr(request, "param", "default")
    if version == "15" and not OLD.is_dir():
        pytest.skip("there is no PostgreSQL 15 on this machine")
    binaries = find_binaries(OLD if version == "15" else None)
    with tempfile.TemporaryDirectory(prefix="dhara-e2e-") as folder:
        Path(folder).chmod(0o711)
        with EmbeddedPostgres(Path(folder) / "data", binaries=binaries, settings=FAST, port=free_port()) as server:
            yield server


@pytest.fixture
async def facts(own_server: EmbeddedPostgres) -> AsyncIterator[Facts]:
    """A fresh database there."""
    admin = await asyncpg.connect(own_server.dsn)
    await admin.execute("DROP DATABASE IF EXISTS work WITH (FORCE)")
    await admin.execute("CREATE DATABASE work")
    await admin.close()
    found = Facts(own_server.dsn.rpartition("/")[0] + "/work")
    await migrate.up(await found.connection())
    yield found
    await found.close()


@pytest.fixture
async def fleet(machine: None, facts: Facts, tmp_path: Path, own_server: EmbeddedPostgres) -> AsyncIterator[Fleet]:
    made = Fleet(facts.dsn, tmp_path)
    try:
        yield made
    finally:
        own_server.start()
        try:
            await made.end()
        finally:
            print(made.logs())


@both
async def test_crash_restarts_of_the_server(fleet: Fleet, facts: Facts, own_server: EmbeddedPostgres) -> None:
    """F16: immediate shutdowns under load; completions go on within seconds, no process ends, nobody is reaped."""
    workers = [fleet.start("--concurrency", "20") for _ in range(2)]
    await facts.until("SELECT count(*) = 2 FROM dhara.workers WHERE beat_seq > 0")
    family = [pid for worker in workers for pid in worker.family]
    ids = await facts.enqueue("sleep", {"seconds": 0.1}, times=1_200)
    for n in range(2):
        await facts.until("SELECT count(*) > $1 FROM dhara.tasks WHERE status = 'COMPLETED'", 200 * (n + 1))
        await asyncio.to_thread(own_server.restart, "immediate")
        watch = Stopwatch()
        done = "SELECT count(*) >= $1 FROM dhara.tasks WHERE status = 'COMPLETED'"
        await facts.until(done, 200 * (n + 1) + 50, timeout=30)
        assert watch() <= 15
    await facts.all_final(ids)
    assert {state(pid) for pid in family} <= {"S", "R", "D"}, "no process has ended"
    assert await facts.states() == {"COMPLETED": 1_200}
    events = await facts.events()
    assert set(events) <= {"RELEASED"}, "claims whose answer was lost, at most"
    assert await facts.one("SELECT sum(attempts - 1) FROM dhara.tasks") == events.get("RELEASED", 0)
    assert not await invariants.violations(await facts.connection(), acknowledged=ids, quiet=True)
    for worker in workers:
        assert await worker.stop() == 0
        assert "Traceback" not in worker.log


async def test_an_outage_longer_than_the_lease(fleet: Fleet, facts: Facts, own_server: EmbeddedPostgres) -> None:
    """F17: results wait in memory and are settled when it is back; 0 reaps of live workers, although all beats are old."""
    settings = SHORT | {"confirm_after": "4s"}  # their beats may come back seconds apart
    workers = [fleet.start("--concurrency", "20", **settings) for _ in range(2)]
    await facts.until("SELECT count(*) = 2 FROM dhara.workers WHERE beat_seq > 0")
    short = await facts.enqueue("sleep", {"seconds": 4}, times=20)
    long = await facts.enqueue("sleep", {"seconds": SHORT_LEASE + 4}, times=15)
    await facts.running(35)
    family = [pid for worker in workers for pid in worker.family]
    used = cpu_seconds(family)
    watch = Stopwatch()
    await asyncio.to_thread(own_server.stop)
    await pause(SHORT_LEASE + 2 * R)
    outage = watch()
    assert (cpu_seconds(family) - used) / outage < 0.05 * len(workers) + 0.05, "nobody spins while it is away"
    await asyncio.to_thread(own_server.start)
    await facts.all_final(short, timeout=30)
    await facts.all_final(long)
    assert await facts.states() == {"COMPLETED": 35}
    assert await facts.events() == {}
    assert await facts.most_attempts() == 1
    fresh = await facts.enqueue("noop", times=100)
    await facts.all_final(fresh, timeout=30)
    assert {state(pid) for pid in family} <= {"S", "R", "D"}
    assert await facts.rows("SELECT DISTINCT state FROM dhara.workers") == [("live",)]
    for worker in workers:
        assert await worker.stop() == 0
        assert "Traceback" not in worker.log


def cpu_seconds(pids: list[int]) -> float:
    """Processor time that these processes have used."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / 100


async def test_sessions_are_terminated(fleet: Fleet, facts: Facts) -> None:
    """F18: every session of the workers, again and again; work goes on."""
    worker = fleet.start("--concurrency", "20")
    await facts.until("SELECT count(*) = 1 FROM dhara.workers WHERE beat_seq > 0")
    ids = await facts.enqueue("sleep", {"seconds": 0.05}, times=800)
    for _ in range(6):
        await facts.one(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name LIKE 'dhara %'"
        )
        await pause(0.5)
    await facts.all_final(ids)
    assert await facts.states() == {"COMPLETED": 800}
    assert set(await facts.events()) <= {"RELEASED"}
    assert not await invariants.violations(await facts.connection(), acknowledged=ids, quiet=True)
    assert await worker.stop() == 0


async def test_a_worker_that_starts_while_the_database_is_away(
    fleet: Fleet, facts: Facts, own_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """At its first start it says so and ends; a runner that comes after a crash waits."""
    gate = tmp_path / "gate"
    worker = fleet.start("--concurrency", "2")
    await facts.until("SELECT count(*) = 1 FROM dhara.workers WHERE beat_seq > 0")
    await facts.enqueue("gate", {"path": str(gate)}, times=2)
    await facts.begun(2)
    await asyncio.to_thread(own_server.stop)
    worker.signal(signal.SIGKILL, *worker.runners)
    gate.touch()
    late = fleet.start("--concurrency", "2")
    assert await late.ended() == 69
    assert "cannot reach the database" in late.log
    assert "Traceback" not in late.log
    await eventually(lambda: "waiting for the database" in worker.log)
    await asyncio.to_thread(own_server.start)
    await facts.all_final(timeout=L + R + P + 10)
    assert await facts.states() == {"COMPLETED": 2}
    assert await facts.events() == {"REAPED": 2}
    assert await worker.stop() == 0


async def test_no_enqueue_fails_for_want_of_room_for_its_wakeup(facts: Facts, own_server: EmbeddedPostgres) -> None:
    """F44: a session that listens and idles in its transaction fills the queue of notifications; every COMMIT that notifies
    fails from then on."""
    db = await facts.connection()
    if own_server.binaries.major < 17:
        pytest.skip("only since PostgreSQL 17 can that queue be small enough for a test")
    await db.execute("ALTER SYSTEM SET max_notify_queue_pages = 64")
    await facts.close()
    own_server.restart()
    db = await facts.connection()
    listener = await asyncpg.connect(facts.dsn)
    try:
        await listener.execute("LISTEN somebody")
        await listener.execute("BEGIN")
        await listener.fetchval("SELECT 1")
        with pytest.raises(asyncpg.PostgresError, match="NOTIFY queue"):
            while True:
                await db.execute(
                    "SELECT pg_notify('somebody', repeat(n::text, 2000)) FROM generate_series(10, 40) AS n"
                )
        assert await db.fetchval("SELECT created FROM dhara.enqueue('t')")
        # As a worker that sleeps.
        await listener.fetchval("SELECT pg_advisory_lock_shared(hashtextextended($1, 0))", channel("dhara", "wakeup"))
        async with AsyncClient(facts.dsn) as client:
            assert (await client.enqueue("t")).created
    finally:
        await listener.close()
        await db.execute("ALTER SYSTEM RESET max_notify_queue_pages")
        await facts.close()
        own_server.restart()
