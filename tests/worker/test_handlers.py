"""What handlers may be and answer, seen from the database: real store, real loop."""

from __future__ import annotations

import asyncio
import json
import statistics
import threading
import time
from typing import Any

import pytest

from dhara import Cancel, Context, DeadLetter, Registry, Retry, RetryPolicy, Snooze
from dhara.domain.lifecycle import State
from dhara.domain.task import Attempt
from tests.waiting import Signal
from tests.worker.kit import Desk, running


async def test_async_and_sync_handlers_return_results(dsn: str, desk: Desk) -> None:
    tasks = Registry()
    threads: set[int] = set()

    @tasks.task("add")
    async def add(a: int, b: int = 2) -> dict[str, int]:
        threads.add(threading.get_ident())
        return {"sum": a + b}

    @tasks.task("join")
    def join(**words: str) -> list[str]:
        assert threading.get_ident() != threading.main_thread().ident
        return sorted(words.values())

    @tasks.task("nothing")
    def nothing() -> None: ...

    async with running(dsn, tasks):
        added = await desk.final(await desk.one("add", {"a": 1}))
        joined = await desk.final(await desk.one("join", {"x": "b", "y": "a"}))
        empty = await desk.final(await desk.one("nothing"))
    assert threads == {threading.get_ident()}
    assert (added.status, added.result) == (State.COMPLETED, '{"sum":3}')
    assert (joined.status, joined.result) == (State.COMPLETED, '["a","b"]')
    assert (empty.status, empty.result) == (State.COMPLETED, "null")
    assert added.started_at is not None and added.completed_at is not None
    assert added.created_at <= added.started_at <= added.completed_at
    assert (added.attempts, added.failures) == (1, 0)


async def test_context_only_when_asked_for(dsn: str, desk: Desk) -> None:
    tasks = Registry()

    @tasks.task("with")
    async def with_context(n: int, *, ctx: Context) -> Any:
        return [n, str(ctx.task_id), ctx.type, ctx.queue, ctx.attempt, ctx.failures, ctx.max_retries, ctx.canceled]

    @tasks.task("sync")
    def sync(ctx: Context) -> Any:
        return [ctx.idempotency_key, str(ctx.lease), ctx.traceparent, ctx.lease_lost]

    @tasks.task("without")
    async def without(**all: Any) -> Any:
        return all

    trace = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
    async with running(dsn, tasks):
        one = await desk.one("with", {"n": 7}, queue="mail", max_retries=3)
        two = await desk.one("sync", traceparent=trace)
        three = await desk.one("without", {"ctx": "mine"})
        first, second, third = await desk.all_final([one, two, three])
    assert json.loads(first.result or "") == [7, str(one), "with", "mail", 1, 0, 3, False]
    assert json.loads(second.result or "") == [f"{two}:1", str(second.lease), trace, False]
    assert json.loads(third.result or "") == {"ctx": "mine"}


async def test_payload_arrives_as_it_was_sent(dsn: str, desk: Desk) -> None:
    tasks = Registry()

    @tasks.task("echo")
    async def echo(value: Any) -> Any:
        return value

    values = [2**70, -(2**63), 0.1, 1e300, "ä\u2028\U0001f600", [None, True, {"": []}], "x" * 100_000]
    async with running(dsn, tasks):
        done = await desk.all_final([await desk.one("echo", {"value": value}) for value in values])
    assert [json.loads(task.result or "") for task in done] == values


async def test_failures_are_retried_with_stored_backoff_until_exhausted(dsn: str, desk: Desk) -> None:
    """C14: min(cap, base * 2^(failures-1)) * U(0.5, 1.5), computed once and stored."""
    tasks = Registry()

    @tasks.task("boom", retry=RetryPolicy(base=0.2, cap=0.5))
    async def boom() -> None:
        raise ValueError("no luck")

    async with running(dsn, tasks, poll_interval=10):
        ids = await desk.enqueue("boom", times=8, max_retries=3)
        done = await desk.all_final(ids)
        attempts = [await desk.attempts(id) for id in ids]
    late = []
    for task, tried in zip(done, attempts, strict=True):
        assert (task.status, task.reason, task.attempts, task.failures) == (State.DEAD, "exhausted", 4, 4)
        assert task.last_error == "ValueError: no luck"
        assert task.fingerprint
        assert [a.outcome for a in tried] == ["RETRIED", "RETRIED", "RETRIED", "DEAD"]
        for n, base in enumerate((0.2, 0.4, 0.5)):
            ended = tried[n].ended_at
            assert ended is not None
            waited = (tried[n + 1].started_at - ended).total_seconds()
            assert waited >= 0.5 * base - 0.01
            late.append(waited - 1.5 * base)
    # When due: what comes on top of the band is a look and a claim, never a poll interval; on a busy machine a single
    # one may be held up.
    assert statistics.median(late) <= 2
    waits = [[_waited(t, n) for t in attempts] for n in range(3)]
    assert max(len(set(waited)) for waited in waits) > 1, "no jitter"


