"""What stands around a handler: middleware, lifespan, models for payloads, policies by exception, expiry, progress."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import pydantic
import pytest

from dhara import Context, Registry, RegistryError, Retry, RetryPolicy, Snooze
from dhara.domain import limits
from dhara.domain.lifecycle import State
from dhara.errors import ConfigError
from tests import factories
from tests.waiting import Signal, eventually
from tests.worker.kit import Desk, runner_of, running

# middleware


async def test_middleware_stands_around_where_the_handler_runs(dsn: str, desk: Desk) -> None:
    tasks = Registry()
    seen: dict[UUID, list[tuple[str, bool]]] = {}

    def note(ctx: Context, what: str) -> None:
        seen.setdefault(ctx.task_id, []).append((what, threading.current_thread() is threading.main_thread()))

    @tasks.middleware
    async def outer(ctx: Context, proceed: Any) -> Any:
        note(ctx, "outer")
        try:
            return [await proceed(), "outer"]
        finally:
            note(ctx, "outer ends")

    @tasks.middleware
    def first(ctx: Context) -> Iterator[None]:
        note(ctx, "first")
        yield
        note(ctx, "first ends")

    @tasks.middleware
    async def inner(ctx: Context, proceed: Any) -> Any:
        note(ctx, "inner")
        try:
            return [await proceed(), "inner"]
        finally:
            note(ctx, "inner ends")

    @tasks.middleware
    def second(ctx: Context) -> Iterator[None]:
        note(ctx, "second")
        yield
        note(ctx, "second ends")

    @tasks.task("loop")
    async def loop(n: int) -> int:
        return n

    @tasks.task("thread")
    def thread(n: int, *, ctx: Context) -> int:
        note(ctx, "handler")
        return n

    async with running(dsn, tasks):
        ids = [await desk.one("loop", {"n": 1}), await desk.one("thread", {"n": 2})]
        done = await desk.all_final(ids)
    assert [json.loads(task.result or "") for task in done] == [[[1, "inner"], "outer"], [[2, "inner"], "outer"]]
    around = ["outer", "inner", "first", "second"]
    ends = ["second ends", "first ends", "inner ends", "outer ends"]
    assert seen[ids[0]] == [(what, True) for what in [*around, *ends]]
    in_thread = ["first", "second", "handler", "second ends", "first ends"]
    assert seen[ids[1]] == [(what, what not in in_thread) for what in [*around, "handler", *ends]]


async def test_middleware_may_decide(dsn: str, desk: Desk) -> None:
    """It sees the handler's exceptions, may raise wishes of its own, replace results, or not proceed at all."""
    tasks = Registry()
    called: list[str] = []

    @tasks.middleware
    async def decide(ctx: Context, proceed: Any) -> Any:
        match ctx.type:
            case "snoozed" if ctx.attempt == 1:
                raise Snooze(0, "not on my watch")
            case "skipped":
                return "skipped"
            case "saved":
                try:
                    await proceed()
                except KeyError:
                    return "saved"
            case "broken":
                raise ZeroDivisionError("in the middleware")
        return await proceed()

    @tasks.middleware
    def within(ctx: Context) -> Iterator[None]:
        try:
            yield
        except LookupError as error:
            if ctx.type == "retried":
                raise Retry(0, "the middleware wishes") from error
            raise

    for type in ("snoozed", "skipped", "saved", "broken"):

        @tasks.task(type)
        async def handle(*, ctx: Context) -> str:
            called.append(ctx.type)
            if ctx.type == "saved":
                raise KeyError(1)
            return "done"

    @tasks.task("retried")
    def retried(*, ctx: Context) -> str:
        if ctx.attempt == 1:
            raise LookupError
        return "second"

    async with running(dsn, tasks):
        ids = [await desk.one(type, max_retries=0) for type in ("snoozed", "skipped", "saved", "broken")]
        ids.append(await desk.one("retried"))
        snoozed, skipped, saved, broken, again = await desk.all_final(ids)
    assert (snoozed.status, snoozed.snoozes, snoozed.result) == (State.COMPLETED, 1, '"done"')
    assert (skipped.status, skipped.result) == (State.COMPLETED, '"skipped"')
    assert (saved.status, saved.result) == (State.COMPLETED, '"saved"')
    assert (broken.status, broken.last_error) == (State.DEAD, "ZeroDivisionError: in the middleware")
    assert (again.status, again.result, again.last_error) == (State.COMPLETED, '"second"', "the middleware wishes")
    assert sorted(called) == ["saved", "snoozed"]


