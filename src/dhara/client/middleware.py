"""What stands around every enqueue of a client: `AsyncClient(..., middleware=[...])`, outermost first.

    def traced(task: NewTask) -> NewTask:                    # changes the task
        return msgspec.structs.replace(task, traceparent=current_traceparent())

    async def timed(task: NewTask, proceed: Proceed) -> Handle:     # stands around its enqueue
        start = time.monotonic()
        handle = await proceed(task)
        metric.observe(time.monotonic() - start)
        return handle

A middleware may change the task, raise to refuse it, or answer another task's handle without proceeding. Of
`enqueue_many`, each task goes through all of them; the tasks are written together, once every one has come through.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from dhara.client.calls import as_object, checked_payload
from dhara.domain import validate
from dhara.domain.task import NewTask

if TYPE_CHECKING:
    from dhara.client.asynchronous import Handle

Proceed = Callable[[NewTask], Awaitable["Handle"]]
Around = Callable[[NewTask, Proceed], Awaitable["Handle"]]
Before = Callable[[NewTask], NewTask]
Middleware = Around | Before
Write = Callable[[Sequence[NewTask]], Awaitable[Sequence["Handle"]]]


class Chain:
    """The middleware of one client. Raises `TypeError` for what is none."""

    def __init__(self, middleware: Sequence[Middleware] = ()) -> None:
        self._all = [(function, _is_around(function)) for function in middleware]
        self.empty = not middleware
        self.plain = not any(around for _, around in self._all)

    def before(self, tasks: Sequence[NewTask]) -> Sequence[NewTask]:
        """The tasks as plain middleware leaves them. Raises `TypeError` if some is async."""
        if not self.plain:
            raise TypeError(
                "Client.enqueue_tx runs in the calling thread, without a loop: give it plain middleware, def m(task)"
            )
        return [self._changed(task) for task in tasks] if self._all else tasks

    def _changed(self, task: NewTask) -> NewTask:
        changed: Any = task
        for function, _ in self._all:
            changed = function(changed)  # type: ignore[call-arg]
        return _checked(changed, task)

    async def run(self, tasks: Sequence[NewTask], write: Write) -> Sequence[Handle]:
        """`write`, inside all middleware; handles in the order of `tasks`."""
        if self.plain:
            return await write(self.before(tasks))
        turns = [_Turn() for _ in tasks]
        runs = [asyncio.create_task(self._run(task, turn, write)) for task, turn in zip(tasks, turns, strict=True)]
        try:
            for run, turn in zip(runs, turns, strict=True):
                either: set[asyncio.Future[Any]] = {run, turn.come}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if run.done():
                    run.result()  # Raises what a middleware raised, before anything is written.
            await _write([turn for turn in turns if turn.come.done()], write)
            return await asyncio.gather(*runs)
        finally:
            for run in runs:
                run.cancel()
            await asyncio.gather(*runs, return_exceptions=True)

    async def _run(self, task: NewTask, turn: _Turn, write: Write) -> Handle:
        async def last(changed: NewTask) -> Handle:
            checked = _checked(changed, task)
            if turn.come.done():  # A middleware that proceeds twice.
                return (await write([checked]))[0]
            turn.come.set_result(checked)
            return await turn.answer

        proceed: Proceed = last
        for function, around in reversed(self._all):
            proceed = _inside(function, around, proceed)
        return await proceed(task)


class _Turn:
    """One task's way: come through the middleware, then answered."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.come: asyncio.Future[NewTask] = loop.create_future()
        self.answer: asyncio.Future[Handle] = loop.create_future()


async def _write(turns: Sequence[_Turn], write: Write) -> None:
    """One write for all that have come; its exception is each one's."""
    if not turns:
        return
    try:
        handles = await write([turn.come.result() for turn in turns])
    except Exception as error:
        for turn in turns:
            turn.answer.set_exception(error)
            turn.answer.exception()  # Seen, also where no middleware waits for it any longer.
        return
    for turn, handle in zip(turns, handles, strict=True):
        if not turn.answer.done():
            turn.answer.set_result(handle)


def _inside(function: Any, around: bool, proceed: Proceed) -> Proceed:
    async def run(task: NewTask) -> Handle:
        handle: Handle = await (function(task, proceed) if around else proceed(function(task)))
        return handle

    return run


def _is_around(function: Any) -> bool:
    if not callable(function):
        raise TypeError(f"middleware is `def m(task)` or `async def m(task, proceed)`, not {function!r}")
    call = function if inspect.isroutine(function) else type(function).__call__
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def _checked(changed: object, original: NewTask) -> NewTask:
    """What a middleware has made of a task, within the bounds of every task. Raises `InvalidTask`, `TypeError`."""
    if changed is original:
        return original
    if not isinstance(changed, NewTask):
        raise TypeError(f"a middleware must return the task, not {type(changed).__name__}")
    fields = as_object(changed)
    del fields["id"], fields["payload"]
    if changed.unique_key is None:
        del fields["unique_for"], fields["on_conflict"]
    payload = checked_payload(msgspec.Raw(changed.payload.encode()))
    return validate.new_task(fields, payload, id=original.id, now=datetime.now(UTC))
