"""Where a row is measured: a database, a scratch schema in it, workers and servers on that."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TypeVar
from urllib.parse import urlsplit

import asyncpg
from msgspec import Struct

from bench import limit, procs, seed
from bench.rows import Sizes
from dhara import AsyncClient
from dhara.store import migrate

SCHEMA = "dhara_bench"
_PARTS = 40
T = TypeVar("T")


class Limit(Struct, frozen=True):
    """What the bare loop reached: tasks a second, and the times of its claims in ms."""

    rate: float
    done: int
    claim_p50_ms: float
    claim_p99_ms: float


class World:
    """One database. `turn` counts the runs, so that what is compared can take turns at being first."""

    def __init__(
        self, dsn: str, db: asyncpg.Connection[asyncpg.Record], sizes: Sizes, say: Callable[[str], None]
    ) -> None:
        self.dsn = dsn
        self.db = db
        self.sizes = sizes
        self.say = say
        self.turn = 0
        self.curves: dict[str, list[tuple[float, float]]] = {}
        self.kept: dict[str, object] = {}

    # schemas

    async def fresh(self, schema: str = SCHEMA) -> str:
        """An empty, migrated schema."""
        await self.drop(schema)
        await migrate.up(self.db, schema)
        return schema

    async def drop(self, schema: str = SCHEMA) -> None:
        await self.db.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE", timeout=300)

    async def drop_all(self) -> None:
        for row in await self.db.fetch("SELECT nspname FROM pg_namespace WHERE nspname LIKE $1", SCHEMA + "%"):
            await self.drop(row[0])

    async def checkpoint(self) -> None:
        """Let what was written before not be paid for during a measurement."""
        with suppress(asyncpg.InsufficientPrivilegeError):
            await self.db.execute("CHECKPOINT", timeout=300)

    @asynccontextmanager
    async def other_database(self, name: str = "dhara_bench_other") -> AsyncIterator[str]:
        """A second database on the same server, migrated; answers its address."""
        await self.db.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await self.db.execute(f"CREATE DATABASE {name}")
        dsn = urlsplit(self.dsn)._replace(path=f"/{name}").geturl()
        try:
            db = await asyncpg.connect(dsn)
            await migrate.up(db, SCHEMA)
            await db.close()
            yield dsn
        finally:
            await self.db.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    # tasks

    def client(self, schema: str = SCHEMA, *, wakeups: bool = True, pool_max: int = 8) -> AsyncClient:
        return AsyncClient(self.dsn, schema=schema, wakeups=wakeups, pool_max=pool_max)

    async def fill(self, count: int, schema: str = SCHEMA, **fields: object) -> None:
        """PENDING tasks, made by the database."""
        await seed.pending(self.db, schema, count, **fields)  # type: ignore[arg-type]

    async def completed(self, schema: str = SCHEMA) -> int:
        """Tasks that were completed, by the flows: cheap, whatever the number of tasks."""
        query = f"SELECT COALESCE(sum(n), 0) FROM {schema}.counters WHERE event = 'COMPLETED'"
        return int(await self.db.fetchval(query))

    async def until_completed(self, count: int, schema: str = SCHEMA) -> None:
        while await self.completed(schema) < count:
            await asyncio.sleep(0.1)

    # processes

    @contextmanager
    def worker(
        self,
        schema: str = SCHEMA,
        *,
        slots: int = 100,
        processes: int = 1,
        dsn: str = "",
        module: str = "bench.handlers",
        **settings: object,
    ) -> Iterator[int]:
        """A real `dhara worker`, with its keeper; answers its number."""
        env = procs.environ(database_url=dsn or self.dsn, schema=schema, log_level="error", **settings)
        arguments = ["-m", "dhara", "worker", module, "--concurrency", str(slots)]
        with procs.running([*arguments, "--processes", str(processes)], env) as process:
            yield process.pid

    @asynccontextmanager
    async def server(self, schema: str = SCHEMA, dsn: str = "") -> AsyncIterator[tuple[str, int]]:
        """A real `dhara server` without a worker, once it answers; its address and number."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        env = procs.environ(database_url=dsn or self.dsn, schema=schema, log_level="error", port=port)
        with procs.running(["-m", "dhara", "server", "--no-worker", "--json"], env) as process:
            while True:
                with suppress(OSError):
                    socket.create_connection(("127.0.0.1", port), 0.1).close()
                    break
                if process.poll() is not None:
                    raise RuntimeError("the server ended as it started")
                await asyncio.sleep(0.02)
            yield f"http://127.0.0.1:{port}", process.pid

    async def load(self, url: str, *arguments: str) -> dict[str, float]:
        """What `bench/load.py` finds out, in a process of its own. Raises if a request failed."""
        found: dict[str, float] = json.loads(await self._python("-m", "bench.load", "--url", url, *arguments))
        if found["errors"]:
            raise RuntimeError(f"{found['errors']:.0f} of {found['requests']:.0f} requests failed")
        return found

    async def _python(self, *arguments: str) -> bytes:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, env=procs.environ(), cwd=procs.ROOT, stdout=asyncio.subprocess.PIPE
        )
        try:
            output, _ = await process.communicate()
        except BaseException:
            with suppress(ProcessLookupError):
                process.kill()
            raise
        if process.returncode:
            raise RuntimeError(f"{' '.join(arguments[:2])} ended with {process.returncode}: {output.decode()[-500:]}")
        return output

    # drains

    async def limit(
        self, count: int, schema: str = SCHEMA, type: str = "bench.nothing", batch: int = limit.BATCH
    ) -> Limit:
        """The limit: a bare loop drains `count` tasks that are there."""
        found = await self._python("-m", "bench.limit", self.dsn, schema, type, str(batch), str(count))
        return Limit(**json.loads(found))

    async def drain(
        self,
        count: int,
        schema: str = SCHEMA,
        *,
        slots: int = 100,
        processes: int = 1,
        module: str = "bench.handlers",
        curve: str = "",
    ) -> float:
        """Tasks a second of a worker that drains `count` tasks that are there: from the first start to the last end.

        By the database's own times, so that neither the worker's start nor the watching counts. `curve`: keep the rate
        over time under this name.
        """
        began = await self.db.fetchval("SELECT clock_timestamp()")
        before = await self.completed(schema)
        with self.worker(schema, slots=slots, processes=processes, module=module):
            await self.until_completed(before + count, schema)
            stopped = await self.db.fetchval("SELECT clock_timestamp()")
        return await self.rate(began, stopped, schema, curve)

    async def rate(self, since: object, until: object, schema: str = SCHEMA, curve: str = "") -> float:
        """Tasks a second that were completed between two moments, from the first start to the last end."""
        done = f"FROM {schema}.task_history WHERE at BETWEEN $1 AND $2 AND event = 'COMPLETED'"
        span = "SELECT count(*) AS n, min(claimed_at) AS t0, extract(epoch FROM max(at) - min(claimed_at))::float8 AS seconds"
        row = await self.db.fetchrow(f"{span} {done}", since, until)
        assert row is not None
        if curve:
            part = row["seconds"] / _PARTS
            place = "least(floor(extract(epoch FROM at - $3)::float8 / $4)::int, $5 - 1)"
            query = f"SELECT {place} AS i, count(*) AS n {done} GROUP BY 1 ORDER BY 1"
            counts = dict(map(tuple, await self.db.fetch(query, since, until, row["t0"], part, _PARTS)))
            self.curves[curve] = [((i + 0.5) * part, counts.get(i, 0) / part) for i in range(_PARTS)]
        return float(row["n"] / row["seconds"])

    async def in_turn(self, *works: Callable[[], Awaitable[T]]) -> list[T]:
        """The works one after the other, each run beginning with another; answers in the order given."""
        order = [(i + self.turn) % len(works) for i in range(len(works))]
        found = {i: await works[i]() for i in order}
        return [found[i] for i in range(len(works))]


def percentile(values: list[float], share: float) -> float:
    """The value that `share` of all do not exceed."""
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))]


async def paced(per_second: float, seconds: float, work: Callable[[], Coroutine[None, None, None]]) -> None:
    """An open loop: `work` begins at fixed moments, whether the earlier ones are done or not."""
    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for n in range(int(per_second * seconds)):
            wait = start + n / per_second - time.perf_counter()
            if wait > 0.0005:
                await asyncio.sleep(wait)
            group.create_task(work())
