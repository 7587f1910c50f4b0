"""Connections to PostgreSQL: open, check, close; every one with keep-alives and time-outs.

Rules that make asyncpg safe: a time-out on connecting and on every command, TCP keep-alives and TCP_USER_TIMEOUT on the
socket (a dead link is found within seconds, not hours), no session state left behind, and no reset query on release,
because nothing here sets any.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import asyncpg
from msgspec import Struct

from dhara.errors import ConfigError, Unavailable
from dhara.service import within
from dhara.settings import Settings
from dhara.store.sql import load
from dhara.telemetry.redact import redact

T = TypeVar("T")

# What a lost, refused or restarting database looks like from here; each is worth trying again.
TRANSIENT = (
    OSError,
    EOFError,
    asyncio.TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.OperatorInterventionError,
    asyncpg.TooManyConnectionsError,
    asyncpg.DiskFullError,
    asyncpg.OutOfMemoryError,
    asyncpg.LockNotAvailableError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.CannotConnectNowError,
    asyncpg.InternalClientError,
    # A migration passed by, twice: asyncpg tries again once by itself. Nothing was executed.
    asyncpg.InvalidCachedStatementError,
)


# Of these, what any other statement would meet as well.
AWAY = (
    OSError,
    EOFError,
    asyncpg.PostgresConnectionError,
    asyncpg.TooManyConnectionsError,
    asyncpg.CannotConnectNowError,
)


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help. A value that the driver cannot send is an InterfaceError too, but stays wrong."""
    return isinstance(error, TRANSIENT) and not isinstance(error, ValueError)


class DatabaseSettings(Struct, frozen=True, kw_only=True):
    """How to reach the database. Times are seconds."""

    dsn: str
    schema: str = "dhara"
    pool_min: int = 1
    pool_max: int = 8
    connect_timeout: float = 5.0
    command_timeout: float = 15.0
    # False behind a transaction pooler such as PgBouncer: no prepared statements, no LISTEN, no session settings.
    prepared: bool = True
    # True for connections that handlers get for statements of their own: no time limits, no hints to the planner.
    users: bool = False

    @classmethod
    def of(cls, settings: Settings, **changes: Any) -> DatabaseSettings:
        """The part of the process's settings that concerns the database; `changes` come first."""
        values: dict[str, Any] = {
            "dsn": settings.database_url,
            "schema": settings.schema,
            "pool_min": settings.pool_min,
            "pool_max": settings.pool_max,
            "connect_timeout": settings.connect_timeout,
            "command_timeout": settings.command_timeout,
            "prepared": not settings.pooler,
        }
        values |= changes
        values["pool_min"] = min(values["pool_min"], values["pool_max"])
        return cls(**values)


class Executor(Protocol):
    """What a store method needs of a connection or pool."""

    async def fetch(self, query: str, *args: Any) -> list[asyncpg.Record]: ...
    async def fetchrow(self, query: str, *args: Any) -> asyncpg.Record | None: ...
    async def fetchval(self, query: str, *args: Any) -> Any: ...
    async def execute(self, query: str, *args: Any) -> str: ...


def check_dsn(dsn: str) -> str:
    """`dsn`, if it looks like a PostgreSQL URL. Raises `ConfigError` without showing any password."""
    try:
        parts = urlsplit(dsn)
        # One host or several, each with a port of its own: the driver tries them in turn.
        for host in parts.netloc.rpartition("@")[2].split(","):
            _ = urlsplit(f"//{host}").port
        _ = parse_qsl(parts.query), unquote(parts.path)
    except ValueError:
        raise ConfigError(
            "the database URL cannot be read; write postgresql://user:password@host:5432/database"
        ) from None
    if parts.scheme not in ("postgresql", "postgres"):
        raise ConfigError(
            "the database URL must start with postgresql://, as in postgresql://user:pass@host:5432/database"
        )
    return dsn


# Seconds after which a peer that takes nothing in counts as dead. Linux means live ones, too, whose buffers are full: a COPY
# or a large batch that waits for a lock looks so, and must be let be for as long as the server lets it wait. Where all
# statements are small (`SMALL`) none fills a buffer. Users' own statements may wait for as long as they like.
SMALL, _USERS = 5.0, 60.0


def _patience(settings: DatabaseSettings) -> float:
    return _USERS if settings.users else settings.command_timeout / 2 + 0.5


def harden(connection: Any, patience: float) -> None:
    """Keep-alives and a user time-out on the connection's socket: a dead peer is found after about `patience` seconds.

    At worst after twice as many: a query just before what is sent stops the probes, and has `patience` of its own.
    """
    sock = connection._transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    # Linux goes by the user time-out, not by the number of probes.
    options = (
        ("TCP_KEEPIDLE", 3),
        ("TCP_KEEPINTVL", 2),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", int(patience * 1000)),
    )
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in options:
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


