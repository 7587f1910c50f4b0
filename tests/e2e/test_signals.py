"""C16: the first signal drains, the second releases, and nothing that handlers do keeps a worker from its end."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import httpx
import pytest

from dhara.api.asgi import create_app
from dhara.settings import Settings
from dhara.store.keys import Keys
from dhara.store.pool import Pool
from dhara.store.wakeup import Notifier
from dhara.store.workers import Workers
from tests import invariants
from tests.e2e.kit import Facts, Fleet, Stopwatch, WorkerProcess
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300, func_only=True)]

RELEASED = "SELECT count(*) FROM dhara.task_logs WHERE event = 'RELEASED'"


async def ready(facts: Facts, workers: int = 1) -> None:
    """Return once so many workers beat."""
    await facts.until("SELECT count(*) = $1 FROM dhara.workers WHERE beat_seq > 0", workers)


async def assert_nobody_failed(facts: Facts) -> None:
    blamed = "SELECT count(*) FROM dhara.tasks WHERE failures > 0 OR crashes > 0 OR status = 'DEAD'"
    assert await facts.one(blamed) == 0
    assert not await invariants.violations(await facts.connection())


async def test_sigterm_under_load(fleet: Fleet, facts: Facts) -> None:
    """F10: exit 0 within the longest task, no failure counted, nothing claimed any more."""
    # With work for much longer than the look at late claims, and a grace that is longer still: claims that went on would show.
    worker = fleet.start("--concurrency", "20", "--processes", "2", shutdown_timeout="30s")
    await ready(facts, 2)
    await facts.enqueue("sleep", {"seconds": 0.3}, times=2_000)
    await facts.enqueue("noop", times=4_000, queue="other")
    await facts.until("SELECT count(*) > 300 FROM dhara.tasks WHERE status = 'COMPLETED'")
    at = await facts.now()
    watch = Stopwatch()
    assert await worker.stop() == 0
    assert watch() < 15, "it was not killed"
    late = "SELECT count(*) FROM dhara.task_logs WHERE event = 'CLAIMED' AND at > $1::timestamptz + interval '5 s'"
    assert await facts.one(late, at) == 0
    states = await facts.states()
    assert states.get("RUNNING") is None
    assert states.get("PENDING", 0) > 0, "there was more to do"
    await assert_nobody_failed(facts)
    assert await facts.rows("SELECT DISTINCT state FROM dhara.workers") == [("stopped",)]
    assert "Traceback" not in worker.log


@pytest.mark.parametrize("kind", ["sync.sleep", "deaf", "block", "hold.pow"])
async def test_a_stubborn_handler_keeps_nobody(fleet: Fleet, facts: Facts, kind: str) -> None:
    """F11: released at G, without blame; the process is gone by G + 2 s; it runs again elsewhere at once."""
    grace = 1.0
    worker = fleet.start("--concurrency", "5", shutdown_timeout="1s")
    await ready(facts)
    (id,) = await facts.enqueue(kind, {"seconds": 60})
    await facts.running(1)
    if kind in ("block", "hold.pow"):
        await eventually(lambda: "stood still" in worker.log or kind == "hold.pow")
    watch = Stopwatch()
    assert await worker.stop() == 0
    assert watch() < grace + 39, "it waited for the handler"
    row = await facts.rows("SELECT status, failures, crashes, attempts FROM dhara.tasks WHERE id = $1", id)
    assert row == [("PENDING", 0, 0, 1)]
    assert await facts.one(RELEASED) == 1
    if kind == "sync.sleep":
        await facts.one("UPDATE dhara.tasks SET payload = '{\"seconds\": 0}' RETURNING id")
        fleet.start("--concurrency", "5")
        await facts.all_final()
        assert await facts.most_attempts() == 2


@pytest.mark.parametrize(("first", "second"), [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGHUP)])
async def test_the_second_signal_releases(fleet: Fleet, facts: Facts, first: int, second: int) -> None:
    """F12: gone within three seconds, everything given back; the exit code tells which signal it was."""
    worker = fleet.start("--concurrency", "10", shutdown_timeout="60s")  # it is not the grace that ends it
    await ready(facts)
    await facts.enqueue("sleep", {"seconds": 30}, times=8)
    await facts.enqueue("sync.sleep", {"seconds": 30}, times=2)
    await facts.begun(10)
    worker.signal(first)
    await facts.until("SELECT bool_and(state = 'draining') FROM dhara.workers")
    watch = Stopwatch()
    worker.signal(second)
    assert await worker.ended() == 128 + second
    assert watch() < 15
    assert await facts.states() == {"PENDING": 10}
    assert await facts.one(RELEASED) == 10
    await assert_nobody_failed(facts)
    assert "Traceback" not in worker.log


async def test_signals_to_the_very_end(fleet: Fleet, facts: Facts) -> None:
    """However late another one comes, the exit code is a documented one, not that of a process that a signal killed."""
    worker = fleet.start("--concurrency", "2")
    await ready(facts)
    # The first two together, whatever may hold this process up between later ones; by two numbers, since of one number's
    # signals that wait to be heard there is only one.
    worker.signal(signal.SIGINT)
    while worker.popen.poll() is None:
        worker.signal(signal.SIGTERM)
        await asyncio.sleep(0.002)
    assert worker.popen.returncode == 128 + signal.SIGTERM


async def test_ctrl_c_reaches_the_group_and_drains_once(fleet: Fleet, facts: Facts, tmp_path: Path) -> None:
    """A terminal sends SIGINT to the whole foreground group: one Ctrl-C is one signal, two are two."""
    gate = tmp_path / "gate"
    worker = fleet.start("--concurrency", "5", shutdown_timeout="30s")
    await ready(facts)
    await facts.enqueue("gate", {"path": str(gate)}, times=5)
    await facts.begun(5)
    os.killpg(worker.pid, signal.SIGINT)
    await facts.until("SELECT bool_or(state = 'draining') FROM dhara.workers")
    gate.touch()
    assert await worker.ended() == 0
    assert await facts.states() == {"COMPLETED": 5}
    again = fleet.start("--concurrency", "5", shutdown_timeout="60s")
    await facts.enqueue("sleep", {"seconds": 30}, times=5)
    await facts.begun(5)
    os.killpg(again.pid, signal.SIGINT)
    await facts.until("SELECT bool_or(state = 'draining') FROM dhara.workers")
    os.killpg(again.pid, signal.SIGINT)
    assert await again.ended() == 130
    assert await facts.one(RELEASED) == 5
    for log in (worker.log, again.log):
        assert "Traceback" not in log
        assert "KeyboardInterrupt" not in log


async def test_a_signal_to_every_process_is_one_signal(fleet: Fleet, facts: Facts, tmp_path: Path) -> None:
    """As service managers send it: it must not count as the second one."""
    gate = tmp_path / "gate"
    worker = fleet.start("--concurrency", "5", "--processes", "2", shutdown_timeout="30s")
    await ready(facts, 2)
    await facts.enqueue("gate", {"path": str(gate)}, times=10)
    await facts.begun(10)
    worker.signal(signal.SIGTERM, *worker.family)
    await facts.until("SELECT bool_and(state = 'draining') FROM dhara.workers")
    gate.touch()
    assert await worker.ended() == 0
    assert await facts.states() == {"COMPLETED": 10}
    assert await facts.most_attempts() == 1
    await assert_nobody_failed(facts)


async def test_a_signal_at_any_moment_of_the_start(fleet: Fleet, facts: Facts) -> None:
    """Whenever it comes, the worker ends by it, and leaves nothing behind."""
    workers: list[WorkerProcess] = []
    for n in range(6):
        worker = fleet.start("--concurrency", "2")
        await asyncio.sleep(0.15 * n)
        worker.signal(signal.SIGTERM)
        workers.append(worker)
        code = await worker.ended()
        assert code in (0, -signal.SIGTERM), worker.log
        assert "Traceback" not in worker.log
    await facts.until("SELECT count(*) = 0 FROM dhara.workers WHERE state IN ('live', 'draining')", timeout=30)


async def test_rolling_restart(fleet: Fleet, facts: Facts) -> None:
    """F13: one worker after the other is replaced under load; nobody fails, nothing runs twice for it."""
    workers = [fleet.start("--concurrency", "10") for _ in range(2)]
    await ready(facts, 2)
    ids = await facts.enqueue("sleep", {"seconds": 0.05}, times=600)
    for worker in list(workers):
        workers.append(fleet.start("--concurrency", "10"))
        assert await worker.stop() == 0
    await facts.all_final(ids)
    assert await facts.states() == {"COMPLETED": 600}
    released = await facts.one(RELEASED)
    assert await facts.one("SELECT sum(attempts - 1) FROM dhara.tasks") == released
    await assert_nobody_failed(facts)


async def test_an_operator_s_drain(fleet: Fleet, facts: Facts, pool: Pool) -> None:
    """One runner of two leaves, over HTTP with a key that may operate, and none takes its place; with the last the worker exits 0.
    What ran has run to its end, beyond the grace of a SIGTERM."""
    worker = fleet.start("--concurrency", "2", "--processes", "2", shutdown_timeout="200ms")
    await ready(facts, 2)
    await facts.enqueue("sleep", {"seconds": 5}, times=4)
    await facts.running(4)
    (first,), (second,) = await facts.rows("SELECT id FROM dhara.workers ORDER BY id")
    reader, operator = [(await Keys(pool).create(scope, [scope])).text for scope in ("read", "operate")]
    app = create_app(pool=pool, settings=Settings(), notifier=Notifier(pool))
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8080")
    async with app.router.lifespan_context(app), client:
        for key, status in ((reader, 403), (operator, 200)):
            answer = await client.post(f"/api/v1/workers/{first}/drain", headers={"authorization": f"Bearer {key}"})
            assert answer.status_code == status
    state = "SELECT state = $2 FROM dhara.workers WHERE id = $1"
    await facts.until(state, first, "draining")
    await facts.until(state, first, "stopped")
    (later,) = await facts.enqueue("noop")
    await facts.all_final([later])
    assert await facts.rows("SELECT locked_by FROM dhara.tasks WHERE id = $1", later) == [(second,)]
    await eventually(lambda: len(worker.runners) == 1)
    assert worker.popen.poll() is None
    await Workers(pool).ask_drain(second, "somebody")  # without a hint: the beat's answer brings it
    assert await worker.ended() == 0
    assert await facts.states() == {"COMPLETED": 5}
    assert await facts.most_attempts() == 1
    assert await facts.rows("SELECT DISTINCT state FROM dhara.workers") == [("stopped",)]
    assert await facts.rows("SELECT actor, target FROM dhara.audit_log WHERE action = 'worker.drain' ORDER BY seq") == [
        ("operate", str(first)),
        ("somebody", str(second)),
    ]
    await assert_nobody_failed(facts)