async def test_an_error_as_middleware_is_entered_leaves_the_others(dsn: str, desk: Desk) -> None:
    tasks = Registry()
    left = Signal("the first middleware is left")

    @tasks.middleware
    def first(ctx: Context) -> Iterator[None]:
        try:
            yield
        finally:
            left.fire()

    @tasks.middleware
    def second(ctx: Context) -> Iterator[None]:
        raise OSError("cannot enter")
        yield

    @tasks.task("t")
    def handler() -> None: ...

    async with running(dsn, tasks):
        task = await desk.final(await desk.one("t", max_retries=0))
    assert (task.status, task.last_error) == (State.DEAD, "OSError: cannot enter")
    assert left.fired == 1


def test_what_is_no_middleware_or_lifespan_is_refused() -> None:
    tasks = Registry()

    def plain(ctx: Context) -> None: ...

    async def coroutine() -> None: ...

    async def generator() -> AsyncIterator[None]:
        yield

    with pytest.raises(RegistryError, match="middleware is"):
        tasks.middleware(plain)
    with pytest.raises(RegistryError, match="middleware is"):
        tasks.middleware(generator)
    with pytest.raises(RegistryError, match="one `yield`"):
        tasks.lifespan(coroutine)  # type: ignore[arg-type]
    tasks.lifespan(generator)
    with pytest.raises(RegistryError, match="already"):
        tasks.lifespan(generator)


def test_wrong_options_are_refused() -> None:
    tasks = Registry()
    with pytest.raises(RegistryError, match="executor"):
        tasks.task("t", executor="thread")  # type: ignore[arg-type]
    with pytest.raises(RegistryError, match="no exception class"):
        tasks.task("t", retry_on={"ValueError": None})  # type: ignore[dict-item]
    with pytest.raises(RegistryError, match="no exception class"):
        tasks.task("t", retry_on={int: None})


# lifespan


async def test_lifespan_is_entered_before_the_first_claim_and_left_after_the_last_settlement(
    dsn: str, desk: Desk, db: factories.Connection
) -> None:
    tasks = Registry()
    looks: list[dict[str, int]] = []

    async def look() -> None:
        rows = await db.fetch("SELECT status, count(*) FROM dhara.tasks GROUP BY status")
        looks.append({row[0]: row[1] for row in rows})

    @tasks.lifespan
    async def life() -> AsyncIterator[str]:
        await asyncio.sleep(0.3)  # long enough for a claim that does not wait
        await look()
        yield "shared"
        await look()

    @tasks.task("t")
    async def handler(*, ctx: Context) -> Any:
        await asyncio.sleep(0.1)
        return ctx.state

    ids = await desk.enqueue("t", times=20)
    runner = runner_of(dsn, tasks, concurrency=5)
    await runner.start()
    await eventually(lambda: runner.slots.busy)
    await runner.drain()
    await runner.stop()
    done = [task for task in (await desk.tasks.get_many(ids)).values() if task.status is State.COMPLETED]
    assert looks[0] == {"PENDING": 20}
    assert looks[1] == {"COMPLETED": len(done), **({"PENDING": 20 - len(done)} if len(done) < 20 else {})}
    assert done
    assert {task.result for task in done} == {'"shared"'}


