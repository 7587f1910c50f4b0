"""A command's way to the database: a client or a pool, opened, its schema checked, and closed again."""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from dhara.cli.console import Console
from dhara.client import AsyncClient
from dhara.client.backend import translated
from dhara.settings import Settings
from dhara.store import migrate
from dhara.store.pool import DatabaseSettings, Pool

T = TypeVar("T")


def with_client(console: Console, work: Callable[[AsyncClient], Awaitable[T]]) -> T:
    """What `work` answers, given a client on the configured database."""
    settings = console.settings()

    async def inner() -> T:
        async with client(settings) as opened:
            await opened.check()
            return await work(opened)

    return asyncio.run(inner())


def with_pool(console: Console, work: Callable[[Pool], Awaitable[T]], *, check: bool = True) -> T:
    """What `work` answers, given a pool on the configured database; `check`: refuse another schema than ours."""
    settings = console.settings()

    async def inner() -> T:
        async with pool(settings) as opened:
            with translated():
                if check:
                    await migrate.check(opened, settings.schema)
                return await work(opened)

    return asyncio.run(inner())


def client(settings: Settings, patience: float = 2.0) -> AsyncClient:
    """A client by settings, with few connections."""
    return AsyncClient(
        settings.database_url,
        schema=settings.schema,
        pool_max=2,
        connect_timeout=settings.connect_timeout,
        command_timeout=settings.command_timeout,
        patience=patience,
        pooler=settings.pooler,
        wakeups=settings.wakeups,
        actor=actor(),
    )


def actor() -> str:
    """Who sits at this command line, for the audit log."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):
        return "cli"


@asynccontextmanager
async def pool(settings: Settings) -> AsyncIterator[Pool]:
    """An open pool with few connections."""
    async with Pool(DatabaseSettings.of(settings, pool_max=2), "dhara cli") as opened:
        yield opened
