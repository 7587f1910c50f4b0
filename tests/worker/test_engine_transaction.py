"""`ctx.transaction()`: the handler's writes and the completion stand or fall together, whatever driver makes them.

I14 in small: exactly one effect per COMPLETED task, none otherwise. With real deaths: tests/e2e/test_engine_effects.py.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from uuid import UUID

import asyncpg
import psycopg
import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from dhara import Context, LeaseLost, Registry, RetryPolicy
from dhara.domain.lifecycle import State
from dhara.store.pool import Executor
from tests import factories
from tests.invariants import violations
from tests.waiting import Signal, eventually
from tests.worker.kit import Desk, running

INSERT = "INSERT INTO effects (task) VALUES ('{}')"

# What a handler does inside the block, after its write, with its session and its context.
Within = Callable[[Any, Context], Awaitable[Any]]


@pytest.fixture
async def effects(db: factories.Connection) -> factories.Connection:
    """A connection to the test's database, which has a table of effects."""
    await db.execute("CREATE TABLE effects (task uuid NOT NULL, at timestamptz DEFAULT clock_timestamp())")
    return db


async def count(db: Executor, id: UUID) -> int:
    found: int = await db.fetchval("SELECT count(*) FROM effects WHERE task = $1", id)
    return found


class Ways:
    """Each way to write one effect and complete, as an `async` handler or as a `def` one. `within` runs in the block."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.within: Within = nothing

    def _sync(self, session: Any, ctx: Context) -> None:
        """`within`, from a thread."""
        asyncio.run(self.within(session, ctx))  # type: ignore[arg-type]

    async def dhara(self, ctx: Context) -> None:
        transaction = ctx.transaction()
        async with transaction as connection:
            await connection.execute(INSERT.format(ctx.task_id))
            transaction.result = {"by": "dhara"}
            await self.within(connection, ctx)

    async def asyncpg(self, ctx: Context) -> None:
        connection = await asyncpg.connect(self.dsn)
        try:
            transaction = ctx.transaction(connection)
            async with transaction as same:
                assert same is connection
                await connection.execute(INSERT.format(ctx.task_id))
                transaction.result = {"by": "asyncpg"}
                await self.within(connection, ctx)
        finally:
            await connection.close()

    async def psycopg_async(self, ctx: Context) -> None:
        async with await psycopg.AsyncConnection.connect(self.dsn) as connection:
            transaction = ctx.transaction(connection)
            async with transaction:
                await connection.execute(INSERT.format(ctx.task_id))
                transaction.result = {"by": "psycopg_async"}
                await self.within(connection, ctx)

    async def sqlalchemy_async(self, ctx: Context) -> None:
        engine = create_async_engine(self._url("asyncpg"))
        try:
            async with AsyncSession(engine) as session:
                transaction = ctx.transaction(session)
                async with transaction:
                    await session.execute(sqlalchemy.text(INSERT.format(ctx.task_id)))
                    transaction.result = {"by": "sqlalchemy_async"}
                    await self.within(session, ctx)
        finally:
            await engine.dispose()

    def psycopg(self, ctx: Context) -> None:
        with psycopg.connect(self.dsn) as connection:
            transaction = ctx.transaction(connection)
            with transaction as same:
                assert same is connection
                connection.execute(INSERT.format(ctx.task_id))
                transaction.result = {"by": "psycopg"}
                self._sync(connection, ctx)

    def sqlalchemy(self, ctx: Context) -> None:
        engine = sqlalchemy.create_engine(self._url("psycopg"))
        try:
            with Session(engine) as session:
                transaction = ctx.transaction(session)
                with transaction:
                    session.execute(sqlalchemy.text(INSERT.format(ctx.task_id)))
                    transaction.result = {"by": "sqlalchemy"}
                    self._sync(session, ctx)
        finally:
            engine.dispose()

    def _url(self, driver: str) -> str:
        return self.dsn.replace("postgresql://", f"postgresql+{driver}://", 1)


async def nothing(session: Any, ctx: Context) -> None: ...


WAYS = ("dhara", "asyncpg", "psycopg_async", "sqlalchemy_async", "psycopg", "sqlalchemy")
every_way = pytest.mark.parametrize("way", WAYS)


def registry_of(ways: Ways, way: str) -> Registry:
    tasks = Registry()
    tasks.task("write", retry=RetryPolicy(base=0.01))(getattr(ways, way))
    return tasks


@every_way
async def test_write_and_completion_commit_together(
    dsn: str, desk: Desk, effects: factories.Connection, way: str
) -> None:
    ways = Ways(dsn)

    async def before_the_commit(session: Any, ctx: Context) -> None:
        ctx.log.info("written")
        await ctx.progress(70, "nearly")
        async with await psycopg.AsyncConnection.connect(dsn) as other:
            rows = await (
                await other.execute("SELECT (SELECT count(*) FROM effects), status FROM dhara.tasks")
            ).fetchall()
            seen.fire(rows)

    seen = Signal("what others see before the commit")
    ways.within = before_the_commit
    async with running(dsn, registry_of(ways, way)):
        id = await desk.one("write")
        task = await desk.final(id)
        attempts = await desk.attempts(id)
    assert seen.values == [[(0, "RUNNING")]]
    assert (task.status, task.attempts, task.failures) == (State.COMPLETED, 1, 0)
    assert json.loads(task.result or "") == {"by": way}
    assert json.loads(task.progress or "") == {"percent": 70.0, "message": "nearly"}
    assert [line["message"] for line in json.loads(attempts[0].logs or "[]")] == ["written"]
    assert await count(effects, id) == 1
    # Completed by the handler's own transaction, not a second time by the settler.
    assert await desk.events(id) == ["ENQUEUED", "CLAIMED", "COMPLETED"]
    assert await violations(effects, quiet=True) == {}


@every_way
async def test_an_error_inside_rolls_back_and_is_retried(
    dsn: str, desk: Desk, effects: factories.Connection, way: str
) -> None:
    ways = Ways(dsn)

    async def fail_at_first(session: Any, ctx: Context) -> None:
        if ctx.attempt < 3:
            raise ValueError("not yet")

    ways.within = fail_at_first
    async with running(dsn, registry_of(ways, way)):
        id = await desk.one("write")
        task = await desk.final(id)
    assert (task.status, task.attempts, task.failures) == (State.COMPLETED, 3, 2)
    assert task.last_error == "ValueError: not yet"
    assert await count(effects, id) == 1
    assert await desk.events(id) == ["ENQUEUED", *["CLAIMED", "RETRIED"] * 2, "CLAIMED", "COMPLETED"]


@every_way
async def test_a_lost_lease_rolls_back_and_the_other_attempt_stands(
    dsn: str, desk: Desk, effects: factories.Connection, way: str
) -> None:
    """While the first attempt is in its block its worker is taken for lost; another one completes the task."""
    ways = Ways(dsn)
    inside, told = Signal("inside"), Signal("LeaseLost")

    async def reaped_meanwhile(session: Any, ctx: Context) -> None:
        if ctx.attempt == 1:
            inside.fire(ctx)
            await eventually(lambda: count_of(2), what="the other attempt to complete")

    async def count_of(attempt: int) -> bool:
        async with await psycopg.AsyncConnection.connect(dsn) as other:
            row = await (await other.execute("SELECT attempts, status FROM dhara.tasks")).fetchone()
        return row == (attempt, "COMPLETED")

    ways.within = reaped_meanwhile
    tasks = Registry()
    tasks.task("write")(_telling(getattr(ways, way), told))
    async with running(dsn, tasks, concurrency=1) as first:
        id = await desk.one("write")
        await inside.wait()
        # No heartbeat here, no keeper: what a reaper would do, at once.
        reaped = await desk.tasks.reap(
            first.id, beat_seq=None, claimed_before=0.0, reason="lost", base=0.001, cap=0.001
        )
        assert [found.event for found in reaped] == ["REAPED"]
        async with running(dsn, tasks):
            task = await desk.final(id)
            await told.wait(2)  # COMPLETED is the block's commit: the attempt itself has yet to end
        await eventually(lambda: not first.slots.busy and not len(first.settler), what="the stale attempt to end")
    assert (task.status, task.attempts, task.crashes) == (State.COMPLETED, 2, 1)
    assert await count(effects, id) == 1
    assert (await desk.tasks.get(id)).lease == task.lease
    assert [kind for kind in told.values if kind] == [LeaseLost]
    events = await desk.events(id)
    assert [event for event in events if event != "SETTLE_REJECTED"] == [
        "ENQUEUED", "CLAIMED", "REAPED", "CLAIMED", "COMPLETED",
    ]  # fmt: skip
    assert await violations(effects, quiet=True) == {}


async def test_a_stale_attempt_completes_nobody_elses(dsn: str, desk: Desk, effects: factories.Connection) -> None:
    """The task is RUNNING, but under another lease: the first attempt ends in its block while the second is in its own."""
    tasks = Registry()
    first, second, told = Signal("first inside"), asyncio.Event(), Signal("LeaseLost")

    @tasks.task("write")
    async def write(*, ctx: Context) -> None:
        with _reported(told):
            async with ctx.transaction() as connection:
                await connection.execute(INSERT.format(ctx.task_id))
                if ctx.attempt == 1:
                    first.fire()
                    await second.wait()
                else:
                    second.set()
                    await told.wait()

    async with running(dsn, tasks, concurrency=1) as one:
        id = await desk.one("write")
        await first.wait()
        await desk.tasks.reap(one.id, beat_seq=None, claimed_before=0.0, reason="lost", base=0.001, cap=0.001)
        async with running(dsn, tasks):
            task = await desk.final(id)
            await told.wait(2)
    assert told.values == [LeaseLost, None]
    assert (task.status, task.attempts) == (State.COMPLETED, 2)
    assert await count(effects, id) == 1


def _telling(handler: Any, told: Signal) -> Any:
    """The handler, telling how it ended: an exception's class, or None."""
    if asyncio.iscoroutinefunction(handler):

        async def async_(ctx: Context) -> None:
            with _reported(told):
                await handler(ctx)

        return async_

    def sync(ctx: Context) -> None:
        with _reported(told):
            handler(ctx)

    return sync


