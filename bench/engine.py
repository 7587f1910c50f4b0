"""What dhara does on this machine: enqueue in bulk and one by one, by HTTP, drain, and the time to pick up a task.

    DHARA_DATABASE_URL=postgresql://... python bench/engine.py [--tasks 50000] [--runs 3] [--save]

`--save` writes bench/figures.json, from which scripts/make_docs.py fills the tables of README and docs. Each figure is the
median of the runs. The worker is a real `dhara worker`, a process of its own with its keeper; handlers do nothing. It works in
a scratch schema, made and dropped here; durability is whatever the server's settings say, and shown.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import asyncpg

from dhara import AsyncClient, Registry
from dhara.store import migrate

HERE = Path(__file__).parent
SCHEMA = "dhara_bench"
SLOTS = 100
DRAIN = "drain no-op tasks, one worker process, 100 slots"
BULK = "`enqueue_many`, all or none"
SINGLES = "16 concurrent `enqueue` calls, each returning after its commit"
POSTS = "POST `/api/v1/tasks`, 64 connections, each answered after its commit"
PICKUP = "idle worker: from enqueue to start"
PAYLOAD = {"to": "someone@example.org", "subject": "Hello", "n": 12_345, "items": ["a", "b", "c"], "note": "x" * 12}

tasks = Registry()


@tasks.task("bench.nothing")
async def nothing(**payload: object) -> None:
    """Do nothing."""


class Bench:
    """The measurements, on one database."""

    def __init__(self, dsn: str, db: asyncpg.Connection[asyncpg.Record], count: int) -> None:
        self.dsn = dsn
        self.db = db
        self.count = count

    async def fresh(self) -> None:
        await self.db.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
        await migrate.up(self.db, SCHEMA)

    def client(self) -> AsyncClient:
        return AsyncClient(self.dsn, schema=SCHEMA)

    def worker(self) -> subprocess.Popen[bytes]:
        environ = os.environ | {"DHARA_SCHEMA": SCHEMA, "DHARA_LOG_LEVEL": "error"}
        command = [sys.executable, "-m", "dhara", "worker", "engine", "--concurrency", str(SLOTS)]
        return subprocess.Popen(command, env=environ, cwd=HERE)

    async def final(self) -> int:
        query = f"SELECT count(*) FROM {SCHEMA}.tasks WHERE status = 'COMPLETED'"
        return int(await self.db.fetchval(query))

    async def bulk(self) -> float:
        """Tasks a second of `enqueue_many`, all or none."""
        await self.fresh()
        async with self.client() as dhara:
            items = [{"type": "bench.nothing", "payload": PAYLOAD}] * self.count
            start = time.perf_counter()
            await dhara.enqueue_many(items)
            return self.count / (time.perf_counter() - start)

    async def drain(self) -> float:
        """Tasks a second, by the database's own times: first start to last end."""
        await self.bulk()
        worker = self.worker()
        try:
            while await self.final() < self.count:
                await asyncio.sleep(0.2)
        finally:
            worker.terminate()
            await asyncio.to_thread(worker.wait)
        query = f"SELECT extract(epoch FROM max(completed_at) - min(started_at)) FROM {SCHEMA}.tasks"
        return self.count / float(await self.db.fetchval(query))

    async def singles(self, callers: int = 16, seconds: float = 4.0) -> float:
        """Tasks a second of `enqueue`, each caller waiting for its commit before its next."""
        await self.fresh()
        async with self.client() as dhara:
            until = time.perf_counter() + seconds

            async def call() -> int:
                done = 0
                while time.perf_counter() < until:
                    await dhara.enqueue("bench.nothing", PAYLOAD)
                    done += 1
                return done

            return sum(await asyncio.gather(*(call() for _ in range(callers)))) / seconds

    async def pickup(self, times: int = 100) -> list[float]:
        """Milliseconds from a task's insertion to its start, by an idle worker, one task every 50 ms."""
        await self.fresh()
        worker = self.worker()
        try:
            async with self.client() as dhara:
                await (await dhara.enqueue("bench.nothing", PAYLOAD)).result(30)
                for _ in range(times):
                    await dhara.enqueue("bench.nothing", PAYLOAD)
                    await asyncio.sleep(0.05)
                while await self.final() <= times:
                    await asyncio.sleep(0.05)
        finally:
            worker.terminate()
            await asyncio.to_thread(worker.wait)
        query = f"SELECT extract(epoch FROM started_at - created_at) * 1000 FROM {SCHEMA}.tasks ORDER BY created_at OFFSET 1"
        return [float(row[0]) for row in await self.db.fetch(query)]

    async def posts(self, connections: int = 64, seconds: int = 10) -> dict[str, float]:
        """What `http_load.py` finds: requests a second and their times, each answered after its commit."""
        await self.fresh()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environ = os.environ | {"DHARA_SCHEMA": SCHEMA, "DHARA_LOG_LEVEL": "error", "DHARA_PORT": str(port)}
        server = subprocess.Popen([sys.executable, "-m", "dhara", "server", "--no-worker"], env=environ)
        try:
            while True:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port), 0.1).close()
                    break
                await asyncio.sleep(0.1)
            load = [sys.executable, str(HERE / "http_load.py"), "--url", f"http://127.0.0.1:{port}"]
            load += ["--connections", str(connections), "--seconds", str(seconds)]
            found: dict[str, float] = json.loads(await asyncio.to_thread(subprocess.check_output, load))
        finally:
            server.terminate()
            await asyncio.to_thread(server.wait)
        if found["errors"]:
            raise RuntimeError(f"{found['errors']} of the POSTs failed")
        return found


async def measure(dsn: str, count: int, runs: int) -> dict[str, object]:
    db = await asyncpg.connect(dsn)
    bench = Bench(dsn, db, count)
    try:
        settings = {
            name: await db.fetchval("SELECT current_setting($1)", name)
            for name in ("server_version", "fsync", "synchronous_commit", "shared_buffers")
        }
        found = {
            DRAIN: [await bench.drain() for _ in range(runs)],
            BULK: [await bench.bulk() for _ in range(runs)],
            SINGLES: [await bench.singles() for _ in range(runs)],
        }
        posts = [await bench.posts() for _ in range(runs)]
        pickup = sorted(await bench.pickup())
    finally:
        await db.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
        await db.close()
    figures = {name: f"{statistics.median(values):,.0f}/s" for name, values in found.items()}
    rate, middle, late = (statistics.median(p[name] for p in posts) for name in ("per_second", "p50_ms", "p99_ms"))
    figures[POSTS] = f"{rate:,.0f}/s, p50 {middle:.1f} ms, p99 {late:.1f} ms"
    half, most = pickup[len(pickup) // 2], pickup[int(len(pickup) * 0.99)]
    figures[PICKUP] = f"p50 {half:.1f} ms, p99 {most:.1f} ms"
    return {"tasks": count, "runs": runs, "cores": os.cpu_count(), "settings": settings, "figures": figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=50_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    found = json.dumps(asyncio.run(measure(os.environ["DHARA_DATABASE_URL"], options.tasks, options.runs)), indent=2)
    print(found)
    if options.save:
        (HERE / "figures.json").write_text(found + "\n")


if __name__ == "__main__":
    main()
