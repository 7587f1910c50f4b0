"""Migrations: numbered SQL files, applied in order under a lock, with checksums.

Safe when many processes start at once (an advisory lock lets one through, the others find nothing to do), when it is
interrupted (each step is one transaction), and refused with one clear line on a schema that this version does not
know: newer, damaged or changed.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any, TypeVar

import asyncpg
from msgspec import Struct

from dhara.errors import SchemaError, Unavailable
from dhara.store.sql import check_schema, qualify

T = TypeVar("T")

_FOLDER = files("dhara.store") / "migrations"
_NAME = re.compile(r"(\d{4})_([a-z0-9_]+)\.up\.sql")
_LOCK_TIMEOUT = "10s"  # for other migrators
# Whatever comes after it queues behind a lock that is asked for, enqueues and claims included: so a step asks for a moment
# only, and again a little later, while a long reader keeps it away.
_STEP_LOCK_TIMEOUT = "200ms"
_PAUSE = 1.0
_PATIENCE = 60.0
_TABLES = ("tasks", "task_history", "workers", "queues", "counters", "histograms", "leaders", "api_keys")
_TABLE = """
CREATE TABLE IF NOT EXISTS dhara.migrations (
    version    integer     PRIMARY KEY,
    name       text        NOT NULL,
    checksum   text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
)"""


class Migration(Struct, frozen=True):
    """One step. `down` takes away what `up` made."""

    version: int
    name: str
    up: str
    down: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.up.encode()).hexdigest()


class Status(Struct, frozen=True):
    """Which versions are applied, and which are not yet."""

    applied: list[Migration]
    missing: list[Migration]


def all_migrations() -> list[Migration]:
    """Every step that this version of dhara knows, in order."""
    steps = []
    for file in sorted(_FOLDER.iterdir(), key=lambda f: f.name):
        if found := _NAME.fullmatch(file.name):
            down = (_FOLDER / file.name.replace(".up.", ".down.")).read_text()
            steps.append(Migration(int(found[1]), found[2], file.read_text(), down))
    return steps


async def status(connection: Any, schema: str = "dhara") -> Status:
    """Compare the database with what this version knows. Raises `SchemaError` when they contradict each other."""
    known = all_migrations()
    rows = await _applied(connection, schema)
    by_version = {migration.version: migration for migration in known}
    for version, name, checksum in rows:
        if version not in by_version:
            raise SchemaError(
                f"schema {schema!r} is newer ({version:04}_{name}) than this dhara knows; upgrade dhara, or run the"
                " newer version's `dhara migrate down` first"
            )
        if by_version[version].checksum != checksum:
            raise SchemaError(
                f"migration {version:04}_{name} in schema {schema!r} was applied from another text (checksum differs);"
                " restore the schema from a backup, or install the dhara version that made it"
            )
    versions = [row[0] for row in rows]
    if versions != [migration.version for migration in known[: len(versions)]]:
        raise SchemaError(
            f"schema {schema!r} lacks a migration in the middle: it has {versions}; restore it from a backup"
        )
    return Status(known[: len(versions)], known[len(versions) :])


async def check(connection: Any, schema: str = "dhara") -> None:
    """Raise `SchemaError` unless the schema is exactly what this version needs."""
    found = await status(connection, schema)
    if found.missing:
        what = "is missing" if not found.applied else f"lacks {len(found.missing)} migration(s)"
        raise SchemaError(f"schema {schema!r} {what}; run `dhara migrate up`")
    gone = set(_TABLES) - await _standing(connection, schema)
    if gone:
        names = ", ".join(sorted(gone))
        raise SchemaError(f"schema {schema!r} is damaged: no table {names}; restore it from a backup")


async def up(connection: Any, schema: str = "dhara") -> list[Migration]:
    """Apply what is missing; answers the steps that this call applied. Raises `SchemaError` or `Unavailable`."""
    check_schema(schema)
    done: list[Migration] = []
    with _explained(schema):
        while step := await patiently(lambda: _next_up(connection, schema), _PATIENCE):
            done.append(step)
    return done


async def down(connection: Any, steps: int = 1, schema: str = "dhara") -> list[Migration]:
    """Take back the last `steps` migrations, with the data in them; answers those taken back, newest first.

    Raises `SchemaError` or `Unavailable`.
    """
    undone: list[Migration] = []
    with _explained(schema):
        while len(undone) < steps and (step := await patiently(lambda: _next_down(connection, schema), _PATIENCE)):
            undone.append(step)
    return undone


async def patiently(attempt: Callable[[], Awaitable[T]], seconds: float) -> T:
    """What `attempt` answers, tried again for so long while others hold locks that it needs."""
    end = time.monotonic() + seconds
    while True:
        try:
            return await attempt()
        except asyncpg.LockNotAvailableError:
            if time.monotonic() >= end:
                raise
        await asyncio.sleep(_PAUSE)


async def ask_briefly(connection: Any) -> None:
    """The rest of this transaction waits for a lock for a moment only."""
    await connection.execute(f"SET LOCAL lock_timeout = '{_STEP_LOCK_TIMEOUT}'")


async def remove(connection: Any, schema: str) -> None:
    """Drop a schema with all that is in it: for scratch schemas only."""
    await connection.execute(f'DROP SCHEMA IF EXISTS "{check_schema(schema)}" CASCADE')


@contextmanager
def _explained(schema: str) -> Iterator[None]:
    """The database's refusals, in words that say what to do."""
    try:
        yield
    except asyncpg.InsufficientPrivilegeError as error:
        raise SchemaError(
            f"this database user may not work on schema {schema!r}: {error}; use the owner's login"
        ) from error
    except asyncpg.ReadOnlySQLTransactionError as error:
        raise SchemaError("this database takes no writes (a standby?); migrate on the primary") from error
    except asyncpg.LockNotAvailableError as error:
        raise Unavailable(
            "another session holds a lock that the migration needs; nothing was changed, try again"
        ) from error