@contextmanager
def _reported(told: Signal) -> Any:
    try:
        yield
    except BaseException as error:
        told.fire(type(error))
        raise
    told.fire()


@every_way
async def test_whatever_comes_after_the_commit_changes_nothing(
    dsn: str, desk: Desk, effects: factories.Connection, way: str
) -> None:
    ways = Ways(dsn)
    handler = getattr(ways, way)
    tasks = Registry()
    if asyncio.iscoroutinefunction(handler):

        @tasks.task("write")
        async def write_async(ctx: Context) -> str:
            await handler(ctx)
            raise ValueError("too late")
    else:

        @tasks.task("write")
        def write(ctx: Context) -> str:
            handler(ctx)
            raise ValueError("too late")

    async with running(dsn, tasks) as runner:
        id = await desk.one("write", max_retries=0)
        task = await desk.final(id)
        await eventually(lambda: not runner.slots.busy and not len(runner.settler))
        task = await desk.tasks.get(id)
    assert (task.status, task.failures, task.last_error) == (State.COMPLETED, 0, None)
    assert await desk.events(id) == ["ENQUEUED", "CLAIMED", "COMPLETED"]
    assert await count(effects, id) == 1


async def test_canceled_after_the_commit_is_completed_and_the_slot_lives_on(
    dsn: str, desk: Desk, effects: factories.Connection
) -> None:
    tasks = Registry()
    committed = Signal("committed")

    @tasks.task("write")
    async def write(ctx: Context) -> None:
        async with ctx.transaction() as connection:
            await connection.execute(INSERT.format(ctx.task_id))
        committed.fire(ctx._claim.lease)
        await asyncio.sleep(60)

    @tasks.task("fine")
    async def fine() -> None: ...

    async with running(dsn, tasks, concurrency=1) as runner:
        id = await desk.one("write")
        (lease,) = await committed.wait()
        runner.slots.cancel(lease)
        after = await desk.final(await desk.one("fine"))
        task = await desk.tasks.get(id)
    assert (task.status, task.failures, after.status) == (State.COMPLETED, 0, State.COMPLETED)
    assert await desk.events(id) == ["ENQUEUED", "CLAIMED", "COMPLETED"]


