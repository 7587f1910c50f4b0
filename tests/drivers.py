"""A transaction of the user's own, through every driver and framework that `enqueue_tx` knows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any

import asyncpg
import psycopg
import psycopg.rows
import sqlalchemy
import sqlalchemy.orm
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine


def alchemy(dsn: str, driver: str) -> str:
    return "postgresql+" + driver + dsn[dsn.index("://") :]


@asynccontextmanager
async def _asyncpg(dsn: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(dsn)
    # A user's own codec for json must not touch what passes through.
    await connection.set_type_codec("json", encoder=lambda v: f'"{v}"', decoder=str, schema="pg_catalog")
    try:
        async with connection.transaction():
            yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def _asyncpg_pool(dsn: str) -> AsyncIterator[Any]:
    async with (
        asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool,
        pool.acquire() as connection,
        connection.transaction(),
    ):
        yield connection


@asynccontextmanager
async def _psycopg_async(dsn: str) -> AsyncIterator[Any]:
    connection = await psycopg.AsyncConnection.connect(dsn, row_factory=psycopg.rows.dict_row)
    async with connection, connection.transaction():
        yield connection


@asynccontextmanager
async def _alchemy_async(url: str, *, session: bool) -> AsyncIterator[Any]:
    engine = create_async_engine(url)
    try:
        if session:
            async with async_sessionmaker(engine)() as opened, opened.begin():
                yield opened
        else:
            async with engine.begin() as connection:
                yield connection
    finally:
        await engine.dispose()


@contextmanager
def _psycopg(dsn: str) -> Iterator[Any]:
    with psycopg.connect(dsn, row_factory=psycopg.rows.dict_row) as connection:
        yield connection


@contextmanager
def _alchemy(dsn: str, *, session: bool) -> Iterator[Any]:
    engine = sqlalchemy.create_engine(alchemy(dsn, "psycopg"))
    try:
        if session:
            with sqlalchemy.orm.Session(engine) as opened, opened.begin():
                yield opened
        else:
            with engine.begin() as connection:
                yield connection
    finally:
        engine.dispose()


@contextmanager
def django_connection(dsn: str) -> Iterator[Any]:
    """`django.db.connection` inside `transaction.atomic`, as views have it."""
    import django
    from django.conf import settings
    from django.db import connection, connections, transaction

    if not settings.configured:
        settings.configure(USE_TZ=True)
        django.setup()
    info = psycopg.conninfo.conninfo_to_dict(dsn)
    names = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
    database = {"ENGINE": "django.db.backends.postgresql"} | {key: info.get(name) for key, name in names.items()}
    connections.settings = connections.configure_settings({"default": database})
    try:
        with transaction.atomic():
            yield connection
    finally:
        connections.close_all()
        del connections["default"]


ASYNC: dict[str, Callable[[str], AbstractAsyncContextManager[Any]]] = {
    "asyncpg": _asyncpg,
    "asyncpg from a pool": _asyncpg_pool,
    "psycopg": _psycopg_async,
    "sqlalchemy session on asyncpg": lambda dsn: _alchemy_async(alchemy(dsn, "asyncpg"), session=True),
    "sqlalchemy session on psycopg": lambda dsn: _alchemy_async(alchemy(dsn, "psycopg"), session=True),
    "sqlalchemy connection on asyncpg": lambda dsn: _alchemy_async(alchemy(dsn, "asyncpg"), session=False),
}
SYNC: dict[str, Callable[[str], AbstractContextManager[Any]]] = {
    "psycopg": _psycopg,
    "sqlalchemy session": lambda dsn: _alchemy(dsn, session=True),
    "sqlalchemy connection": lambda dsn: _alchemy(dsn, session=False),
    "django": django_connection,
}
