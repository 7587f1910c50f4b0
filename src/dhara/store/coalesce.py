"""Group commit: items that arrive while a batch is being written form the next one.

No timer: an item that comes alone is written at once, and under load batches grow by themselves to what arrives in one
write's time. Each submitter is answered only after its batch has been written. A batch that is refused for what is in
it is halved until the bad item stands alone, so that it harms no other.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Generic, TypeVar

from dhara.store.pool import is_transient

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Coalescer(Generic[Item, Answer]):
    """Turns concurrent `put` calls into calls of `write` with at most `most` items, `lanes` of them at a time.

    `write` answers one value an item, in order; an exception as a value is raised to that item's submitter only.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Item]], Awaitable[Sequence[Answer | Exception]]],
        *,
        most: int = 1_000,
        lanes: int = 1,
    ) -> None:
        self._write = write
        self._most = most
        self._lanes = lanes
        self._waiting: deque[tuple[Item, asyncio.Future[Answer]]] = deque()
        self._writers: set[asyncio.Task[None]] = set()

    def put(self, item: Item) -> asyncio.Future[Answer]:
        """Have `item` written; its answer comes once that is durable.

        Canceling the answer takes the item back unless its batch is under way already.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if len(self._writers) < self._lanes:
            writer = asyncio.create_task(self._drain(), name="Coalescer")
            self._writers.add(writer)
            writer.add_done_callback(self._ended)
        return future

    async def close(self) -> None:
        """Wait until everything submitted so far has been answered."""
        while self._writers:
            # Not `gather`: that would hand a cancellation of this call to the writers, who have others to answer.
            await asyncio.wait(self._writers)

    async def _drain(self) -> None:
        try:
            while batch := self._next():
                await self._answer_all(batch)
        finally:
            # Here, not when the loop reports the task as done: whoever submits in between would wait for nobody.
            if (writer := asyncio.current_task()) is not None:
                self._writers.discard(writer)

    def _ended(self, writer: asyncio.Task[None]) -> None:
        self._writers.discard(writer)  # canceled before its first step, it has not done so itself
        if not self._writers:
            # It was canceled, else nothing would be left: nobody comes for those that still wait.
            _fail_all(self._waiting, asyncio.CancelledError())
            self._waiting.clear()

    async def _answer_all(self, batch: list[tuple[Item, asyncio.Future[Answer]]]) -> None:
        try:
            await self._answer(batch)
        except BaseException as error:
            # Canceled from outside, as the loop closes: nobody may be left waiting for an answer.
            _fail_all(batch, error)
            raise

    def _next(self) -> list[tuple[Item, asyncio.Future[Answer]]]:
        batch: list[tuple[Item, asyncio.Future[Answer]]] = []
        while self._waiting and len(batch) < self._most:
            item, future = self._waiting.popleft()
            if not future.done():
                batch.append((item, future))
        return batch

    async def _answer(self, batch: list[tuple[Item, asyncio.Future[Answer]]]) -> None:
        try:
            answers = await self._write([item for item, _ in batch])
        except Exception as error:
            if len(batch) > 1 and not is_transient(error):
                middle = len(batch) // 2
                await self._answer(batch[:middle])
                await self._answer(batch[middle:])
                return
            _fail_all(batch, error)
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            if isinstance(answer, Exception):
                _fail(future, answer)
            elif not future.done():
                future.set_result(answer)


def _fail_all(batch: Iterable[tuple[Item, asyncio.Future[Answer]]], error: BaseException) -> None:
    for _, future in batch:
        _fail(future, error)


def _fail(future: asyncio.Future[Answer], error: BaseException) -> None:
    if future.done():
        return
    if isinstance(error, asyncio.CancelledError):
        future.cancel()
    else:
        future.set_exception(error)