def _waited(tried: list[Attempt], n: int) -> float:
    ended = tried[n].ended_at
    assert ended is not None
    return round((tried[n + 1].started_at - ended).total_seconds(), 2)


async def test_the_wait_is_in_the_row(dsn: str, desk: Desk) -> None:
    tasks = Registry()

    @tasks.task("boom", retry=RetryPolicy(base=100, cap=1000))
    async def boom() -> None:
        raise ValueError

    async with running(dsn, tasks):
        id = await desk.one("boom")
        task = await desk.state(id, State.PENDING)
        while not task.attempts or task.status is not State.PENDING:
            task = await desk.tasks.get(id)
            await asyncio.sleep(0.01)
    assert 49 <= (task.run_at - task.updated_at).total_seconds() <= 151
    assert (task.failures, task.crashes, task.lease is None or task.locked_by is not None) == (1, 0, True)


async def test_handler_can_name_its_wait(dsn: str, desk: Desk) -> None:
    tasks = Registry()

    @tasks.task("later", retry=RetryPolicy(base=60))
    def later(ctx: Context) -> int:
        if ctx.attempt == 1:
            raise Retry(0.3, "the service is busy")
        return ctx.failures

    async with running(dsn, tasks):
        id = await desk.one("later")
        task = await desk.final(id)
        first, second = await desk.attempts(id)
    assert (task.status, task.result, task.last_error) == (State.COMPLETED, "1", "the service is busy")
    assert first.outcome == "RETRIED" and first.ended_at is not None
    # The end is written a moment after the time from which the wait counts was taken.
    assert 0.25 <= (second.started_at - first.ended_at).total_seconds() < 25


async def test_retry_counts_as_a_failure(dsn: str, desk: Desk) -> None:
    tasks = Registry()

    @tasks.task("again")
    async def again() -> None:
        raise Retry(0)

    async with running(dsn, tasks):
        task = await desk.final(await desk.one("again", max_retries=2))
    assert (task.status, task.reason, task.attempts) == (State.DEAD, "exhausted", 3)


async def test_snooze_costs_no_failure(dsn: str, desk: Desk) -> None:
    tasks = Registry()

    @tasks.task("nap")
    async def nap(ctx: Context) -> int:
        if ctx.attempt <= 3:
            raise Snooze(0.05, "not yet")
        return ctx.attempt

    async with running(dsn, tasks):
        id = await desk.one("nap", max_retries=0)
        task = await desk.final(id)
        events = await desk.events(id)
        reasons = [attempt.reason for attempt in await desk.attempts(id)]
    assert (task.status, task.result, task.failures, task.snoozes) == (State.COMPLETED, "4", 0, 3)
    assert events == ["ENQUEUED", *["CLAIMED", "SNOOZED"] * 3, "CLAIMED", "COMPLETED"]
    assert reasons == ["not yet"] * 3 + [None]


@pytest.mark.parametrize("sync", [False, True])
async def test_cancel_and_dead_letter(dsn: str, desk: Desk, sync: bool) -> None:
    tasks = Registry()
    answers: dict[str, BaseException] = {"cancel": Cancel("no longer wanted"), "dead": DeadLetter("bad address")}
    if sync:

        @tasks.task("end")
        def end(how: str) -> None:
            raise answers[how]
    else:

        @tasks.task("end")
        async def end_async(how: str) -> None:
            raise answers[how]

    async with running(dsn, tasks):
        canceled = await desk.final(await desk.one("end", {"how": "cancel"}))
        dead = await desk.final(await desk.one("end", {"how": "dead"}))
    assert (canceled.status, canceled.reason, canceled.failures) == (State.CANCELED, "no longer wanted", 0)
    assert (dead.status, dead.reason, dead.attempts, dead.failures) == (State.DEAD, "bad address", 1, 1)


async def test_timeout_is_a_failure_and_is_retried(dsn: str, desk: Desk) -> None:
    tasks = Registry()
    cleaned = Signal("clean-up")

    @tasks.task("slow", timeout=0.3, retry=RetryPolicy(base=0.01))
    async def slow(ctx: Context) -> str:
        if ctx.attempt > 1:
            return "second"
        try:
            await asyncio.sleep(60)
        finally:
            cleaned.fire(ctx.canceled)
        return "never"

    @tasks.task("sync", timeout=0.3, retry=RetryPolicy(base=0.01))
    def sync(ctx: Context) -> str:
        if ctx.attempt > 1:
            return "second"
        while True:
            ctx.check_canceled()
            time.sleep(0.01)

    async with running(dsn, tasks):
        ids = [await desk.one("slow"), await desk.one("sync")]
        done = await desk.all_final(ids)
        events = [await desk.events(id) for id in ids]
    for task, history in zip(done, events, strict=True):
        assert (task.status, task.result, task.failures) == (State.COMPLETED, '"second"', 1)
        assert task.last_error == "timed out after 0.3 s"
        assert history == ["ENQUEUED", "CLAIMED", "RETRIED", "CLAIMED", "COMPLETED"]
    assert cleaned.values == [True]


