"""Background parts: start and stop, both idempotent, and never for ever."""

from __future__ import annotations

import asyncio
import time

import pytest

from dhara import service as services
from dhara.service import Every, Service, within


class Part(Service):
    """Runs until it is cancelled; heeds only the `deaf + 1`st cancellation."""

    def __init__(self, deaf: int = 0) -> None:
        super().__init__()
        self.runs = 0
        self.deaf = deaf

    async def run(self) -> None:
        self.runs += 1
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if self.deaf <= 0:
                    raise
                self.deaf -= 1


async def test_start_and_stop_are_idempotent() -> None:
    part = Part()
    await part.stop()
    assert await part.start() is part
    await part.start()
    await asyncio.sleep(0)
    assert part.runs == 1
    await part.stop()
    await part.stop()
    async with part:
        await asyncio.sleep(0)
    assert part.runs == 2


@pytest.mark.parametrize("deaf", [0, 1, 99])
async def test_stop_comes_to_its_end(monkeypatch: pytest.MonkeyPatch, deaf: int) -> None:
    """Also of a part that swallows its cancellation once, or always."""
    monkeypatch.setattr(services, "_PATIENCE", 0.1)
    part = await Part(deaf).start()
    await asyncio.sleep(0)
    task = part._task
    begun = time.monotonic()
    await part.stop()
    assert time.monotonic() - begun < 10
    assert task is not None and task.done() is (deaf < 2)
    part.deaf = 0
    task.cancel()


async def test_stopping_can_be_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "_PATIENCE", 60)
    part = await Part(deaf=1).start()
    await asyncio.sleep(0)
    task = part._task
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await part.stop()
    assert task is not None
    task.cancel()


async def test_a_part_that_ends_by_an_error_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Service):
        async def run(self) -> None:
            raise ValueError("broken")

    part = await Broken().start()
    await asyncio.sleep(0.01)
    assert "Broken ended by an error" in caplog.text
    await part.stop()


async def test_every_goes_on_after_errors_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    calls = 0

    async def work() -> None:
        nonlocal calls
        calls += 1
        if 2 <= calls <= 4:
            raise OSError("gone")

    async with Every(0.001, work, "the work"):
        while calls < 7:
            await asyncio.sleep(0.001)
    said = [record.getMessage() for record in caplog.records if record.levelname in ("INFO", "WARNING")]
    assert said == ["the work failed, trying again every 0.001 s: gone", "the work works again"]


async def test_within_answers_or_gives_up() -> None:
    async def answer() -> int:
        return 7

    async def fail() -> int:
        raise KeyError("no")

    over = asyncio.Event()

    async def deaf() -> None:
        while not over.is_set():
            try:
                await asyncio.wait_for(over.wait(), 60)
            except asyncio.CancelledError:
                continue

    assert await within(1, answer()) == 7
    with pytest.raises(KeyError):
        await within(1, fail())
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match=r"not done within 0\.1 s"):
        await within(0.1, deaf())
    assert time.monotonic() - begun < 30, "it does not wait until the cancellation is heeded"
    over.set()


async def test_within_passes_its_caller_s_cancellation_on() -> None:
    cancelled = asyncio.Event()

    async def long() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    task = asyncio.create_task(within(60, long()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(cancelled.wait(), 30)
