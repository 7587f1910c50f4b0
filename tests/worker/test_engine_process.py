"""`executor="process"` inside `async with Worker`: real children, killed, crashed and crowded.

Under `dhara worker`, where the nursery is forked: tests/e2e/test_engine_processes.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dhara import Context, Registry, Worker
from dhara.domain.lifecycle import State
from dhara.errors import ConfigError
from dhara.worker.nursery import Nursery
from tests import factories
from tests.waiting import eventually
from tests.worker import engine_handlers
from tests.worker.kit import Desk


@asynccontextmanager
async def working(dsn: str, registry: Registry = engine_handlers.tasks, **settings: Any) -> AsyncIterator[Worker]:
    """A worker in this process, with a keeper and a nursery; releases what still runs at the end."""
    values: dict[str, Any] = {"concurrency": 8, "poll_interval": 0.5, "heartbeat_interval": 1, "kill_grace": 60}
    async with Worker(dsn, registry, **values | settings) as worker:
        try:
            yield worker
        finally:
            await worker.drain(0)


def nursery_of(worker: Worker) -> Nursery:
    found = worker.runner.slots._nursery
    assert found is not None
    return found


def exists(pid: int) -> bool:
    """True if the process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def messages(attempt: Any) -> list[str]:
    return [line["message"] for line in json.loads(attempt.logs or "[]")]


async def test_handlers_run_in_children_of_the_nursery(dsn: str, desk: Desk) -> None:
    async with working(dsn) as worker:
        nursery = nursery_of(worker)
        ids = [await desk.one(type) for type in ("process", "process.async")]
        done = await desk.all_final(ids)
        attempts = [(await desk.attempts(id))[0] for id in ids]
    for task, attempt in zip(done, attempts, strict=True):
        result = json.loads(task.result or "")
        assert result["parent"] == nursery.pid != os.getpid()
        assert result["pid"] not in (nursery.pid, os.getpid())
        # The lifespan is entered in the child, and so are all kinds of middleware.
        assert result["state"] == {"pool": 7, "pid": result["pid"]}
        assert json.loads(task.progress or "") == {"percent": 40.0, "message": "working"}
        assert messages(attempt) == [
            "around begins", f"within begins in {result['pid']}", "in the child", "around ends",
        ]  # fmt: skip
    assert not exists(nursery.pid)


# how a child ends -> what is said of it
CRASHES = {
    "segfault": "signal SIGSEGV",
    "exit": "exit code 3",
    "exit 0": "exit code 0",
    "kill": "signal SIGKILL",
    "real-time": "signal 37",
}
EXCEPTIONS = {"raise": "ValueError: an ordinary one", "sys.exit": "SystemExit: 4", "memory": "MemoryError: "}


async def test_a_dying_child_fails_only_its_task(dsn: str, desk: Desk) -> None:
    async with working(dsn) as worker:
        nursery = nursery_of(worker).pid
        others = await desk.enqueue("process", {"seconds": 0.3}, times=4)
        ids = {how: await desk.one("process.end", {"how": how}, max_retries=1) for how in CRASHES}
        poison = await desk.one("process.end", {"how": "segfault"}, max_retries=20)
        tasks = dict(zip(ids, await desk.all_final(list(ids.values())), strict=True))
        attempts = {how: await desk.attempts(id) for how, id in ids.items()}
        done, buried = await desk.all_final(others), await desk.final(poison)
        assert nursery_of(worker).pid == nursery
    for how, task in tasks.items():
        assert (task.status, task.reason, task.failures, task.crashes) == (State.DEAD, "exhausted", 2, 2), how
        assert task.last_error == f"the process that ran it ended: {CRASHES[how]}"
        assert [attempt.outcome for attempt in attempts[how]] == ["RETRIED", "DEAD"]
        # The last words of each attempt are kept.
        assert all(f"about to end by {how}" in messages(attempt) for attempt in attempts[how])
    assert (buried.status, buried.reason, buried.attempts, buried.crashes) == (State.DEAD, "poison", 3, 3)
    assert {(other.status, other.attempts) for other in done} == {(State.COMPLETED, 1)}


async def test_an_exception_in_a_child_is_an_ordinary_failure(dsn: str, desk: Desk) -> None:
    async with working(dsn):
        for how, says in EXCEPTIONS.items():
            id = await desk.one("process.end", {"how": how}, max_retries=0)
            task = await desk.final(id)
            assert (task.status, task.failures, task.crashes, task.last_error) == (State.DEAD, 1, 0, says)
            assert "in process_end" in (await desk.error(id))["traceback"]


