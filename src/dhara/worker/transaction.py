"""`ctx.transaction()`: the handler's own writes and the completion of its task, in one fenced commit.

The fenced update is the last statement before the commit, so the task's row is locked only briefly; when the lease is
lost it raises, and the handler's writes roll back with it. Whatever driver the user has: the statement is one SQL
function with one JSON parameter, dispatched as `enqueue_tx` is.

A setting that is local to the transaction is made when the block begins and must still be there when it ends. Where it is
not, the block's statements were not in one transaction, by whatever way: autocommit, or a commit inside the block.
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

_BEGIN = "SELECT set_config('dhara_attempt.lease', {}->>'lease', true)"
_COMPLETE = """
SELECT CASE WHEN current_setting('dhara_attempt.lease', true) = given.outcome->>'lease'
            THEN dhara.complete(given.outcome) END
FROM (SELECT {} AS outcome) AS given"""


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
        progress: Callable[[], str | None],
    ) -> None:
        self._claim = claim
        self._schema = schema
        self._session = session
        self._open = open
        self._settled = settled
        self._logs = logs
        self._progress = progress
        self._stack = AsyncExitStack()
        self.result: Any = None

    async def __aenter__(self) -> Any:
        try:
            if self._session is None:
                self._session = await self._open(self._stack)
            if drivers.kind(self._session) == "asyncpg":
                if self._session.is_in_transaction():
                    raise RuntimeError("the connection is in a transaction already; ctx.transaction() makes its own")
                await self._stack.enter_async_context(self._session.transaction())
            await drivers.run_async(self._session, _BEGIN, self._parameter(), self._schema)
        except BaseException as error:
            await self._stack.__aexit__(type(error), error, error.__traceback__)
            raise
        return self._session

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        explicit = drivers.kind(self._session) != "asyncpg"
        try:
            if error is None:
                self._check(await drivers.run_async(self._session, _COMPLETE, self._parameter(), self._schema))
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
        drivers.run(self._session, _BEGIN, self._parameter(), self._schema)
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
        fields = {"id": self._claim.id, "lease": self._claim.lease, "result": msgspec.Raw(result.encode())}
        for name, text in (("logs", self._logs()), ("progress", self._progress())):
            if text is not None:
                fields[name] = msgspec.Raw(text.encode())
        return msgspec.json.encode(fields).decode()

    def _check(self, rows: Any) -> None:
        completed = rows[0][0]
        if completed is None:
            raise RuntimeError(
                "ctx.transaction() found no transaction that spans its block: the session is in autocommit mode, or the"
                " block committed or rolled back; the task is not completed"
            )
        if not completed:
            raise LeaseLost(
                f"task {self._claim.id} is no longer this attempt's; its writes in this transaction are rolled back"
            )
