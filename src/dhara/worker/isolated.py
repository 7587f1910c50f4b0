"""An attempt in a process of its own: what a child of the nursery does with its claim.

The registry's lifespan is entered there for each attempt: its resources cannot be shared between processes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

from msgspec import structs

from dhara.domain.outcome import Failed, Outcome
from dhara.domain.task import Claim
from dhara.store.pool import DatabaseSettings, connect
from dhara.worker.children import Body, Progressed, Said
from dhara.worker.context import AttemptLog, Context, Line
from dhara.worker.executor import Executor
from dhara.worker.failure import failed
from dhara.worker.registry import Registry
from dhara.worker.slot import Slot
from dhara.worker.transaction import Transaction

log = logging.getLogger(__name__)


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
    outcome: Outcome | None = None
    try:
        async with registry.live() as state:

            def make_context(claim: Claim) -> Context:
                context = _Told(claim, transactions(database), send)
                context.state = state
                return context

            outcome = await Executor(registry, make_context, None).execute(handler, claim, slot)
    except Exception as error:
        # The lifespan's own. What the handler has answered before stands.
        if outcome is None:
            return failed(claim.type, error, policy=handler.options.policy(error))
        log.exception("taking down the lifespan failed")
    assert outcome is not None
    return outcome


class _Told(Context):
    """A context whose words travel to the runner."""

    def __init__(self, claim: Claim, transaction: Any, send: Callable[[Any], None]) -> None:
        super().__init__(claim, transaction)
        self._send = send
        self.log = _ToldLog(claim, send)

    def tell_progress(self, progress: str) -> None:
        super().tell_progress(progress)
        self._send(Progressed(progress))


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
        connection = await connect(for_handlers(database), "dhara handler")
        stack.push_async_callback(connection.close)
        return connection

    return lambda context, session: transaction(context, session, database.schema, open)


def for_handlers(database: DatabaseSettings) -> DatabaseSettings:
    """Connections for the statements of users: nothing but the attempt's deadline limits how long they take."""
    return structs.replace(database, pool_min=0, users=True)


def transaction(context: Context, session: Any, schema: str, open: Any) -> Transaction:
    """The transaction of one attempt. Raises `RuntimeError` when another one has completed it."""
    if context.settled:
        raise RuntimeError("ctx.transaction() has completed this task already; it can do so once")

    def settled() -> None:
        context.settled = True

    def progress() -> str | None:
        return context._progress

    return Transaction(context._claim, schema, session, open, settled, context.log.to_json, progress)