async def test_canceled_inside_rolls_back(dsn: str, desk: Desk, effects: factories.Connection) -> None:
    tasks = Registry()
    inside = Signal("inside")

    @tasks.task("write")
    async def write(ctx: Context) -> None:
        async with ctx.transaction() as connection:
            await connection.execute(INSERT.format(ctx.task_id))
            inside.fire()
            await asyncio.sleep(60)

    async with running(dsn, tasks):
        id = await desk.one("write")
        await inside.wait()
        await desk.cancel(id)
        task = await desk.final(id)
    assert (task.status, await count(effects, id)) == (State.CANCELED, 0)


@asynccontextmanager
async def one_attempt(dsn: str, desk: Desk, handler: Any) -> AsyncIterator[Any]:
    """The task after one attempt of `handler`, without retries."""
    tasks = Registry()
    tasks.task("write")(handler)
    async with running(dsn, tasks):
        yield await desk.final(await desk.one("write", max_retries=0))


async def test_a_second_transaction_is_refused(dsn: str, desk: Desk, effects: factories.Connection) -> None:
    refused = Signal("refused")

    async def write(ctx: Context) -> None:
        async with ctx.transaction():
            pass
        try:
            async with ctx.transaction() as connection:
                await connection.execute(INSERT.format(ctx.task_id))
        except RuntimeError as error:
            refused.fire(str(error))

    async with one_attempt(dsn, desk, write) as task:
        assert task.status is State.COMPLETED
        # The task is final before its handler ends; the worker's end, out of this block, would interrupt the handler.
        assert "once" in (await refused.wait())[0]
    assert await count(effects, task.id) == 0