@pytest.mark.parametrize("when", ["begins", "ends"])
async def test_a_lifespan_that_fails(
    dsn: str, desk: Desk, db: factories.Connection, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = Registry()

    @tasks.lifespan
    async def life() -> AsyncIterator[None]:
        if when == "begins":
            raise OSError("no cache server")
        yield
        raise OSError("no cache server")

    @tasks.task("t")
    async def handler() -> None: ...

    id = await desk.one("t")
    runner = runner_of(dsn, tasks)
    if when == "begins":
        with pytest.raises(ConfigError, match=r"lifespan failed as it began: OSError: no cache server"):
            await runner.start()
        assert (await desk.tasks.get(id)).status is State.PENDING
        # Nothing is left of the attempt to start: it may be made again.
        assert await db.fetchval("SELECT count(*) FROM dhara.workers") == 0
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dhara runner' AND datname = current_database()"

        async def gone() -> bool:
            return await db.fetchval(query) == 0

        await eventually(gone)
    else:
        await runner.start()
        assert (await desk.final(id)).status is State.COMPLETED
        await runner.drain()
        await runner.stop()
        assert "lifespan failed as it ended" in caplog.text
        assert await db.fetchval("SELECT state FROM dhara.workers") == "stopped"


# payloads as one object


@dataclasses.dataclass
class Order:
    id: int
    at: datetime.datetime
    items: dict[int, list[str]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.id == 13:
            raise ZeroDivisionError("unlucky")


class Parcel(msgspec.Struct):
    to: str
    weight: float = 1.0


class Person(pydantic.BaseModel):
    name: str
    age: int = pydantic.Field(ge=0, default=7)


def models() -> Registry:
    tasks = Registry()

    @tasks.task("order")
    async def order(o: Order, *, ctx: Context) -> Any:
        assert isinstance(o, Order)
        return [o.id, o.at.year, {str(k): v for k, v in o.items.items()}, ctx.attempt]

    @tasks.task("parcel")
    def parcel(p: Parcel) -> Any:
        return [p.to, p.weight]

    @tasks.task("person")
    async def person(who: Person) -> Any:
        return [who.name, who.age]

    return tasks


async def test_a_payload_may_be_one_object(dsn: str, desk: Desk) -> None:
    tasks = models()
    at = datetime.datetime(2030, 1, 2, tzinfo=datetime.UTC)
    calls = [
        (tasks.get("order").s(Order(5, at, {1: ["a"]})), [5, 2030, {"1": ["a"]}, 1]),  # type: ignore[union-attr]
        (tasks.get("order").s(id=6, at=at), [6, 2030, {}, 1]),  # type: ignore[union-attr]
        (tasks.get("parcel").s(Parcel("me")), ["me", 1.0]),  # type: ignore[union-attr]
        (tasks.get("person").s(Person(name="Ann", age=3)), ["Ann", 3]),  # type: ignore[union-attr]
        (tasks.get("person").s(name="Bob"), ["Bob", 7]),  # type: ignore[union-attr]
    ]
    async with running(dsn, tasks):
        done = await desk.all_final([await desk.one(call.type, call.payload) for call, _ in calls])
    assert [json.loads(task.result or "null") for task in done] == [result for _, result in calls]


MISFITS: dict[str, list[Any]] = {
    "order": [{}, {"id": "x", "at": "2030-01-01T00:00:00Z"}, [], {"id": 13, "at": "2030-01-01T00:00:00Z"}],
    "parcel": [{"weight": 1}, {"to": 5}],
    "person": [{}, {"name": "A", "age": -1}, 5, {"name": ["x" * 10_000]}],
}


async def test_a_payload_that_fits_no_object_is_dead_at_once(dsn: str, desk: Desk) -> None:
    async with running(dsn, models()) as runner:
        ids = [await desk.one(type, json.dumps(bad)) for type, several in MISFITS.items() for bad in several]
        dead = await desk.all_final(ids)
        assert all(slot.task is not None and not slot.task.done() for slot in runner.slots.slots)
    assert {(task.status, task.reason, task.attempts) for task in dead} == {(State.DEAD, "invalid_payload", 1)}
    assert all(len(task.last_error or "") <= limits.LAST_ERROR_LENGTH for task in dead)


# policies by exception


class Transient(OSError):
    """Worth trying again."""


async def test_the_first_class_that_fits_decides(dsn: str, desk: Desk) -> None:
    tasks = Registry()
    policies = {
        Transient: RetryPolicy(base=0.01, max_retries=2),
        OSError: None,
        TimeoutError: RetryPolicy(base=0.01, max_retries=1),
    }
    raised = {"transient": Transient, "os": FileNotFoundError, "other": ValueError}

    @tasks.task("by", retry=RetryPolicy(base=0.01, max_retries=3), retry_on=policies, timeout=0.2)
    async def by(what: str) -> None:
        if what == "slow":
            await asyncio.sleep(60)
        raise raised[what]

    never = {TimeoutError: None}

    @tasks.task("once", retry_on=never, timeout=0.2)
    def once(*, ctx: Context) -> None:
        ctx.wait_canceled(60)
        ctx.check_canceled()

    async with running(dsn, tasks):
        ids = {what: await desk.one("by", {"what": what}) for what in ("transient", "os", "other")}
        ids["once"] = await desk.one("once")
        done = dict(zip(ids, await desk.all_final(list(ids.values())), strict=True))
    found = {what: (task.reason, task.attempts) for what, task in done.items()}
    assert found == {
        "transient": ("exhausted", 3),
        # FileNotFoundError is an OSError, and those are not retried.
        "os": ("permanent", 1),
        "other": ("exhausted", 4),
        "once": ("permanent", 1),
    }
    assert done["once"].last_error == "timed out after 0.2 s"


async def test_a_time_out_waits_as_the_handler_says(dsn: str, desk: Desk) -> None:
    tasks = Registry()

    @tasks.task("slow", timeout=0.1, retry=RetryPolicy(base=500, cap=1000))
    async def slow() -> None:
        await asyncio.sleep(60)

    async with running(dsn, tasks):
        id = await desk.one("slow")

        async def retried() -> bool:
            task = await desk.tasks.get(id)
            return task.status is State.PENDING and task.attempts == 1

        await eventually(retried)
        task = await desk.tasks.get(id)
    assert 249 <= (task.run_at - task.updated_at).total_seconds() <= 751


# expiry


async def test_an_expired_task_never_runs(dsn: str, desk: Desk, db: factories.Connection) -> None:
    tasks = Registry()
    ran = Signal("ran")

    @tasks.task("t")
    async def handler() -> None:
        ran.fire()

    late = await factories.make_task(db, type="t", expires_in=-1)
    soon = await desk.one("t", expires_at=datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1))
    async with running(dsn, tasks, poll_interval=0.1):
        assert (await desk.final(soon)).status is State.COMPLETED
        await asyncio.sleep(0.5)  # nothing signals that nothing happens: several polls
        assert (await desk.tasks.get(late.id)).status is State.PENDING
        assert await desk.tasks.expire() == 1
        task = await desk.tasks.get(late.id)
    assert (task.status, task.reason, task.attempts) == (State.DEAD, "expired", 0)
    assert await desk.events(late.id) == ["ENQUEUED", "EXPIRED"]
    assert ran.fired == 1


# progress and log lines


async def test_progress_and_log_lines_are_readable_while_it_runs(dsn: str, desk: Desk) -> None:
    tasks = Registry()
    go = asyncio.Event()

    @tasks.task("slow")
    async def slow(*, ctx: Context) -> None:
        for n in range(5_000):
            ctx.log.info("line %d %s", n, "x" * 5_000)
        await ctx.progress(33.333333, "a third")
        await go.wait()
        if ctx.attempt == 1:
            raise Retry(0)

    @tasks.task("sync")
    def sync(*, ctx: Context) -> None:
        ctx.progress(250, "more than all\x00")
        ctx.wait_canceled(60)

    async with running(dsn, tasks):
        id, other = await desk.one("slow"), await desk.one("sync")
        await desk.state(id, State.RUNNING)

        async def shown() -> bool:
            both = [await desk.tasks.get(id), await desk.tasks.get(other)]
            return all(task.progress is not None for task in both)

        await eventually(shown)
        task, second = await desk.tasks.get(id), await desk.tasks.get(other)
        (attempt,) = await desk.attempts(id)
        assert (task.status, attempt.ended_at) == (State.RUNNING, None)
        assert json.loads(task.progress or "") == {"percent": 33.33, "message": "a third"}
        assert json.loads(second.progress or "") == {"percent": 100.0, "message": "more than all\\x00"}
        lines = json.loads(attempt.logs or "[]")
        assert len(lines) == limits.LOG_LINES + 1
        assert all(len(line["message"]) <= limits.LOG_LINE_LENGTH for line in lines)
        go.set()
        task = await desk.final(id)
        first, last = await desk.attempts(id)
    assert task.attempts == 2
    # Kept with each attempt; the progress is the task's.
    assert len(json.loads(first.logs or "[]")) == len(json.loads(last.logs or "[]")) == limits.LOG_LINES + 1
    assert json.loads(task.progress or "")["message"] == "a third"


async def test_a_report_that_failed_is_made_again(dsn: str, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = Registry()

    @tasks.task("slow")
    async def slow(*, ctx: Context) -> None:
        await ctx.progress(10)
        await asyncio.sleep(60)

    async with running(dsn, tasks) as runner:
        failed = Signal("a report fails")
        report = runner.tasks.report

        async def flaky(rows: Any) -> None:
            if not failed.fired:
                failed.fire()
                raise asyncpg.PostgresConnectionError("gone")
            await report(rows)

        monkeypatch.setattr(runner.tasks, "report", flaky)
        id = await desk.one("slow")

        async def shown() -> bool:
            return (await desk.tasks.get(id)).progress is not None

        await eventually(shown)
        assert failed.fired == 1


async def test_a_stale_attempt_reports_nothing(dsn: str, desk: Desk, db: factories.Connection) -> None:
    task = await factories.make_task(db, State.RUNNING, type="t")
    other = UUID(int=task.lease.int ^ 1) if task.lease else None
    assert task.lease is not None and other is not None
    await desk.tasks.report([(task.id, other, '{"percent":1}', '[{"message":"stale"}]')])
    assert (await desk.tasks.get(task.id)).progress is None
    await desk.tasks.report([(task.id, task.lease, '{"percent":1}', None)])
    assert (await desk.tasks.get(task.id)).progress == '{"percent":1}'


# suspects, without a nursery


async def test_suspects_run_alone(dsn: str, desk: Desk, db: factories.Connection) -> None:
    """C15: what was running as a process crashed runs while nothing else does; then all others go on."""
    tasks = Registry()
    spans: list[tuple[str, float, float]] = []

    async def span(name: str, seconds: float) -> None:
        start = time.monotonic()
        await asyncio.sleep(seconds)
        spans.append((name, start, time.monotonic()))

    @tasks.task("t")
    async def plain() -> None:
        await span("plain", 0.02)

    @tasks.task("suspect")
    async def suspect() -> None:
        await span("suspect", 0.1)

    suspects = [(await factories.make_task(db, type="suspect", failures=1, crashes=1)).id for _ in range(3)]
    await db.execute("UPDATE dhara.tasks SET run_at = clock_timestamp() WHERE id = ANY ($1)", suspects)
    async with running(dsn, tasks, concurrency=5):
        ids = await desk.enqueue("t", times=100)
        done = await desk.all_final([*suspects, *ids])
    assert {task.status for task in done} == {State.COMPLETED}
    for name, start, end in spans:
        if name == "suspect":
            beside = [other for other in spans if other[1] < end and other[2] > start]
            assert beside == [(name, start, end)]
