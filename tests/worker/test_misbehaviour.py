"""F14: whatever a handler does, only its own task fails and the worker goes on."""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from dhara import Cancel, Context, DeadLetter, Registry, Retry, RetryPolicy, Snooze
from dhara.domain import limits
from dhara.domain.lifecycle import State
from dhara.worker.failure import failed
from dhara.worker.runner import Runner
from tests.worker.kit import Desk, running


class Base(BaseException):
    """Not even an Exception."""


class Speechless(Exception):
    """Has no text to give."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


class Wordy(Exception):
    """`str` refuses what its `__str__` answers."""

    def __str__(self) -> Any:
        return 42


class Nameless(Exception):
    """Its class has a name that is no name."""


Nameless.__qualname__ = "N\x00\x1b[31m" * 5_000


def _recurse(n: int = 0) -> int:
    return _recurse(n + 1) + 1


def _deep(n: int) -> None:
    """A traceback of many frames that differ, so that Python does not fold them."""
    if n == 0:
        raise ValueError("at the bottom")
    (_deep if n % 2 else lambda m: _deep(m))(n - 1)


def _group() -> BaseException:
    return BaseExceptionGroup("several", [ValueError("one"), KeyError("two"), Base("three")])


# name -> (what it raises or does, what last_error begins with)
RAISED: dict[str, tuple[Callable[[], object], str]] = {
    "exit": (lambda: sys.exit(3), "SystemExit: 3"),
    "interrupt": (lambda: _raise(KeyboardInterrupt()), "KeyboardInterrupt: "),
    "cancelled": (lambda: _raise(asyncio.CancelledError("mine")), "asyncio.exceptions.CancelledError: mine"),
    "memory": (lambda: _raise(MemoryError()), "MemoryError: "),
    "recursion": (_recurse, "RecursionError: maximum recursion depth exceeded"),
    "base": (lambda: _raise(Base("bare")), "tests.worker.test_misbehaviour.Base: bare"),
    "generator_exit": (lambda: _raise(GeneratorExit()), "GeneratorExit: "),
    "stop": (lambda: _raise(StopIteration(1)), "RuntimeError: "),
    "stop_async": (lambda: _raise(StopAsyncIteration(1)), ""),
    "speechless": (lambda: _raise(Speechless()), "tests.worker.test_misbehaviour.Speechless: (its text cannot be had"),
    "wordy": (lambda: _raise(Wordy()), "tests.worker.test_misbehaviour.Wordy: (its text cannot be had"),
    "nameless": (lambda: _raise(Nameless("x")), "tests.worker.test_misbehaviour.N\\x00\\x1b[31mN"),
    "long": (lambda: _raise(ValueError("x" * 10_000_000)), "ValueError: xxxxx"),
    "ansi": (lambda: _raise(ValueError("\x1b[31mred\x00\x07\x9b1m\ud800\u2028")), "ValueError: \\x1b[31mred\\x00\\x07"),
    "secret": (lambda: _raise(OSError("postgresql://me:hunter2@db/x failed")), "OSError: postgresql://me:***@db/x"),
    "group": (lambda: _raise(_group()), "BaseExceptionGroup: several (3 sub-exceptions)"),
    "deep": (lambda: _deep(300), "ValueError: at the bottom"),
    "loop_stop": (lambda: asyncio.get_event_loop().close(), "RuntimeError: "),
    "retry_odd": (lambda: _raise(Retry("soon")), ""),  # type: ignore[arg-type]
    "retry_delta": (lambda: _raise(Retry(datetime.timedelta(hours=1))), ""),  # type: ignore[arg-type]
    "retry_nan": (lambda: _raise(Retry(float("nan"))), ""),
    "dead_odd": (lambda: _raise(DeadLetter(404)), ""),  # type: ignore[arg-type]
    "dead_dirty": (lambda: _raise(DeadLetter("\x00\ud800" * 2_000)), ""),
}


def _raise(error: BaseException) -> None:
    raise error


def _misbehaving() -> Registry:
    tasks = Registry()

    @tasks.task("async", retry=RetryPolicy(base=0.001))
    async def async_(how: str) -> None:
        RAISED[how][0]()

    @tasks.task("sync", retry=RetryPolicy(base=0.001))
    def sync(how: str) -> None:
        RAISED[how][0]()

    @tasks.task("fine")
    async def fine(n: int) -> int:
        await asyncio.sleep(0.001)
        return n

    return tasks


def _all_slots_serve(runner: Runner) -> bool:
    return all(slot.task is not None and not slot.task.done() for slot in runner.slots.slots)


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_whatever_is_raised_fails_one_task_only(dsn: str, desk: Desk, kind: str) -> None:
    async with running(dsn, _misbehaving(), concurrency=3) as runner:
        ids = {how: await desk.one(kind, {"how": how}, max_retries=0) for how in RAISED}
        innocent = [await desk.one("fine", {"n": n}) for n in range(100)]
        bad = dict(zip(ids, await desk.all_final(list(ids.values())), strict=True))
        good = await desk.all_final(innocent)
        assert _all_slots_serve(runner)
    assert {t.status for t in good} == {State.COMPLETED}
    assert {t.attempts for t in good} == {1}
    for how, task in bad.items():
        assert (task.status, task.attempts, task.failures) == (State.DEAD, 1, 1), how
        error = task.last_error or ""
        assert len(error) <= limits.LAST_ERROR_LENGTH, how
        assert error.startswith(RAISED[how][1]), (how, error)
        assert not any(c < " " and c not in "\n\t" for c in error), how
        assert task.reason, how
        for attempt in await desk.attempts(task.id):
            assert len(attempt.error or "") <= 2 * limits.ERROR_BYTES, how
            assert "hunter2" not in (attempt.error or ""), how
    # A wish that makes no sense says so; it is not taken for another one.
    for how in ("retry_odd", "retry_delta"):
        assert "seconds" in (bad[how].last_error or ""), how


def test_ten_thousand_frames_are_kept_in_a_few_kilobytes() -> None:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        with pytest.raises(ValueError, match="at the bottom") as raised:
            _deep(10_000)
    finally:
        sys.setrecursionlimit(limit)
    found = failed("t", raised.value)
    assert len(found.error or "") <= limits.ERROR_BYTES
    assert json.loads(found.error or "")["traceback"].rstrip().endswith("ValueError: at the bottom")


async def test_what_is_kept_of_an_error(dsn: str, desk: Desk) -> None:
    async with running(dsn, _misbehaving()):
        hows = ("group", "deep", "ansi", "base", "long")
        ids = {how: await desk.one("async", {"how": how}, max_retries=0) for how in hows}
        tasks = await desk.all_final(list(ids.values()))
        kept = {how: await desk.error(id) for how, id in ids.items()}
    assert "KeyError: 'two'" in kept["group"]["traceback"]
    assert kept["deep"]["traceback"].rstrip().endswith("ValueError: at the bottom")
    assert kept["base"]["class"] == "tests.worker.test_misbehaviour.Base"
    for text in (kept["ansi"]["message"], kept["ansi"]["traceback"]):
        assert not set(text) & set("\x1b\x00\x07\x9b\u2028")
    assert "executor.py" not in kept["long"]["traceback"], "how dhara came to call it is of no interest"
    assert "in async_" in kept["long"]["traceback"] and "in _raise" in kept["long"]["traceback"]
    marks = dict(zip(hows, [task.fingerprint for task in tasks], strict=True))
    assert marks["ansi"] == marks["long"], "same class, same place"
    assert len(set(marks.values())) == len(hows) - 1


async def test_like_failures_share_a_fingerprint(dsn: str, desk: Desk) -> None:
    tasks = Registry()

    @tasks.task("fail")
    async def fail(n: int) -> None:
        if n == 3:
            raise KeyError(n)
        raise ValueError(f"number {n} at {object()}")

    async with running(dsn, tasks):
        ids = [await desk.one("fail", {"n": n}, max_retries=0) for n in range(4)]
        marks = [task.fingerprint for task in await desk.all_final(ids)]
    assert len(set(marks[:3])) == 1
    assert marks[3] not in marks[:3]


@dataclass
class Ring:
    """May hold itself."""

    next: Any = None


class Evil(dict[str, int]):
    """A mapping that fails as it is read, as lazy ones do."""

    def _refuse(self, *args: object) -> Any:
        raise LookupError("detached")

    items = keys = values = __iter__ = __getitem__ = __len__ = _refuse


class Silent:
    """Nothing that JSON knows."""


def _cyclic() -> list[Any]:
    ring: list[Any] = []
    ring.append(ring)
    return ring


def _ring() -> Ring:
    ring = Ring()
    ring.next = ring
    return ring


def _generator() -> Iterator[int]:
    yield 1


async def _async_generator() -> AsyncIterator[int]:
    yield 1


UNSTORABLE: dict[str, Callable[[], object]] = {
    "object": Silent,
    "nan": lambda: float("nan"),
    "infinite": lambda: {"x": [float("-inf")]},
    "cyclic": _cyclic,
    "ring": _ring,
    "large": lambda: "x" * 10_000_000,
    "bytes": lambda: b"abc",
    "nested_bytes": lambda: {"a": [bytearray(b"x")]},
    "generator": _generator,
    "async_generator": _async_generator,
    "nul": lambda: "a\x00b",
    "nul_key": lambda: {"a\x00": 1},
    "surrogate": lambda: ["\udc80"],
    "deep": lambda: json.loads("[" * 200 + "]" * 200),
    "function": lambda: test_unstorable_results_are_dead_at_once,
}


async def test_unstorable_results_are_dead_at_once(dsn: str, desk: Desk) -> None:
    tasks = Registry()

    @tasks.task("async")
    async def async_(what: str) -> object:
        return UNSTORABLE[what]()

    @tasks.task("sync")
    def sync(what: str) -> object:
        return UNSTORABLE[what]()

    async with running(dsn, tasks) as runner:
        for kind in ("async", "sync"):
            ids = [await desk.one(kind, {"what": what}) for what in UNSTORABLE]
            done = dict(zip(UNSTORABLE, await desk.all_final(ids), strict=True))
            for what, task in done.items():
                found = (task.status, task.reason, task.attempts, task.result)
                assert found == (State.DEAD, "invalid_result", 1, None), (kind, what)
                assert "the handler's result cannot be stored" in (task.last_error or ""), (kind, what)
        assert _all_slots_serve(runner)


async def test_a_result_that_fails_as_it_is_read(dsn: str, desk: Desk) -> None:
    """Whatever is made of it, it is a settlement, and the slot lives on."""
    tasks = Registry()

    @tasks.task("give")
    async def give() -> object:
        return Evil(a=1)

    async with running(dsn, tasks, concurrency=1) as runner:
        for _ in range(3):
            task = await desk.final(await desk.one("give"))
            assert task.status is State.COMPLETED or task.reason == "invalid_result"
        assert _all_slots_serve(runner)


async def test_what_can_be_stored_after_all(dsn: str, desk: Desk) -> None:
    tasks = Registry()
    values = {
        "dataclass": Ring(next=1),
        "set": {1},
        "tuple": (1, "a"),
        "date": datetime.date(2026, 1, 2),
        "int_keys": {1: 2},
        "large": "x" * 200_000,
    }

    @tasks.task("give")
    def give(what: str) -> object:
        return values[what]

    async with running(dsn, tasks):
        done = await desk.all_final([await desk.one("give", {"what": what}) for what in values])
    results = [json.loads(task.result or "") for task in done]
    assert results == [{"next": 1}, [1], [1, "a"], "2026-01-02", {"1": 2}, "x" * 200_000]


async def test_payloads_that_do_not_fit(dsn: str, desk: Desk) -> None:
    tasks = Registry()
    ran: list[Any] = []

    @tasks.task("one")
    async def one(a: int, *, ctx: Context) -> None:
        ran.append(a)

    @tasks.task("none")
    def none() -> None:
        ran.append(None)

    bad = [
        ("one", "{}", "missing argument(s): a"),
        ("one", '{"a": 1, "b": 2}', "unexpected argument(s): b"),
        ("one", '{"a": 1, "ctx": 2}', "unexpected argument(s): ctx"),
        ("one", "[1]", "not list"),
        ("one", "null", "not NoneType"),
        ("one", '"a"', "not str"),
        ("one", '{"a": 1e400}', "payload"),
        ("none", '{"self": 1}', "unexpected argument(s): self"),
        ("none", json.dumps({str(n): n for n in range(5_000)}), "unexpected argument(s)"),
    ]
    async with running(dsn, tasks):
        done = await desk.all_final([await desk.one(type, text) for type, text, _ in bad])
        assert (await desk.final(await desk.one("one", {"a": 5}))).status is State.COMPLETED
    assert ran == [5]
    for task, (_, text, words) in zip(done, bad, strict=True):
        assert (task.status, task.reason, task.attempts) == (State.DEAD, "invalid_payload", 1), text[:50]
        assert words in (task.last_error or ""), (text[:50], task.last_error)
        assert len(task.last_error or "") < 1_000


async def test_a_handler_that_cancels_its_own_slot(dsn: str, desk: Desk) -> None:
    """Its request to cancel must reach neither the slot nor the attempts that come after it there."""
    tasks = Registry()

    @tasks.task("self")
    async def cancel_self(wait: bool) -> str:
        me = asyncio.current_task()
        assert me is not None
        me.cancel()
        if wait:
            await asyncio.sleep(10)
        return "returned first"

    @tasks.task("group")
    async def group() -> str:
        async def fail() -> None:
            raise ValueError("inner")

        try:
            async with asyncio.TaskGroup() as inner:
                inner.create_task(fail())
        except ExceptionGroup:
            return "as it should be"
        return "no error"

    @tasks.task("limit")
    async def limit() -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(10)
        except TimeoutError:
            return "timed out"
        return "no time-out"

    async with running(dsn, tasks, concurrency=1) as runner:
        for wait in (True, False):
            task = await desk.final(await desk.one("self", {"wait": wait}, max_retries=0))
            assert (task.status, task.result) == ((State.DEAD, None) if wait else (State.COMPLETED, '"returned first"'))
            assert (await desk.final(await desk.one("group"))).result == '"as it should be"'
            assert (await desk.final(await desk.one("limit"))).result == '"timed out"'
        assert _all_slots_serve(runner)


async def test_retry_wishes_that_are_out_of_bounds(dsn: str, desk: Desk) -> None:
    tasks = Registry()
    wishes = [float("inf"), -5.0, 1e300]

    @tasks.task("snooze")
    def snooze(n: int, ctx: Context) -> str:
        if ctx.attempt == 1:
            raise Snooze(wishes[n])
        return "awake"

    async with running(dsn, tasks) as runner:
        ids = [await desk.one("snooze", {"n": n}) for n in range(len(wishes))]
        assert (await desk.final(ids[1])).result == '"awake"'
        for id in (ids[0], ids[2]):
            task = await desk.state(id, State.PENDING)
            while not task.snoozes:
                await asyncio.sleep(0.01)
                task = await desk.tasks.get(id)
            assert 364 <= (task.run_at - task.updated_at).days <= 365
        assert _all_slots_serve(runner)


async def test_a_handler_that_forks(dsn: str, desk: Desk) -> None:
    """The copy that comes back from the handler must not become a second worker with the same connections."""
    tasks = Registry()

    @tasks.task("fork")
    def fork() -> int:
        return os.fork()

    @tasks.task("fine")
    async def fine() -> None: ...

    async with running(dsn, tasks):
        task = await desk.final(await desk.one("fork", max_retries=0))
        assert task.status is State.COMPLETED
        child = int(task.result or "")
        assert child > 0
        pid, status = await asyncio.wait_for(asyncio.to_thread(os.waitpid, child, 0), 30)
        assert (pid, os.waitstatus_to_exitcode(status)) == (child, 0)
        assert (await desk.final(await desk.one("fine"))).status is State.COMPLETED


async def test_a_handler_with_a_thousand_threads(dsn: str, desk: Desk) -> None:
    tasks = Registry()
    enough = threading.Event()

    @tasks.task("crowd")
    def crowd() -> int:
        threads = [threading.Thread(target=enough.wait, args=(30,)) for _ in range(1_000)]
        for thread in threads:
            thread.start()
        enough.set()
        for thread in threads:
            thread.join()
        return len(threads)

    @tasks.task("fine")
    async def fine() -> None: ...

    async with running(dsn, tasks):
        ids = [await desk.one("crowd"), *await desk.enqueue("fine", times=20)]
        assert {task.status for task in await desk.all_final(ids)} == {State.COMPLETED}


async def test_odd_reasons_are_made_storable(dsn: str, desk: Desk) -> None:
    tasks = Registry()

    @tasks.task("end")
    async def end(n: int, ctx: Context) -> None:
        if n == 0:
            raise Cancel("\x00")
        if n == 1:
            raise Cancel(12)  # type: ignore[arg-type]
        if n == 2 and ctx.attempt == 1:
            raise Snooze(0, reason="\ud800")
        if n == 3 and ctx.attempt == 1:
            raise Retry(0, reason="\x9b")

    async with running(dsn, tasks, concurrency=5):
        ids = [await desk.one("end", {"n": n}, wake=n == 4) for n in range(5)]
        done = await desk.all_final(ids)
        attempts = [await desk.attempts(id) for id in ids]
    assert [task.status for task in done] == [*[State.CANCELED] * 2, *[State.COMPLETED] * 3]
    assert [task.reason for task in done[:2]] == ["\\x00", "12"]
    assert attempts[2][0].reason == "\\ud800"
    assert done[3].last_error == "\\x9b"
