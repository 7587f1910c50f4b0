"""Enqueue inside the user's own transaction, through whatever driver the user has (`store/drivers.py`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NoReturn
from uuid import UUID

from dhara.client.calls import to_json
from dhara.domain.task import NewTask
from dhara.errors import IdempotencyConflict, InvalidTask, QueueFull, SchemaError
from dhara.store import drivers

# One row an enqueued task, in order.
Row = tuple[UUID, bool]

_SELECT = "SELECT task_id::text, created FROM dhara.enqueue_all({}) ORDER BY ord"
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def enqueue(connection: Any, new: Sequence[NewTask], schema: str) -> list[Row]:
    """Enqueue on a sync connection or session, in its transaction. Raises `TypeError` for any other kind."""
    try:
        return _rows(drivers.run(connection, _SELECT, to_json(new), schema))
    except Exception as error:
        _explain(error, new)


async def enqueue_async(connection: Any, new: Sequence[NewTask], schema: str) -> list[Row]:
    """Enqueue on an async connection or session, in its transaction. Raises `TypeError` for any other kind."""
    try:
        return _rows(await drivers.run_async(connection, _SELECT, to_json(new), schema))
    except Exception as error:
        _explain(error, new)


def _rows(rows: Sequence[Any]) -> list[Row]:
    return [(UUID(str(row[0])), bool(row[1])) for row in rows]


def _explain(error: Exception, new: Sequence[NewTask]) -> NoReturn:
    """Raise what the SQL function meant; anything else as it came."""
    state = _sqlstate(error)
    text = " ".join(str(error).split())
    if state == "23505" and (found := _UUID.search(text)) and "another payload" in text:
        standing = UUID(found[0])
        culprit = [i for i, task in enumerate(new) if task.idempotency_key and f"'{task.idempotency_key}'" in text]
        index = culprit[0] if culprit else 0
        raise IdempotencyConflict(standing, new[index].idempotency_key, index if len(new) > 1 else None) from error
    if state == "22023" and (refused := re.search(r"dhara: (\w+): ([^\[(]+)", text)):
        raise InvalidTask([(refused[1], refused[2].strip())]) from error
    if state == "53400" and (full := re.search(r"dhara: queue (\S+) is full", text)):
        raise QueueFull(full[1]) from error
    if state in ("42883", "3F000"):
        raise SchemaError("the database lacks dhara's schema; run `dhara migrate up`") from error
    raise error


def _sqlstate(error: BaseException | None) -> str | None:
    """The SQLSTATE of a driver's exception, also where SQLAlchemy or Django have wrapped it."""
    while error is not None:
        for holder in (error, getattr(error, "orig", None)):
            state = getattr(holder, "sqlstate", None)
            if isinstance(state, str):
                return state
        error = error.__cause__
    return None
