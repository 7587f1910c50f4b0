"""The keeper, beside a real process as its runner: it beats, kills what is overdue, takes back what a crash left."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from dhara import Registry
from dhara.domain.lifecycle import State
from dhara.domain.task import Task
from dhara.maintenance.settings import MaintenanceSettings
from dhara.store.pool import DatabaseSettings
from dhara.store.tasks import Tasks
from dhara.worker import keeper as keepers
from dhara.worker import process
from dhara.worker.board import Board, attach, share
from dhara.worker.keeper import Died, Keeper, KeeperConfig, Leave
from dhara.worker.supervisor import keeper_environment
from tests import invariants
from tests.factories import Connection, history, make_task, make_worker
from tests.proxy import Proxy
from tests.waiting import Signal, eventually
from tests.worker.kit import runner_of

SLOTS = 4


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing, in the place of a runner."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield child
    child.kill()
    child.wait()


class Stage:
    """A keeper, its input, and the boards that its runners write."""

    def __init__(self, dsn: str, processes: int = 1, **fields: Any) -> None:
        fd = share(processes, SLOTS)
        self.lines = asyncio.StreamReader()
        config = KeeperConfig(
            database=DatabaseSettings(dsn=dsn),
            maintenance=MaintenanceSettings(reaper_interval=60, stale_after=30, base_backoff=0.1),
            fd=fd,
            processes=processes,
            slots=SLOTS,
            **{"heartbeat_interval": 0.1} | fields,
        )
        self.keeper = Keeper(config)
        self.boards = attach(fd, processes, SLOTS)
        os.close(fd)

    @property
    def board(self) -> Board:
        return self.boards[0]

    def announce(self, worker: UUID, pid: int, index: int = 0) -> None:
        """As a runner with another pid than this process's."""
        board = self.boards[index]
        board.announce(worker, time.monotonic())
        memory = board._memory
        memory[board._offset + 16 : board._offset + 24] = pid.to_bytes(8, sys.byteorder)

    def say(self, message: Died | Leave) -> None:
        self.lines.feed_data(msgspec.json.encode(message) + b"\n")

    @asynccontextmanager
    async def run(self) -> Any:
        """The keeper at work; told to leave at the end, unless its parent is gone."""
        task = asyncio.create_task(self.keeper.run(self.lines))
        try:
            yield task
            if not task.done() and not self.lines.at_eof():
                self.say(Leave())
            await asyncio.wait_for(task, 30)
        finally:
            task.cancel()


async def beats(db: Connection, worker: UUID) -> int:
    return int(await db.fetchval("SELECT beat_seq FROM dhara.workers WHERE id = $1", worker))


async def more_beats(db: Connection, worker: UUID, times: int) -> None:
    """Wait for so many further beats of the worker."""
    before = await beats(db, worker)

    async def there() -> bool:
        return await beats(db, worker) >= before + times

    await eventually(there)


async def test_it_beats_for_every_runner_that_runs(dsn: str, db: Connection, sleeper: subprocess.Popen[bytes]) -> None:
    first, second, unknown = await make_worker(db), await make_worker(db), uuid4()
    stage = Stage(dsn, 3)
    stage.announce(first, sleeper.pid)
    stage.announce(second, os.getpid(), 1)
    stage.announce(unknown, os.getpid(), 2)
    stage.board.tick(time.monotonic(), 3)
    async with stage.run():

        async def both() -> bool:
            return await beats(db, first) >= 3 and await beats(db, second) >= 3

        await eventually(both)
        assert await db.fetchval("SELECT running FROM dhara.workers WHERE id = $1", first) == 3
        sleeper.send_signal(signal.SIGSTOP)
        await eventually(lambda: not process.runs(sleeper.pid))
        await more_beats(db, second, 2)  # one may have been on its way
        at = await beats(db, first)
        await more_beats(db, second, 3)
        assert await beats(db, first) == at, "a stopped runner must lose its leases"
        sleeper.send_signal(signal.SIGCONT)
        await more_beats(db, first, 1)
        stage.board.stopped()
        await more_beats(db, second, 2)
        at = await beats(db, first)
        await more_beats(db, second, 3)
        assert await beats(db, first) == at


