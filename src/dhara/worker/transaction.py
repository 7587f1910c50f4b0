"""`ctx.transaction()`: the handler's own writes and the completion of its task, in one fenced commit.

The fenced update is the last statement before the commit, so the task's row is locked only briefly; when the lease is
lost it raises, and the handler's writes roll back with it. Whatever driver the user has: the statement is one SQL
function with one JSON parameter, dispatched as `enqueue_tx` is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import msgspec

from dhara.domain import limits, validate
from dhara.domain.task import Claim
from dhara.errors import LeaseLost
from dhara.store import drivers

_COMPLETE = "SELECT dhara.complete({})"


class Transaction:
    """One block. Set `.result` inside it to store a result; `open` gives a connection when the user brings none."""

    def __init__(
        self,
        claim: Claim,
        schema: str,
        session: Any,
        open: Callable[[AsyncExitStack], Awaitable[Any]],
        settled: Callable[[], None],
        logs: Callable[[], str | None],
    ) -> None:
        self._claim = claim
        self._schema = schema
        self._session = session
        self._open = open
        self._settled = settled
        self._logs = logs
        self._stack = AsyncExitStack()
        self.result: Any = None

    async def __aenter__(self) -> Any:
        if self._session is None:
            connection = await self._open(self._stack)
            await self._stack.enter_async_context(connection.transaction())
            self._session = connection
        elif drivers.kind(self._session) == "asyncpg":
            await self._stack.enter_async_context(self._session.transaction())
        return self._session

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        explicit = drivers.kind(self._session) != "asyncpg"
        try:
            if error is None:
                rows = await drivers.run_async(self._session, _COMPLETE, self._parameter(), self._schema)
                self._check(rows)
                if explicit:
                    await self._session.commit()
            elif explicit:
                await self._session.rollback()
        except BaseException as failure:
            if explicit:
                await self._session.rollback()
            await self._stack.__aexit__(type(failure), failure, failure.__traceback__)
            raise
        await self._stack.__aexit__(kind, error, trace)
        if error is None:
            self._settled()

    def __enter__(self) -> Any:
        if self._session is None:
            raise TypeError("without a session of its own this is `async with ctx.transaction()`; give a sync session")
        return self._session

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            self._session.rollback()
            return
        try:
            self._check(drivers.run(self._session, _COMPLETE, self._parameter(), self._schema))
            self._session.commit()
        except BaseException:
            self._session.rollback()
            raise
        self._settled()

    def _parameter(self) -> str:
        result = "null"
        if self.result is not None:
            result = validate.encode_json(self.result, what="result", most_bytes=limits.RESULT_BYTES)
        logs = self._logs()
        fields = {
            "id": self._claim.id,
            "lease": self._claim.lease,
            "result": msgspec.Raw(result.encode()),
            "logs": msgspec.Raw(logs.encode()) if logs else None,
        }
        return msgspec.json.encode(fields).decode()

    def _check(self, rows: Any) -> None:
        if not rows[0][0]:
            raise LeaseLost(
                f"task {self._claim.id} is no longer this attempt's; its writes in this transaction are rolled back"
            )
