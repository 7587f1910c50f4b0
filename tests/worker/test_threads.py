"""Threads for `def` handlers: every answer arrives, however the threads and the loop interleave."""

from __future__ import annotations

import asyncio
import threading
import weakref

import pytest

from dhara.worker.threads import Threads
from tests.waiting import eventually


async def test_every_answer_arrives_and_no_more_threads_than_allowed() -> None:
    threads, seen = Threads(4, "few"), set[str]()

    def call(n: int) -> int:
        seen.add(threading.current_thread().name)
        return n

    futures = [threads.run(lambda n=n: call(n)) for n in range(2_000)]  # type: ignore[misc]
    assert await asyncio.gather(*futures) == list(range(2_000))
    assert seen <= {f"few_{n}" for n in range(1, 5)}
    # One after the other: none of the wake-ups is lost, and a thread that is free is used again.
    for n in range(200):
        assert await threads.run(lambda n=n: call(n)) == n  # type: ignore[misc]
    threads.stop()


async def test_one_after_the_other_needs_one_thread() -> None:
    threads = Threads(4, "one")
    names = {await threads.run(lambda: threading.current_thread().name) for _ in range(20)}
    assert names == {"one_1"}
    threads.stop()


async def test_what_is_stopped_or_cancelled_before_its_turn_does_not_begin() -> None:
    threads, gate, began = Threads(1, "late"), threading.Event(), list[str]()

    def held() -> bool:
        began.append("first")
        return gate.wait(30)

    first = threads.run(held)
    await eventually(lambda: began == ["first"])
    second = threads.run(lambda: began.append("second"))
    third = threads.run(lambda: began.append("third"))
    second.cancel()
    threads.stop()
    gate.set()
    assert await first
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(third, 0.05)
    assert began == ["first"]


async def test_where_no_thread_can_start_nothing_is_begun_later(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, began = Threads(2, "none"), list[str]()
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start"):
        threads.run(lambda: began.append("ghost"))
    monkeypatch.setattr(threading.Thread, "start", start)
    assert await threads.run(lambda: "first") == "first"
    monkeypatch.setattr(threading.Thread, "start", refuse)
    gate = threading.Event()
    held, behind = threads.run(lambda: gate.wait(30)), threads.run(lambda: "waits for the one thread there is")
    gate.set()
    assert (await held, await behind) == (True, "waits for the one thread there is")
    assert began == []
    threads.stop()


async def test_an_idle_thread_keeps_nothing_of_its_last_task_alive() -> None:
    class Payload: ...

    threads, payload = Threads(1, "clean"), Payload()
    gone = weakref.ref(payload)
    await threads.run(lambda held=payload: None)  # type: ignore[misc]
    del payload
    await eventually(lambda: gone() is None)
    threads.stop()