async def test_a_runner_with_a_task_far_past_its_deadline_is_killed(
    dsn: str, db: Connection, sleeper: subprocess.Popen[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """That task alone is to blame; the others are released."""
    worker = await make_worker(db)
    late = await make_task(db, "RUNNING", worker=worker)
    others = [await make_task(db, "RUNNING", worker=worker) for _ in range(2)]
    stage = Stage(dsn)
    stage.announce(worker, sleeper.pid)
    assert late.lease is not None
    async with stage.run():
        for slot, task in enumerate(others):
            assert task.lease is not None
            stage.board.begin(slot, time.monotonic() + 60, task.id, task.lease)
        stage.board.begin(3, time.monotonic() + 0.3, late.id, late.lease)
        await asyncio.sleep(0.1)
        assert sleeper.poll() is None
        await eventually(lambda: sleeper.poll() == -signal.SIGKILL)
        stage.say(Died(worker, "signal SIGKILL"))

        async def taken_back() -> bool:
            return await db.fetchval("SELECT count(*) = 0 FROM dhara.tasks WHERE status = 'RUNNING'") is True

        await eventually(taken_back)
    assert f"task {late.id} did not end by its deadline" in caplog.text
    (entry,) = await history(db, late.id)
    assert (entry["event"], entry["lease"]) == ("REAPED", late.lease)
    assert "deadline passed" in entry["reason"]
    for task in others:
        found = await Tasks(db).get(task.id)
        assert (found.status, found.failures, found.crashes) == (State.PENDING, 0, 0)
        assert [entry["event"] for entry in await history(db, task.id)] == ["RELEASED"]
    assert await db.fetchval("SELECT state FROM dhara.workers WHERE id = $1", worker) == "lost"
    assert not await invariants.violations(db)


async def test_a_slot_that_is_free_again_in_time_saves_its_runner(
    dsn: str, db: Connection, sleeper: subprocess.Popen[bytes]
) -> None:
    worker = await make_worker(db)
    stage = Stage(dsn)
    stage.announce(worker, sleeper.pid)
    async with stage.run():
        for _ in range(5):
            stage.board.begin(0, time.monotonic() + 0.1, uuid4(), uuid4())
            await asyncio.sleep(0.2)  # late, but seen so at most once
            stage.board.end(0)
            await asyncio.sleep(0.05)
        stage.board.begin(0, time.monotonic() + 0.2, uuid4(), uuid4())
        stage.board.limit(0, time.monotonic() + 60)
        await asyncio.sleep(0.8)
        assert sleeper.poll() is None


async def test_a_stopped_runner_is_not_killed(dsn: str, db: Connection, sleeper: subprocess.Popen[bytes]) -> None:
    """Somebody has it in a debugger, or froze it: it loses its leases, and may go on."""
    worker = await make_worker(db)
    stage = Stage(dsn)
    stage.announce(worker, sleeper.pid)
    sleeper.send_signal(signal.SIGSTOP)
    await eventually(lambda: not process.runs(sleeper.pid))
    async with stage.run():
        stage.board.begin(0, time.monotonic() - 1, uuid4(), uuid4())
        await asyncio.sleep(0.8)
        stage.board.end(0)
        sleeper.send_signal(signal.SIGCONT)
        await asyncio.sleep(0.3)
        assert sleeper.poll() is None


@pytest.mark.parametrize("blame", [True, False])
async def test_what_a_dead_runner_held_is_taken_back_at_once(dsn: str, db: Connection, blame: bool) -> None:
    worker = await make_worker(db)
    tasks = [await make_task(db, "RUNNING", worker=worker) for _ in range(3)]
    canceled = await make_task(db, "RUNNING", worker=worker, cancel_requested=True)
    stage = Stage(dsn)
    async with stage.run():
        begun = time.monotonic()
        stage.say(Died(worker, "exit code 3", blame=blame))

        async def taken_back() -> bool:
            return await db.fetchval("SELECT count(*) = 0 FROM dhara.tasks WHERE status = 'RUNNING'") is True

        await eventually(taken_back)
        assert time.monotonic() - begun < 20
    for task in tasks:
        found = await Tasks(db).get(task.id)
        assert (found.status, found.failures, found.crashes) == (State.PENDING, int(blame), int(blame))
        (entry,) = await history(db, task.id)
        assert entry["event"] == ("REAPED" if blame else "RELEASED")
        assert "worker process ended: exit code 3" in entry["reason"]
    assert (await Tasks(db).get(canceled.id)).status is State.CANCELED
    assert not await invariants.violations(db)


async def test_a_claim_that_was_still_on_its_way_is_taken_back_too(
    dsn: str, db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keepers, "_AFTERMATH", 0.5)
    worker = await make_worker(db)
    stage = Stage(dsn)
    late: list[Task] = []
    stop = stage.keeper._workers.stop

    async def then_it_lands(*said: Any) -> None:
        await stop(*said)
        late.append(await make_task(db, "RUNNING", worker=worker))

    monkeypatch.setattr(stage.keeper._workers, "stop", then_it_lands)
    async with stage.run():
        stage.say(Died(worker, "signal SIGKILL"))

        async def taken_back() -> bool:
            return bool(late) and (await Tasks(db).get(late[0].id)).status is State.PENDING

        await eventually(taken_back)


async def test_a_beat_that_was_still_on_its_way_makes_no_dead_worker_live(
    dsn: str, db: Connection, monkeypatch: pytest.MonkeyPatch, sleeper: subprocess.Popen[bytes]
) -> None:
    monkeypatch.setattr(keepers, "_AFTERMATH", 0.1)
    monkeypatch.setattr(keepers, "_LAST_BEAT", 30.0)
    worker = await make_worker(db)
    task = await make_task(db, "RUNNING", worker=worker)
    stage = Stage(dsn)
    line, asking = asyncio.Event(), Signal("a beat")
    beat = stage.keeper._workers.beat

    async def slow_line(*said: Any) -> dict[UUID, bool]:
        asking.fire()
        await line.wait()
        return await beat(*said)

    monkeypatch.setattr(stage.keeper._workers, "beat", slow_line)
    stage.announce(worker, sleeper.pid)
    async with stage.run():
        await asking.wait()
        sleeper.kill()
        stage.say(Died(worker, "signal SIGKILL"))

        async def taken_back() -> bool:
            return (await Tasks(db).get(task.id)).status is State.PENDING

        await eventually(taken_back)
        await asyncio.sleep(0.1)  # time in which the worker would be called lost, were the beat not awaited
        line.set()
        await eventually(lambda: not stage.keeper._reaping)
        assert await beats(db, worker) > 0
        assert await db.fetchval("SELECT state FROM dhara.workers WHERE id = $1", worker) == "lost"


async def test_a_runner_that_dies_before_the_keeper_has_a_database(dsn: str, db: Connection) -> None:
    worker = await make_worker(db)
    task = await make_task(db, "RUNNING", worker=worker)
    async with Proxy(dsn) as proxy:
        proxy.freeze()
        stage = Stage(proxy.dsn)
        async with stage.run():
            stage.say(Died(worker, "signal SIGKILL"))
            await asyncio.sleep(0.3)
            assert (await Tasks(db).get(task.id)).status is State.RUNNING
            proxy.thaw()

            async def taken_back() -> bool:
                return (await Tasks(db).get(task.id)).status is State.PENDING

            await eventually(taken_back)


async def test_an_orphan_ends_its_runners_takes_back_and_leaves(
    dsn: str, db: Connection, sleeper: subprocess.Popen[bytes]
) -> None:
    """The end of its input: the supervisor is gone."""
    worker = await make_worker(db)
    task = await make_task(db, "RUNNING", worker=worker)
    stage = Stage(dsn)
    stage.announce(worker, sleeper.pid)
    async with stage.run() as life:

        async def beaten() -> bool:
            return await beats(db, worker) > 0

        await eventually(beaten)
        stage.lines.feed_eof()
        await asyncio.wait_for(life, 30)
        assert sleeper.wait(10) == -signal.SIGKILL
    assert (await Tasks(db).get(task.id)).status is State.PENDING


async def test_a_loop_that_stands_still_is_named_once(
    dsn: str, db: Connection, sleeper: subprocess.Popen[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    worker, task = await make_worker(db), uuid4()
    stage = Stage(dsn)
    stage.announce(worker, sleeper.pid)
    stage.board.begin(0, time.monotonic() + 60, task, uuid4())
    stage.board.tick(time.monotonic() - 5, 1)
    async with stage.run():
        await asyncio.sleep(1)
        warnings = [record.getMessage() for record in caplog.records if "stood still" in record.getMessage()]
        assert len(warnings) == 1
        assert str(worker) in warnings[0]
        assert str(task) in warnings[0]
        stage.board.tick(time.monotonic() + 60, 1)
        await eventually(lambda: worker not in stage.keeper._lagging)
        stage.board.tick(time.monotonic() - 5, 1)
        await eventually(lambda: caplog.text.count("stood still") == 2)


async def test_it_leaves_when_told_even_without_a_database() -> None:
    stage = Stage("postgresql://postgres@127.0.0.1:1/none")
    life = asyncio.create_task(stage.keeper.run(stage.lines))
    await asyncio.sleep(0.1)
    stage.say(Leave())
    await asyncio.wait_for(life, 30)


async def test_a_database_that_comes_late(dsn: str, db: Connection, sleeper: subprocess.Popen[bytes]) -> None:
    worker = await make_worker(db)
    async with Proxy(dsn) as proxy:
        proxy.freeze()
        stage = Stage(proxy.dsn)
        stage.announce(worker, sleeper.pid)
        async with stage.run():
            await asyncio.sleep(0.2)
            proxy.thaw()

            async def beaten() -> bool:
                return await beats(db, worker) > 2

            await eventually(beaten)


async def test_a_beat_that_failed_is_tried_again_once(dsn: str) -> None:
    """Found by the simulation: two beats that were lost in a row, and a clock that jumped, made a live worker lost."""
    stage = Stage(dsn, heartbeat_interval=0.2)
    stage.announce(uuid4(), os.getpid())
    tries: list[bool] = []

    class Lossy:
        async def beat(self, *args: Any) -> dict[UUID, bool]:
            if answers.pop(0):
                tries.append(True)
                return {}
            tries.append(False)
            raise ConnectionResetError

    stage.keeper._workers = Lossy()  # type: ignore[assignment]
    answers = [False, True]
    await stage.keeper.beat()
    assert tries == [False, True]
    answers = [False, False]
    with pytest.raises(ConnectionResetError):
        await stage.keeper.beat()
    answers = [False, True]  # while it keeps failing, an outage must not be asked more often
    with pytest.raises(ConnectionResetError):
        await stage.keeper.beat()
    assert answers == [True]


async def test_a_runner_beats_for_itself_until_its_keeper_does(dsn: str, db: Connection) -> None:
    """F35: where processors are short, a keeper may start later than a lease lasts."""
    tasks = Registry()

    @tasks.task("t")
    async def t() -> None: ...

    runner = runner_of(dsn, tasks, stale_after=10)
    runner._first_beats.interval = 0.1
    await runner.start()
    try:

        async def seq() -> int:
            return int(await db.fetchval("SELECT beat_seq FROM dhara.workers WHERE id = $1", runner.id))

        async def beats() -> bool:
            return await seq() >= 3

        await eventually(beats)
        runner._board.acknowledge(time.monotonic())
        await asyncio.sleep(0.1)  # one may be under way
        before = await seq()
        await asyncio.sleep(0.6)
        assert await seq() <= before + 1
    finally:
        await runner.drain(0)
        await runner.stop()


_RECEIVE = """
import ctypes
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks mapped hblkhd usmblks fsmblks used free top".split()]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
for _ in range(3):  # what has been freed may move the limit of the next
    before, buffer = libc.mallinfo2().mapped, bytearray(256 * 1024)
    by_itself = libc.mallinfo2().mapped - before
    del buffer
print(by_itself)
"""


GLIBC = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc from 2.33 on only")


@GLIBC
@pytest.mark.parametrize("kept", [True, False])
def test_what_it_receives_into_does_not_stay_in_its_heap(kept: bool) -> None:
    """F60: the keeper's heap grew by what was left between the places of 256 KiB each; without its limit it would."""
    environment = keeper_environment() if kept else dict(os.environ)
    done = subprocess.run([sys.executable, "-c", _RECEIVE], env=environment, capture_output=True, check=True)
    assert int(done.stdout) == kept


_THREADS = """
import sys, threading
from dhara.worker import process
if sys.argv[1:]:
    process.share_heap()
kept, all_there = [], threading.Barrier(8)
def work():
    kept.append(bytearray(100_000))
    all_there.wait()
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
starts = [int(line.split("-")[0], 16) for line in open("/proc/self/maps")]
print(sum(start % 2**26 == 0 for start in starts))  # a heap of a thread lies at a multiple of 64 MiB
"""


@GLIBC
def test_a_runner_s_threads_have_no_heap_each() -> None:
    """F60: a runner of the soak had heaps of three threads, 1.9 MiB each, and would in time have had sixteen."""
    environment = {key: value for key, value in os.environ.items() if key != "MALLOC_ARENA_MAX"}

    def heaps(*arguments: str) -> int:
        command = [sys.executable, "-c", _THREADS, *arguments]
        return int(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)

    assert heaps() > 1
    # Of what else is mapped, something lies at such a place by chance now and then.
    assert min(heaps("shared") for _ in range(3)) == 1
