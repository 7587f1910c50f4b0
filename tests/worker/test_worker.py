"""`Worker`, as users have it in their own code: on their loop, with a keeper of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from dhara import ConfigError, Registry, SchemaError, Unavailable, Worker
from dhara.domain.lifecycle import State
from dhara.store.workers import Workers
from tests.conftest import LEAN
from tests.e2e.kit import children, is_keeper
from tests.factories import Connection
from tests.waiting import Signal, eventually
from tests.worker.kit import Desk

SETTINGS: dict[str, Any] = {"poll_interval": 0.2, "heartbeat_interval": 0.2, "stale_after": 2, "shutdown_timeout": 5}


def keepers() -> list[int]:
    """Living keepers of this process."""
    return [pid for pid in children(os.getpid()) if is_keeper(pid)]


def _registry() -> tuple[Registry, Signal]:
    tasks, started = Registry(), Signal("started")

    @tasks.task("add")
    async def add(a: int, b: int) -> int:
        return a + b

    @tasks.task("long")
    async def long() -> None:
        started.fire()
        await asyncio.sleep(60)

    return tasks, started


async def test_on_the_caller_s_own_loop(dsn: str, desk: Desk, db: Connection) -> None:
    tasks, _ = _registry()
    async with Worker(dsn, tasks, concurrency=3, **SETTINGS) as worker:
        task = await desk.final(await desk.one("add", {"a": 1, "b": 2}))
        assert (task.status, task.result) == (State.COMPLETED, "3")
        row = await db.fetchrow("SELECT id, pid, slots, queues::text, types, state FROM dhara.workers")
        assert row is not None
        assert tuple(row) == (worker.runner.id, os.getpid(), 3, '{"*":3}', ["add", "long"], "live")

        async def beaten() -> bool:
            return bool(await db.fetchval("SELECT beat_seq >= 2 FROM dhara.workers"))

        await eventually(beaten)
        assert len(keepers()) == 1
    assert keepers() == []
    assert await db.fetchval("SELECT state FROM dhara.workers") == "stopped"
    with pytest.raises(RuntimeError, match="not running"):
        _ = worker.runner


async def test_what_still_runs_is_given_back_at_the_end(dsn: str, desk: Desk) -> None:
    tasks, started = _registry()
    async with Worker(dsn, tasks, **SETTINGS) as worker:
        id = await desk.one("long")
        await started.wait()
        await worker.drain(0.1)
    assert await desk.events(id) == ["ENQUEUED", "CLAIMED", "RELEASED"]
    assert keepers() == []


async def test_an_error_in_the_block_ends_it_in_order(dsn: str, desk: Desk) -> None:
    tasks, started = _registry()
    ids = []

    async def work() -> None:
        async with Worker(dsn, tasks, **SETTINGS | {"shutdown_timeout": 0.1}):
            ids.append(await desk.one("long"))
            await started.wait()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await work()
    assert (await desk.tasks.get(ids[0])).status is State.PENDING
    assert keepers() == []


async def test_a_block_that_ends_at_once(dsn: str) -> None:
    tasks, _ = _registry()
    for _ in range(2):
        async with Worker(dsn, tasks, **SETTINGS):
            pass
        assert keepers() == []


async def test_a_block_that_is_cancelled(dsn: str, desk: Desk) -> None:
    tasks, started = _registry()

    async def work() -> None:
        async with Worker(dsn, tasks, **SETTINGS | {"shutdown_timeout": 30}):
            await asyncio.sleep(60)

    task = asyncio.create_task(work())
    id = await desk.one("long")
    await started.wait()
    task.cancel()
    await asyncio.sleep(0.2)
    task.cancel()  # it drains, with a long grace: whoever cannot wait cancels again
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 30)
    await eventually(lambda: keepers() == [])
    assert (await desk.tasks.get(id)).failures == 0


async def test_another_keeper_when_it_dies(dsn: str, db: Connection, caplog: pytest.LogCaptureFixture) -> None:
    tasks, _ = _registry()
    async with Worker(dsn, tasks, **SETTINGS):
        (keeper,) = await eventually(keepers)
        os.kill(keeper, signal.SIGKILL)
        await eventually(lambda: keepers() not in ([], [keeper]))
        beats = await db.fetchval("SELECT beat_seq FROM dhara.workers")

        async def beaten() -> bool:
            return bool(await db.fetchval("SELECT beat_seq > $1 FROM dhara.workers", beats))

        await eventually(beaten)
    assert "the keeper ended; starting another" in caplog.text
    assert keepers() == []


async def test_what_cannot_start_leaves_nothing_behind(dsn: str, empty_dsn: str) -> None:
    tasks, _ = _registry()
    with pytest.raises(Unavailable, match="cannot reach the database"):
        async with Worker("postgresql://postgres@127.0.0.1:1/none", tasks, connect_timeout=1):
            pass
    with pytest.raises(SchemaError):
        async with Worker(empty_dsn, tasks):
            pass

    @tasks.lifespan
    async def broken() -> Any:
        raise OSError("no resources")
        yield

    with pytest.raises(ConfigError, match="no resources"):
        async with Worker(dsn, tasks, **SETTINGS):
            pass
    assert keepers() == []


def test_what_it_refuses() -> None:
    tasks, _ = _registry()
    with pytest.raises(ConfigError, match="no handlers"):
        Worker("postgresql://x/y", Registry())
    with pytest.raises(ConfigError, match="did you mean stale_after"):
        Worker("postgresql://x/y", tasks, stale_afte=3)
    with pytest.raises(ConfigError, match="less than a third"):
        Worker("postgresql://x/y", tasks, heartbeat_interval=10, stale_after=12)


async def test_slots_by_queue(dsn: str, desk: Desk, db: Connection) -> None:
    """Without `concurrency` there are as many slots as the queues have together."""
    tasks, _ = _registry()
    async with Worker(dsn, tasks, queues={"mail": 2, "sms": 1}, **SETTINGS):
        row = await db.fetchrow("SELECT slots, queues::text FROM dhara.workers")
        assert row is not None
        assert tuple(row) == (3, '{"mail":2,"sms":1}')
        served = await desk.one("add", {"a": 1, "b": 1}, queue="mail")
        other = await desk.one("add", {"a": 1, "b": 1}, queue="other")
        assert (await desk.final(served)).status is State.COMPLETED
        assert (await desk.tasks.get(other)).status is State.PENDING


async def test_an_operator_drains_it(dsn: str, desk: Desk, db: Connection) -> None:
    tasks, _ = _registry()
    async with Worker(dsn, tasks, **SETTINGS) as worker:
        await Workers(db).ask_drain(worker.runner.id, "somebody")
        await eventually(lambda: worker.runner.draining)
        waits = await desk.one("add", {"a": 1, "b": 1})
    assert (await desk.tasks.get(waits)).status is State.PENDING


@pytest.mark.slow
async def test_run_blocks_and_handles_signals(dsn: str, desk: Desk, tmp_path: Path) -> None:
    """A script's own registry, in `__main__`: forked, so nothing has to be importable."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            from dhara import Registry, Worker

            tasks = Registry()

            @tasks.task("double")
            def double(n: int) -> int:
                return 2 * n

            if __name__ == "__main__":
                code = Worker(sys.argv[1], tasks, concurrency=2, processes=2, heartbeat_interval=1, stale_after=6).run()
                print("ended with", code)
            """
        )
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DHARA_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(LEAN), *filter(None, sys.path)])
    popen = subprocess.Popen(
        [sys.executable, str(script), dsn], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        done = await desk.all_final([await desk.one("double", {"n": n}) for n in range(20)])
        assert [task.result for task in done] == [str(2 * n) for n in range(20)]
        popen.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        output, _ = await asyncio.to_thread(popen.communicate, timeout=60)
        assert time.monotonic() - begun < 30
        assert popen.returncode == 0
        assert "ended with 0" in output.decode()
        assert "Traceback" not in output.decode()
    finally:
        popen.kill()
        popen.wait()