async def _next_up(connection: Any, schema: str) -> Migration | None:
    async with connection.transaction():
        await _lock(connection, schema)
        found = await status(connection, schema)
        if not found.missing:
            return None
        step = found.missing[0]
        if not found.applied:
            if there := await _standing(connection, schema):
                raise SchemaError(
                    f"schema {schema!r} has tables ({', '.join(sorted(there))}) but no record of migrations; restore it"
                    " from a backup, or set DHARA_SCHEMA to another name"
                )
            # IF NOT EXISTS would ask for the right to create schemas even where an administrator made this one.
            if await connection.fetchval("SELECT to_regnamespace($1)", f'"{schema}"') is None:
                await connection.execute(f'CREATE SCHEMA "{schema}"')
            await connection.execute(qualify(_TABLE, schema))
        await ask_briefly(connection)
        await connection.execute(qualify(step.up, schema))
        await connection.execute(
            qualify("INSERT INTO dhara.migrations (version, name, checksum) VALUES ($1, $2, $3)", schema),
            step.version,
            step.name,
            step.checksum,
        )
        return step


async def _next_down(connection: Any, schema: str) -> Migration | None:
    async with connection.transaction():
        await _lock(connection, schema)
        found = await status(connection, schema)
        if not found.applied:
            return None
        last = found.applied[-1]
        await ask_briefly(connection)
        await connection.execute(qualify(last.down, schema))
        await connection.execute(qualify("DELETE FROM dhara.migrations WHERE version = $1", schema), last.version)
        return last


async def _standing(connection: Any, schema: str) -> set[str]:
    """Which of dhara's tables there are."""
    query = "SELECT tablename FROM pg_tables WHERE schemaname = $1 AND tablename = ANY ($2::text[])"
    return {row[0] for row in await connection.fetch(query, schema, list(_TABLES))}


async def _lock(connection: Any, schema: str) -> None:
    # Per schema, and bound to the transaction: gone with it, whatever happens to this process.
    await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
    await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('dhara.migrate.' || $1, 0))", schema)


async def _applied(connection: Any, schema: str) -> list[tuple[int, str, str]]:
    query = qualify("SELECT version, name, checksum FROM dhara.migrations ORDER BY version", schema)
    with _explained(schema):
        if await connection.fetchval("SELECT to_regclass($1)", f'"{check_schema(schema)}".migrations') is None:
            return []
        return [tuple(row) for row in await connection.fetch(query)]
