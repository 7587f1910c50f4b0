"""An attempt in a process of its own: what a child of the nursery does with its claim."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

from dhara.domain.outcome import Failed, Outcome
from dhara.domain.task import Claim
from dhara.store.pool import DatabaseSettings, connect
from dhara.worker.context import AttemptLog, Context, Line
from dhara.worker.executor import Executor
from dhara.worker.nursery import Body, Progressed, Said
from dhara.worker.registry import Registry
from dhara.worker.slot import Slot
from dhara.worker.transaction import Transaction


def body(registry: Registry, database: DatabaseSettings) -> Body:
    """What the nursery's children run."""

    def run(claim: Claim, send: Callable[[Any], None]) -> Outcome:
        return asyncio.run(_attempt(registry, database, claim, send))

    return run


async def _attempt(
    registry: Registry, database: DatabaseSettings, claim: Claim, send: Callable[[Any], None]
) -> Outcome:
    handler = registry.get(claim.type)
    if handler is None:
        return Failed(f"type {claim.type!r} is not registered in this process")
    slot = Slot(0)
    async with registry.live() as state:

        def make_context(claim: Claim) -> Context:
            context = _Told(claim, transactions(database), send)
            context.state = state
            return context

        return await Executor(registry, make_context, None).execute(handler, claim, slot)


class _Told(Context):
    """A context whose words travel to the runner."""

    def __init__(self, claim: Claim, transaction: Any, send: Callable[[Any], None]) -> None:
        super().__init__(claim, transaction)
        self._send = send
        self.log = _ToldLog(claim, send)

    def progress(self, percent: float, message: str = "") -> Any:
        said = super().progress(percent, message)
        assert self._progress is not None
        self._send(Progressed(self._progress))
        return said


class _ToldLog(AttemptLog):
    def __init__(self, claim: Claim, send: Callable[[Any], None]) -> None:
        super().__init__(claim)
        self._send = send

    def keep(self, line: Line) -> None:
        super().keep(line)
        self._send(Said(line))


def transactions(database: DatabaseSettings) -> Callable[[Context, Any], Transaction]:
    """`ctx.transaction()` on a connection that is opened for it."""

    async def open(stack: AsyncExitStack) -> Any:
        connection = await connect(database, "dhara handler")
        stack.push_async_callback(connection.close)
        return connection

    return lambda context, session: transaction(context, session, database.schema, open)


def transaction(context: Context, session: Any, schema: str, open: Any) -> Transaction:
    """The transaction of one attempt."""

    def settled() -> None:
        context.settled = True

    return Transaction(context._claim, schema, session, open, settled, context.log.to_json)