# A plan that was cached when a table was still empty reads it whole, and is kept until autovacuum next looks: by then
# there may be a million rows. Every statement here has its index, so the planner is told so. (Without JIT, because a
# scan that nothing can replace now looks dear enough to be compiled.) And plans are made anew every so often, because
# among the indexes of a table known to be empty the planner chooses blindly.
PLANNER = {"enable_seqscan": "off", "jit": "off"}
_PLAN_LIFETIME = 30


# The server's side of the same: a session whose client was cut off must not hold its locks, and the horizon of VACUUM,
# until the kernel's two hours have passed.
LINK = {
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "8000",
}


def _connect_options(settings: DatabaseSettings, application: str) -> dict[str, Any]:
    server_settings = {"application_name": application}
    if settings.prepared:
        server_settings |= LINK
    if settings.prepared and not settings.users:
        limit = f"{settings.command_timeout * 1000:.0f}"
        server_settings |= {
            "statement_timeout": limit,
            "lock_timeout": f"{settings.command_timeout * 500:.0f}",
            "idle_in_transaction_session_timeout": limit,
            **PLANNER,
        }
    return {
        "dsn": check_dsn(settings.dsn),
        "timeout": settings.connect_timeout,
        "command_timeout": None if settings.users else settings.command_timeout + 1,
        "statement_cache_size": 256 if settings.prepared else 0,
        "max_cached_statement_lifetime": _PLAN_LIFETIME,
        "server_settings": server_settings,
    }


async def connect(
    settings: DatabaseSettings, application: str = "dhara", patience: float | None = None
) -> asyncpg.Connection[asyncpg.Record]:
    """One connection, hardened; `patience`: see `SMALL`. Raises `Unavailable` when the database cannot be reached."""
    try:
        connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(
            **_connect_options(settings, application)
        )
    except Exception as error:
        raise unavailable(error) from error
    harden(connection, patience or _patience(settings))
    return connection


def unavailable(error: BaseException) -> Unavailable | ConfigError:
    """What to tell people of a failed connection: one line, no password."""
    text = redact(" ".join(str(error).split())) or type(error).__name__
    if isinstance(error, asyncpg.InvalidPasswordError | asyncpg.InvalidAuthorizationSpecificationError):
        return ConfigError(f"the database refused the login: {text}; check user and password in DHARA_DATABASE_URL")
    if isinstance(error, asyncpg.InvalidCatalogNameError):
        return ConfigError(f"the database does not exist: {text}; create it, or correct DHARA_DATABASE_URL")
    if isinstance(error, ConfigError | Unavailable):
        return error
    return Unavailable(f"cannot reach the database: {text}; is it running, and is DHARA_DATABASE_URL right?")


async def _no_reset(connection: Any) -> None:
    """Release without a reset query: nothing here leaves session state, and a round trip each would be dear."""


# One for what comes one after the other, and one for the wake-up beside it.
_AT_HAND = 2
# Seconds after a failure to connect in which a pool without connections does not try again, whoever asks: a process has several
# parts that do, each at its own pace, and a database that comes back must not meet them all.
_REST = 0.5


class Lease:
    """A connection of a pool, for as long as an `async with`."""

    __slots__ = ("_connection", "_pool")

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._connection: Any = None

    async def __aenter__(self) -> Any:
        self._connection = await self._pool.take()
        return self._connection

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        connection, self._connection = self._connection, None
        await self._pool.give(connection, error)


