"""A real server for the fuzzers, on a schema of its own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from starlette.routing import BaseRoute

from dhara.api.asgi import Api, create_app
from dhara.api.server import serve
from dhara.dashboard import site
from dhara.dashboard.keys import NoKeys
from dhara.settings import Settings
from dhara.store import migrate
from dhara.store.pool import DatabaseSettings, Pool

KEY = "the-key-of-the-fuzzers"


@asynccontextmanager
async def served(
    pages: bool = False, routes: Sequence[BaseRoute] = (), **settings: object
) -> AsyncIterator[tuple[int, Pool, Api]]:
    """The port of a server without keys, its pool and application; `pages`: with the dashboard beside the API.

    `routes` are further ones."""
    database = DatabaseSettings(dsn=os.environ["DHARA_DATABASE_URL"], schema=f"dhara_fuzz_{os.getpid()}")
    stop, started = asyncio.Event(), asyncio.Event()
    ports: list[int] = []

    def on_started(host: str, port: int) -> None:
        ports.append(port)
        started.set()

    async with Pool(database) as pool:
        async with pool.acquire() as connection:
            await migrate.up(connection, database.schema)
        chosen = Settings(**settings)  # type: ignore[arg-type]
        beside = site(pool, NoKeys(), None, "fuzz", chosen) if pages else None
        app = create_app(pool=pool, settings=chosen, site=beside, routes=routes)
        running = asyncio.create_task(serve(app, host="127.0.0.1", port=0, stop=stop, on_started=on_started))
        await started.wait()
        try:
            yield ports[0], pool, app
        finally:
            stop.set()
            await running
            await pool.execute(f'DROP SCHEMA "{database.schema}" CASCADE')
