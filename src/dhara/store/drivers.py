"""The user's own connection, whatever driver it belongs to: one statement with one text parameter, in its transaction.

Dispatched on the module of the connection's class: nothing is imported that the user has not imported already. The
parameter travels as text and is cast to json in SQL, because a codec that the user has set for json would encode it
twice. Under SQLAlchemy everything goes through the session's own `execute`: with asyncpg below it, the raw connection
may stand outside the session's transaction.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from dhara.store.sql import qualify

Rows = Sequence[Any]

_KNOWN = "a psycopg or asyncpg connection, an SQLAlchemy connection or session, or a Django connection"
_NOT_CONNECTIONS = {"Engine", "AsyncEngine", "Pool", "sessionmaker", "async_sessionmaker"}


def run(connection: Any, select: str, text: str, schema: str) -> Rows:
    """Run `select` (with `{}` for its one json parameter) on a sync connection. Raises `TypeError` for any other."""
    found = _SYNC.get(kind(connection))
    if found is None:
        raise TypeError(f"{_name(connection)} is asynchronous; use `await AsyncClient.enqueue_tx(...)` with it")
    return found(connection, select, text, schema)


async def run_async(connection: Any, select: str, text: str, schema: str) -> Rows:
    """Run `select` on an async connection. Raises `TypeError` for any other."""
    found = _ASYNC.get(kind(connection))
    if found is None:
        raise TypeError(f"{_name(connection)} is synchronous; use `Client.enqueue_tx(...)` with it")
    return await found(connection, select, text, schema)


def kind(connection: Any) -> str:
    """Which driver the connection belongs to, by the modules of its class and its bases. Raises `TypeError`."""
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
    raise TypeError(f"{_name(connection)} is no connection that is known here; give {_KNOWN}")


def _name(connection: Any) -> str:
    kind = connection if isinstance(connection, type) else type(connection)
    return f"{kind.__module__}.{kind.__qualname__}"


def _statement(select: str, schema: str, parameter: str) -> str:
    return qualify(select.format(f"CAST(CAST({parameter} AS text) AS json)"), schema)


def _psycopg(connection: Any, select: str, text: str, schema: str) -> Rows:
    with connection.cursor(row_factory=_tuple_rows()) as cursor:
        rows: Rows = cursor.execute(_statement(select, schema, "%s"), [text]).fetchall()
        return rows


async def _psycopg_async(connection: Any, select: str, text: str, schema: str) -> Rows:
    async with connection.cursor(row_factory=_tuple_rows()) as cursor:
        await cursor.execute(_statement(select, schema, "%s"), [text])
        rows: Rows = await cursor.fetchall()
        return rows


def _tuple_rows() -> Any:
    return sys.modules["psycopg.rows"].tuple_row


async def _asyncpg(connection: Any, select: str, text: str, schema: str) -> Rows:
    rows: Rows = await connection.fetch(_statement(select, schema, "$1"), text)
    return rows


def _sqlalchemy(connection: Any, select: str, text: str, schema: str) -> Rows:
    rows: Rows = connection.execute(_clause(select, schema), {"given": text}).all()
    return rows


async def _sqlalchemy_async(connection: Any, select: str, text: str, schema: str) -> Rows:
    rows: Rows = (await connection.execute(_clause(select, schema), {"given": text})).all()
    return rows


def _clause(select: str, schema: str) -> Any:
    return sys.modules["sqlalchemy"].text(_statement(select, schema, ":given").replace("::", "\\:\\:"))


def _django(connection: Any, select: str, text: str, schema: str) -> Rows:
    with connection.cursor() as cursor:
        cursor.execute(_statement(select, schema, "%s"), [text])
        rows: Rows = cursor.fetchall()
        return rows


_SYNC: dict[str, Callable[[Any, str, str, str], Rows]] = {
    "psycopg": _psycopg,
    "sqlalchemy": _sqlalchemy,
    "django": _django,
}
_ASYNC: dict[str, Callable[[Any, str, str, str], Awaitable[Rows]]] = {
    "psycopg async": _psycopg_async,
    "asyncpg": _asyncpg,
    "sqlalchemy async": _sqlalchemy_async,
}
