"""Group commit: who shares a batch with whom, and who pays for whose mistake."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from dhara.store.coalesce import Coalescer


class Writer:
    """Answers each item with its double; holds every batch until `gate` opens."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.started = asyncio.Event()

    async def __call__(self, items: Sequence[int]) -> Sequence[int | Exception]:
        self.batches.append(list(items))
        self.started.set()
        await self.gate.wait()
        if any(item < 0 for item in items):
            raise ZeroDivisionError("negative")
        return [item * 2 if item != 13 else LookupError("unlucky") for item in items]


async def _in_flight(writer: Writer, coalescer: Coalescer[int, int], *items: int) -> list[asyncio.Future[int]]:
    """The first item is being written, the others wait."""
    first = coalescer.put(items[0])
    await writer.started.wait()
    rest = [coalescer.put(item) for item in items[1:]]
    await asyncio.sleep(0)
    return [first, *rest]


async def test_what_arrives_during_a_write_forms_the_next_one() -> None:
    writer = Writer()
    coalescer: Coalescer[int, int] = Coalescer(writer)
    waiting = await _in_flight(writer, coalescer, 1, 2, 3, 4)
    writer.gate.set()
    assert await asyncio.gather(*waiting) == [2, 4, 6, 8]
    assert writer.batches == [[1], [2, 3, 4]]


async def test_batches_are_bounded_and_close_waits_for_all() -> None:
    writer = Writer()
    coalescer: Coalescer[int, int] = Coalescer(writer, most=2)
    waiting = await _in_flight(writer, coalescer, 1, 2, 3, 4)
    writer.gate.set()
    await coalescer.close()
    assert all(task.done() or not task.cancelled() for task in waiting)
    assert writer.batches == [[1], [2, 3], [4]]
    assert await asyncio.gather(*waiting) == [2, 4, 6, 8]


async def test_an_exception_as_an_answer_is_its_submitters_alone() -> None:
    writer = Writer()
    coalescer: Coalescer[int, int] = Coalescer(writer)
    waiting = await _in_flight(writer, coalescer, 1, 13, 3)
    writer.gate.set()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(answers[1], LookupError)
    assert answers[::2] == [2, 6]


async def test_a_bad_item_is_singled_out() -> None:
    writer = Writer()
    coalescer: Coalescer[int, int] = Coalescer(writer)
    waiting = await _in_flight(writer, coalescer, 1, 2, -3, 4, 5)
    writer.gate.set()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(answers[2], ZeroDivisionError)
    assert [answers[i] for i in (0, 1, 3, 4)] == [2, 4, 8, 10]


async def test_a_lost_connection_is_told_to_all_of_its_batch_and_the_next_goes_on() -> None:
    calls: list[list[int]] = []

    async def write(items: Sequence[int]) -> Sequence[int | Exception]:
        calls.append(list(items))
        await asyncio.sleep(0)
        if 1 in items:
            raise ConnectionResetError("gone")
        return [0 for _ in items]

    coalescer: Coalescer[int, int] = Coalescer(write, most=2)
    answers = await asyncio.gather(*(coalescer.put(i) for i in (1, 1, 2)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [ConnectionResetError, ConnectionResetError, int]
    assert calls == [[1, 1], [2]]


async def test_a_canceled_submitter_takes_its_item_back_while_it_waits() -> None:
    writer = Writer()
    coalescer: Coalescer[int, int] = Coalescer(writer)
    first, second, third = await _in_flight(writer, coalescer, 1, 2, 3)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    writer.gate.set()
    assert [await first, await third] == [2, 6]
    assert writer.batches == [[1], [3]]


async def test_one_after_the_other() -> None:
    """The writer of the first has just ended when the second comes: it must not be taken for still running."""
    writer = Writer()
    writer.gate.set()
    coalescer: Coalescer[int, int] = Coalescer(writer)
    async with asyncio.timeout(5):
        assert [await coalescer.put(n) for n in range(100, 150)] == [2 * n for n in range(100, 150)]


async def test_a_canceled_close_cancels_nobody_else() -> None:
    writer = Writer()
    coalescer: Coalescer[int, int] = Coalescer(writer, most=1)
    waiting = await _in_flight(writer, coalescer, 1, 2)
    closing = asyncio.create_task(coalescer.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    writer.gate.set()
    async with asyncio.timeout(30):
        assert await asyncio.gather(*waiting) == [2, 4]


@pytest.mark.parametrize("turns, batches", [(0, []), (1, [[1]])])
async def test_when_the_last_writer_is_canceled_nobody_is_left_waiting(turns: int, batches: list[list[int]]) -> None:
    """Before the first turn it has not begun."""
    writer = Writer()
    coalescer: Coalescer[int, int] = Coalescer(writer, most=1)
    waiting = [coalescer.put(n) for n in (1, 2, 3)]
    for _ in range(turns):
        await asyncio.sleep(0)
    (only,) = coalescer._writers
    only.cancel()
    async with asyncio.timeout(30):
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(answer) for answer in answers] == [asyncio.CancelledError] * 3
        assert writer.batches == batches
        writer.gate.set()
        assert await coalescer.put(4) == 8


async def test_another_writer_goes_on_when_one_is_canceled() -> None:
    writer = Writer()
    coalescer: Coalescer[int, int] = Coalescer(writer, most=1, lanes=2)
    waiting = await _in_flight(writer, coalescer, 1, 2, 3)
    await asyncio.sleep(0)
    (one, _) = coalescer._writers
    one.cancel()
    await asyncio.wait([one])
    writer.gate.set()
    async with asyncio.timeout(30):
        answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert [isinstance(answer, asyncio.CancelledError) for answer in answers].count(True) == 1
    assert answers[2] == 6