async def test_a_time_out_kills(dsn: str, desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKS", str(tmp_path))
    async with working(dsn):
        id = await desk.one("process.hang", max_retries=0)
        task = await desk.final(id)
        (line,) = (tmp_path / f"start-{id}").read_text().splitlines()
        # Dead before its outcome is written, not some time later.
        assert not exists(int(line.split()[2]))
    assert (task.status, task.failures, task.crashes, task.last_error) == (State.DEAD, 1, 0, "timed out after 2 s")
    (attempt,) = await desk.attempts(id)
    assert attempt.ended_at is not None
    assert 2 <= (attempt.ended_at - attempt.started_at).total_seconds() < 15


async def test_a_cancellation_kills_within_a_second(
    dsn: str, desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARKS", str(tmp_path))
    async with working(dsn):
        id = await desk.one("process.family")
        mark = tmp_path / f"start-{id}"
        await eventually(lambda: mark.exists() and mark.read_text())
        loop = asyncio.get_running_loop()
        asked = loop.time()
        await desk.cancel(id)
        task = await desk.final(id)
        assert loop.time() - asked < 15
        child = int(mark.read_text().split()[2])
        grandchild = int(messages((await desk.attempts(id))[0])[-1])
        assert not exists(child)
        await eventually(lambda: not exists(grandchild), what="what the child had started to be gone")
    assert (task.status, task.failures) == (State.CANCELED, 0)


async def test_many_at_once(dsn: str, desk: Desk) -> None:
    async with working(dsn, concurrency=100):
        done = await desk.all_final(await desk.enqueue("process", {"seconds": 0.2}, times=200), timeout=120)
    assert {(task.status, task.attempts) for task in done} == {(State.COMPLETED, 1)}
    assert len({json.loads(task.result or "")["pid"] for task in done}) == 200


async def test_effects_of_children_commit_with_their_task(dsn: str, desk: Desk, db: factories.Connection) -> None:
    await db.execute("CREATE TABLE effects (task uuid NOT NULL)")
    async with working(dsn):
        ids = await desk.enqueue("process.effect", times=3)
        done = await desk.all_final(ids)
        events = [await desk.events(id) for id in ids]
    assert {task.status for task in done} == {State.COMPLETED}
    assert all(json.loads(task.result or "")["pid"] != os.getpid() for task in done)
    assert events == [["ENQUEUED", "CLAIMED", "COMPLETED"]] * 3
    assert await db.fetchval("SELECT count(*) FROM effects") == 3


async def test_a_killed_nursery_is_replaced(
    dsn: str, desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARKS", str(tmp_path))
    async with working(dsn) as worker:
        first = nursery_of(worker).pid
        id = await desk.one("process.first", {"seconds": 60})
        mark = tmp_path / f"start-{id}"
        await eventually(lambda: mark.exists() and mark.read_text())
        child = int(mark.read_text().split()[2])
        os.kill(first, signal.SIGKILL)
        task = await desk.final(id)
        assert nursery_of(worker).pid != first
        assert not exists(child)
        later = await desk.final(await desk.one("process"))
    # The nursery's death says nothing about the task: a failure, no crash on its account.
    assert (task.status, task.attempts, task.failures, task.crashes) == (State.COMPLETED, 2, 1, 0)
    assert later.status is State.COMPLETED


async def test_draining_ends_children(dsn: str, desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKS", str(tmp_path))
    async with working(dsn) as worker:
        nursery = nursery_of(worker).pid
        id = await desk.one("process", {"seconds": 60})
        mark = tmp_path / f"start-{id}"
        await eventually(lambda: mark.exists() and mark.read_text())
        await worker.drain(0)
    child = int(mark.read_text().split()[2])
    assert not exists(child)
    assert not exists(nursery)
    task = await desk.tasks.get(id)
    assert (task.status, task.failures) == (State.PENDING, 0)
    assert (await desk.events(id))[-1] == "RELEASED"


async def test_a_registry_that_nobody_can_import_is_refused(dsn: str) -> None:
    """It must not run in a thread, silently, where nothing could kill it."""
    local = Registry()

    @local.task("heavy", executor="process")
    def heavy(ctx: Context) -> None: ...

    worker = Worker(dsn, local)
    with pytest.raises(ConfigError, match="global of a module"):
        await worker.__aenter__()


async def test_a_module_that_cannot_be_imported_any_more_is_one_clear_error(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "fading.py"
    source.write_text(
        "from dhara import Registry\ntasks = Registry()\n\n\n"
        '@tasks.task("heavy", executor="process")\ndef heavy() -> None: ...\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    import fading  # type: ignore[import-not-found]

    source.write_text("raise ImportError('no longer')\n")
    for compiled in tmp_path.rglob("*.pyc"):
        compiled.unlink()
    with pytest.raises(ConfigError, match="does not start"):
        await Worker(dsn, fading.tasks).__aenter__()


SCRIPT = """
import asyncio, sys

from dhara import AsyncClient, Registry, Worker

tasks = Registry()


@tasks.task("double", executor="process")
def double(n: int) -> int:
    return 2 * n


async def main() -> None:
    async with AsyncClient(sys.argv[1]) as dhara, Worker(sys.argv[1], tasks, concurrency=2):
        print(await (await dhara.enqueue(double.s(21))).result(timeout=20))


GUARD
"""


@pytest.mark.parametrize("guarded", [True, False])
async def test_a_script_is_imported_by_its_file(dsn: str, tmp_path: Path, guarded: bool) -> None:
    """Unguarded, it would start a worker in its own nursery, and so on for ever."""
    run = 'if __name__ == "__main__":\n    asyncio.run(main())' if guarded else "asyncio.run(main())"
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("GUARD", run))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(script), dsn),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, complaints = await asyncio.wait_for(process.communicate(), 40)
    if guarded:
        assert (process.returncode, out) == (0, b"42\n"), complaints.decode()
    else:
        assert process.returncode != 0
        assert b"__main__" in complaints