class Pool:
    """A pool of hardened connections; an `Executor` itself. Starts nothing until `open`. `patience`: see `SMALL`."""

    def __init__(self, settings: DatabaseSettings, application: str = "dhara", patience: float | None = None) -> None:
        self.settings = settings
        self._patience = patience or _patience(settings)
        self._application = application
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        # Out of asyncpg's pool, and free: whose ways of giving and taking cost as much as a small statement.
        self._hand: list[Any] = []
        self._asking = 0
        self._failed: tuple[float, type[OSError], str] | None = None
        # As `_pool`, and still known after `close`, which waits for what is out.
        self._source: Any = None

    async def open(self) -> Pool:
        """Connect. Raises `Unavailable` or `ConfigError`, one line each."""
        pool = asyncpg.create_pool(
            **_connect_options(self.settings, self._application),
            min_size=self.settings.pool_min,
            max_size=self.settings.pool_max,
            max_inactive_connection_lifetime=300,
            init=self._init,
            # What a handler has set must not meet the next one.
            reset=None if self.settings.users else _no_reset,
        )
        try:
            self._pool = self._source = await pool
        except Exception as error:
            raise unavailable(error) from error
        return self

    async def _init(self, connection: Any) -> None:
        harden(connection, self._patience)

    async def close(self) -> None:
        """Close all connections, in order if they answer within two seconds, else at once."""
        pool, self._pool = self._pool, None
        hand, self._hand = self._hand, []
        if pool is None:
            return
        try:
            for connection in hand:
                await within(2, pool.release(connection))
            await within(2, pool.close())
        except Exception:
            with suppress(Exception):
                pool.terminate()

    async def __aenter__(self) -> Pool:
        return await self.open()

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @property
    def inner(self) -> asyncpg.Pool[asyncpg.Record]:
        """The asyncpg pool. Raises `Unavailable` when it is not open."""
        if self._pool is None:
            raise Unavailable("the connection pool is not open; use `async with`, or call open() first")
        return self._pool

    @property
    def size(self) -> int:
        """Connections open now."""
        return self._pool.get_size() if self._pool else 0

    @property
    def idle(self) -> int:
        """Connections open and unused now."""
        return self._pool.get_idle_size() + len(self._hand) if self._pool else 0

    def acquire(self) -> Lease:
        """`async with pool.acquire() as connection`, waiting at most the connect time-out (users: as long as it takes)."""
        return Lease(self)

    async def take(self) -> Any:
        """A connection that is the caller's until `give`; `acquire` is the safer way to both."""
        inner = self.inner
        while self._hand:
            connection = self._hand.pop()
            if _is_alive(connection):
                return connection
            await inner.release(connection)
        if self._failed is not None and not inner.get_size() and time.monotonic() < self._failed[0] + _REST:
            raise self._failed[1](self._failed[2])
        self._asking += 1
        try:
            connection = await inner.acquire(timeout=None if self.settings.users else self.settings.connect_timeout)
        except AWAY as error:
            if not self.settings.users:  # whose wait is a handler's, and its failure a failed attempt
                # Of the same kind: after a time-out the address may be dead, and callers do not try that again at once.
                kind = TimeoutError if isinstance(error, TimeoutError) else ConnectionError
                self._failed = (time.monotonic(), kind, str(error) or type(error).__name__)
            raise
        finally:
            self._asking -= 1
        self._failed = None
        return connection

    async def give(self, connection: Any, error: BaseException | None = None) -> None:
        """Take back a connection; `error`: what its last use ended with."""
        # After a cancellation or a time-out it may still be busy: then asyncpg knows how to wait for it. And whoever waits
        # at asyncpg's door must not be passed over.
        unharmed = error is None or isinstance(error, asyncpg.PostgresError)
        kept = unharmed and not (self._asking or self.settings.users) and _is_alive(connection)
        if kept and self._pool is not None and len(self._hand) < _AT_HAND:
            self._hand.append(connection)
        else:
            await self._source.release(connection)

    async def fetch(self, query: str, *args: Any) -> list[asyncpg.Record]:
        async with self.acquire() as connection:
            rows: list[asyncpg.Record] = await connection.fetch(query, *args)
            return rows

    async def fetchrow(self, query: str, *args: Any) -> asyncpg.Record | None:
        async with self.acquire() as connection:
            row: asyncpg.Record | None = await connection.fetchrow(query, *args)
            return row

    async def fetchval(self, query: str, *args: Any) -> Any:
        async with self.acquire() as connection:
            return await connection.fetchval(query, *args)

    async def execute(self, query: str, *args: Any) -> str:
        async with self.acquire() as connection:
            status: str = await connection.execute(query, *args)
            return status


def _is_alive(connection: Any) -> bool:
    try:
        return not connection.is_closed()
    except asyncpg.InterfaceError:  # It has died, and its pool has taken it back by itself.
        return False


async def unless_cut(connection: Any, copy: Coroutine[Any, Any, T]) -> T:
    """What a COPY answers. Raises `ConnectionError` as soon as its connection is lost.

    By itself asyncpg's would not hear of that while it waits for the server to take in more, and end by its time-out.
    """
    cut: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def hear(_: object) -> None:
        if not cut.done():
            cut.set_result(None)

    connection.add_termination_listener(hear)
    copying = asyncio.ensure_future(copy)
    try:
        await asyncio.wait((copying, cut), return_when=asyncio.FIRST_COMPLETED)
        if copying.done():
            return copying.result()
        raise ConnectionError("the connection to the database was lost during a COPY; nothing was enqueued")
    finally:
        with suppress(asyncpg.InterfaceError):  # A lost one has no listeners any more.
            connection.remove_termination_listener(hear)
        if not copying.done():
            copying.cancel()
            await asyncio.wait((copying,), timeout=1)


def affected(status: str) -> int:
    """The row count in a command's status, such as `UPDATE 3`."""
    return int(status.rpartition(" ")[2])


def spread(rows: Sequence[Any], *fields: str) -> list[list[Any]]:
    """The columns of `rows`, one list a field: what `unnest` takes."""
    return [[getattr(row, field) for row in rows] for field in fields]


async def wait_briefly(connection: Executor, schema: str) -> None:
    """In this connection's transaction, wait a second for a lock and no longer."""
    await connection.fetchval(load("waits/briefly", schema))