def _autocommit_psycopg(ctx: Context, dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection, ctx.transaction(connection):
        connection.execute(INSERT.format(ctx.task_id))


def _autocommit_sqlalchemy(ctx: Context, dsn: str) -> None:
    url = dsn.replace("postgresql://", "postgresql+psycopg://", 1)
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection, ctx.transaction(connection):
        connection.execute(sqlalchemy.text(INSERT.format(ctx.task_id)))


def _commits_inside(ctx: Context, dsn: str) -> None:
    with psycopg.connect(dsn) as connection, ctx.transaction(connection):
        connection.execute(INSERT.format(ctx.task_id))
        connection.commit()


def _rolls_back_inside(ctx: Context, dsn: str) -> None:
    with psycopg.connect(dsn) as connection, ctx.transaction(connection):
        connection.execute(INSERT.format(ctx.task_id))
        connection.rollback()


@pytest.mark.parametrize("write", [_autocommit_psycopg, _autocommit_sqlalchemy, _commits_inside, _rolls_back_inside])
async def test_a_block_that_is_no_transaction_does_not_complete(
    dsn: str, desk: Desk, effects: factories.Connection, write: Callable[[Context, str], None]
) -> None:
    def handler(ctx: Context) -> None:
        write(ctx, dsn)

    async with one_attempt(dsn, desk, handler) as task:
        assert (task.status, task.reason) == (State.DEAD, "exhausted")
        assert "no transaction that spans its block" in task.last_error


async def test_a_connection_in_a_transaction_is_refused(dsn: str, desk: Desk, effects: factories.Connection) -> None:
    """With asyncpg the block would be a savepoint: completed or not would be decided later, by somebody else."""

    async def write(ctx: Context) -> None:
        connection = await asyncpg.connect(dsn)
        try:
            async with connection.transaction(), ctx.transaction(connection):
                await connection.execute(INSERT.format(ctx.task_id))
        finally:
            await connection.close()

    async with one_attempt(dsn, desk, write) as task:
        assert task.status is State.DEAD
        assert "in a transaction already" in task.last_error
    assert await count(effects, task.id) == 0


async def test_a_result_that_cannot_be_stored_rolls_back(dsn: str, desk: Desk, effects: factories.Connection) -> None:
    async def write(ctx: Context) -> None:
        transaction = ctx.transaction()
        async with transaction as connection:
            await connection.execute(INSERT.format(ctx.task_id))
            transaction.result = object()

    async with one_attempt(dsn, desk, write) as task:
        assert task.status is State.DEAD
        assert "result" in task.last_error
    assert await count(effects, task.id) == 0


async def test_handlers_in_transactions_do_not_starve_the_worker(dsn: str, desk: Desk) -> None:
    """More handlers hold a connection than the pool has: the others wait, and claims and settlements go on."""
    tasks = Registry()
    go = asyncio.Event()
    inside = Signal("inside")

    @tasks.task("long")
    async def long(ctx: Context) -> None:
        async with ctx.transaction() as connection:
            inside.fire(await connection.fetchval("SHOW statement_timeout"))
            await go.wait()

    @tasks.task("short")
    async def short() -> None: ...

    async with running(dsn, tasks, concurrency=20) as runner:
        ids = await desk.enqueue("long", times=15)
        await inside.wait(4)
        done = await desk.all_final(await desk.enqueue("short", times=50))
        assert runner.slots.busy == 15
        go.set()
        done += await desk.all_final(ids)
    assert {task.status for task in done} == {State.COMPLETED}
    # Their statements are the users': only the attempt's own time-out ends them.
    assert set(inside.values) == {"0"}


async def test_settings_of_one_handler_do_not_reach_the_next(dsn: str, desk: Desk) -> None:
    tasks = Registry()

    @tasks.task("set")
    async def set_(ctx: Context) -> None:
        transaction = ctx.transaction()
        async with transaction as connection:
            transaction.result = await connection.fetchval("SHOW work_mem")
            await connection.execute("SET work_mem = '77MB'")

    async with running(dsn, tasks, concurrency=1):
        done = [await desk.final(await desk.one("set")) for _ in range(3)]
    assert len({task.result for task in done}) == 1