async def test_whose_timeout_counts(dsn: str, desk: Desk) -> None:
    """The task's own, else the handler's, else the worker's."""
    tasks = Registry()

    @tasks.task("own", timeout=60)
    async def own() -> None:
        await asyncio.sleep(60)

    @tasks.task("default")
    async def default() -> None:
        await asyncio.sleep(60)

    async with running(dsn, tasks, handler_timeout=0.4):
        ids = [await desk.one("own", timeout=0.2, max_retries=0), await desk.one("default", max_retries=0)]
        first, second = await desk.all_final(ids)
    assert (first.last_error, first.reason) == ("timed out after 0.2 s", "exhausted")
    assert second.last_error == "timed out after 0.4 s"


async def test_a_result_after_the_timeout_still_counts(dsn: str, desk: Desk) -> None:
    """Truth wins: who finishes while being told to stop has finished."""
    tasks = Registry()

    @tasks.task("tough", timeout=0.2)
    async def tough() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.05)
        return "done all the same"

    async with running(dsn, tasks):
        task = await desk.final(await desk.one("tough"))
    assert (task.status, task.result, task.failures) == (State.COMPLETED, '"done all the same"', 0)


async def test_unknown_types_wait(dsn: str, desk: Desk) -> None:
    """C20: never failed, never discarded; and they do not stand in the way of others in their queue."""
    tasks = Registry()

    @tasks.task("known")
    async def known() -> None: ...

    async with running(dsn, tasks, poll_interval=0.1):
        strangers = await desk.enqueue("unknown", times=5)
        await desk.all_final(await desk.enqueue("known", times=5))
        late = await desk.one("unknown", priority=50)
        await desk.all_final(await desk.enqueue("known", times=5))
    for id in [*strangers, late]:
        task = await desk.tasks.get(id)
        assert (task.status, task.attempts) == (State.PENDING, 0)


async def test_higher_priorities_first_and_first_come_first_served(dsn: str, desk: Desk) -> None:
    tasks = Registry()
    order: list[int] = []

    @tasks.task("n")
    async def note(n: int) -> None:
        order.append(n)

    ids = []
    for n, priority in enumerate((0, 50, 0, 100, 50)):
        ids.append(await desk.one("n", {"n": n}, priority=priority, wake=False))
    async with running(dsn, tasks, concurrency=1):
        await desk.all_final(ids)
    assert order == [3, 1, 4, 0, 2]


async def test_log_lines_are_kept_with_the_attempt_and_bounded(dsn: str, desk: Desk) -> None:
    tasks = Registry()

    class Broken:
        def __str__(self) -> str:
            raise RuntimeError

        __repr__ = object.__repr__

    @tasks.task("talk")
    async def talk(ctx: Context, lines: int) -> None:
        for n in range(lines):
            ctx.log.info("line %d", n)
        ctx.log.warning("odd: %s %s", "only one argument")
        ctx.log.debug("\x1b[31mred\x00 \ud800 %s", "x" * 10_000)
        ctx.log.error("broken %s", Broken())
        if ctx.attempt == 1:
            raise Retry(0)

    @tasks.task("quiet")
    def quiet(ctx: Context) -> None: ...

    async with running(dsn, tasks):
        ids = [await desk.one("talk", {"lines": 3}), await desk.one("talk", {"lines": 5_000}), await desk.one("quiet")]
        await desk.all_final(ids)
        few, many, none = [[json.loads(a.logs or "null") for a in await desk.attempts(id)] for id in ids]
    assert none == [None]
    assert len(few) == len(many) == 2
    first = few[0]
    assert [line["message"] for line in first[:3]] == ["line 0", "line 1", "line 2"]
    assert [line["level"] for line in first] == ["info", "info", "info", "warning", "debug", "error"]
    assert first[3]["message"] == "'odd: %s %s' ('only one argument',)"
    assert first[4]["message"].startswith("\\x1b[31mred\\x00 \\ud800 xxx")
    assert len(first[4]["message"]) == 2_000
    assert first[5]["message"].startswith("'broken %s' (<")
    assert all(line["at"].startswith("20") for line in first)
    crowd = [line["message"] for line in many[1]]
    assert len(crowd) == 201
    assert (
        crowd[:2] == ["line 0", "line 1"] and crowd[100] == "... 4803 lines left out ..." and crowd[-4] == "line 4999"
    )


async def test_many_tasks_many_slots(dsn: str, desk: Desk) -> None:
    """Slots are a bound, and all of them are used."""
    tasks = Registry()
    running_now, most = 0, 0

    @tasks.task("busy")
    async def busy() -> None:
        nonlocal running_now, most
        running_now += 1
        most = max(most, running_now)
        await asyncio.sleep(0.02)
        running_now -= 1

    async with running(dsn, tasks, concurrency=7):
        done = await desk.all_final(await desk.enqueue("busy", times=100))
    assert most == 7
    assert {(t.status, t.attempts) for t in done} == {(State.COMPLETED, 1)}
