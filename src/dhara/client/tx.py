"""Enqueue inside the user's own transaction, through whatever driver the user has.

One SQL function with one JSON parameter, dispatched on the module of the connection's class: nothing is imported that
the user has not imported already. The parameter travels as text and is cast in SQL, because a codec that the user has
set for json would encode it twice. Under SQLAlchemy everything goes through the session's own `execute`: with asyncpg
below it, the raw connection may stand outside the session's transaction.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn
from uuid import UUID

from dhara.client.calls import to_json
from dhara.domain.task import NewTask
from dhara.errors import IdempotencyConflict, InvalidTask, SchemaError
from dhara.store.sql import qualify

# One row an enqueued task, in order.
Row = tuple[UUID, bool]

_SELECT = "SELECT task_id::text, created FROM dhara.enqueue_all({}) ORDER BY ord"
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_KNOWN = "a psycopg or asyncpg connection, an SQLAlchemy connection or session, or a Django connection"
_NOT_CONNECTIONS = {"Engine", "AsyncEngine", "Pool", "sessionmaker", "async_sessionmaker"}


def enqueue(connection: Any, new: Sequence[NewTask], schema: str) -> list[Row]:
    """Enqueue on a sync connection or session, in its transaction. Raises `TypeError` for any other kind."""
    kind = _kind(connection)
    run = _SYNC.get(kind)
    if run is None:
        raise TypeError(f"{_name(connection)} is asynchronous; use `await AsyncClient.enqueue_tx(...)` with it")
    try:
        return _rows(run(connection, to_json(new), schema))
    except Exception as error:
        _explain(error, new)


async def enqueue_async(connection: Any, new: Sequence[NewTask], schema: str) -> list[Row]:
    """Enqueue on an async connection or session, in its transaction. Raises `TypeError` for any other kind."""
    kind = _kind(connection)
    run = _ASYNC.get(kind)
    if run is None:
        raise TypeError(f"{_name(connection)} is synchronous; use `Client.enqueue_tx(...)` with it")
    try:
        return _rows(await run(connection, to_json(new), schema))
    except Exception as error:
        _explain(error, new)


def _kind(connection: Any) -> str:
    """Which driver the connection belongs to, by the modules of its class and its bases."""
    names = {base.__name__ for base in type(connection).__mro__}
    modules = [base.__module__ for base in type(connection).__mro__]
    if isinstance(connection, type) or names & _NOT_CONNECTIONS:
        raise TypeError(f"{_name(connection)} is no connection with a transaction; give {_KNOWN}")
    for module in modules:
        if module.startswith("sqlalchemy.ext.asyncio"):
            return "sqlalchemy async"
        root = module.partition(".")[0]
        if root == "psycopg":
            return "psycopg async" if "AsyncConnection" in names else "psycopg"
        if root in ("asyncpg", "sqlalchemy", "django"):
            return root
    raise TypeError(f"cannot enqueue through {_name(connection)}; give {_KNOWN}")


def _name(connection: Any) -> str:
    kind = connection if isinstance(connection, type) else type(connection)
    return f"{kind.__module__}.{kind.__qualname__}"


def _statement(schema: str, parameter: str) -> str:
    return qualify(_SELECT.format(f"CAST(CAST({parameter} AS text) AS json)"), schema)


def _psycopg(connection: Any, tasks: str, schema: str) -> Sequence[Any]:
    with connection.cursor(row_factory=_tuple_rows()) as cursor:
        rows: Sequence[Any] = cursor.execute(_statement(schema, "%s"), [tasks]).fetchall()
        return rows


async def _psycopg_async(connection: Any, tasks: str, schema: str) -> Sequence[Any]:
    async with connection.cursor(row_factory=_tuple_rows()) as cursor:
        await cursor.execute(_statement(schema, "%s"), [tasks])
        rows: Sequence[Any] = await cursor.fetchall()
        return rows


def _tuple_rows() -> Any:
    return sys.modules["psycopg.rows"].tuple_row


async def _asyncpg(connection: Any, tasks: str, schema: str) -> Sequence[Any]:
    rows: Sequence[Any] = await connection.fetch(_statement(schema, "$1"), tasks)
    return rows


def _sqlalchemy(connection: Any, tasks: str, schema: str) -> Sequence[Any]:
    rows: Sequence[Any] = connection.execute(_text(schema), {"tasks": tasks}).all()
    return rows


async def _sqlalchemy_async(connection: Any, tasks: str, schema: str) -> Sequence[Any]:
    rows: Sequence[Any] = (await connection.execute(_text(schema), {"tasks": tasks})).all()
    return rows


def _text(schema: str) -> Any:
    return sys.modules["sqlalchemy"].text(_statement(schema, ":tasks").replace("::", "\\:\\:"))


def _django(connection: Any, tasks: str, schema: str) -> Sequence[Any]:
    with connection.cursor() as cursor:
        cursor.execute(_statement(schema, "%s"), [tasks])
        rows: Sequence[Any] = cursor.fetchall()
        return rows


_SYNC: dict[str, Callable[..., Any]] = {"psycopg": _psycopg, "sqlalchemy": _sqlalchemy, "django": _django}
_ASYNC: dict[str, Callable[..., Any]] = {
    "psycopg async": _psycopg_async,
    "asyncpg": _asyncpg,
    "sqlalchemy async": _sqlalchemy_async,
}


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
