"""Many workers, many tasks, runners killed meanwhile: do the invariants hold, and how long does it all take?

    python -m bench.invariants [--workers 8] [--slots 5] [--tasks 100000] [--kills 5] [--seed 1]

The mix: 80 % no-ops, 15 % no-ops in threads, then tasks that fail once, that always fail, that sleep; one in a thousand is
canceled, and runners are killed (SIGKILL) at random. The end-to-end suite runs the same with 20,000 tasks. It works in a
database of its own, made and dropped here, on DHARA_DATABASE_URL's server (a login that may create databases) or, without
that, on an embedded one. Exit code 1 if an invariant is violated.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg

from dhara.embedded import EmbeddedPostgres
from dhara.store import migrate
from dhara.store.tasks import Tasks
from tests import invariants
from tests.e2e.kit import Facts, Fleet

MIX = (("noop", 0.80), ("sync.noop", 0.15), ("flaky", 0.02), ("fail", 0.02), ("sleep", 0.01))
BACK = ["RETRIED", "SNOOZED", "RELEASED", "REAPED"]


@contextmanager
def server() -> Iterator[str]:
    """The address of a server on which databases may be made."""
    if given := os.environ.get("DHARA_DATABASE_URL"):
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="dhara-bench-") as folder:
        Path(folder).chmod(0o711)
        with EmbeddedPostgres(Path(folder) / "data") as postgres:
            yield postgres.dsn


def show(what: str, value: object) -> None:
    print(f"{what:<44} {value}", flush=True)


async def enqueue(facts: Facts, count: int, rng: random.Random) -> list[UUID]:
    """The whole mix, over four queues and three priorities."""
    ids: list[UUID] = []
    for type, share in MIX:
        payload = {"seconds": 0.02} if type == "sleep" else {}
        for queue in ("a", "b", "c", "d"):
            more = {"queue": queue, "priority": rng.choice([0, 0, 50]), "max_retries": 2}
            ids += await facts.enqueue(type, payload, times=int(count * share / 4), **more)
    return ids


async def disturb(facts: Facts, fleet: Fleet, ids: list[UUID], kills: int, rng: random.Random) -> None:
    """Cancel one in a thousand; kill runners, evenly over the run."""
    tasks = Tasks(await facts.connection())
    canceled = rng.sample(ids, len(ids) // 1_000)
    for n in range(kills):
        done = "SELECT count(*) >= $1 FROM dhara.tasks WHERE status NOT IN ('PENDING', 'RUNNING')"
        await facts.until(done, len(ids) * (n + 1) // (kills + 2), timeout=3_600)
        worker = rng.choice(fleet.workers)
        worker.signal(signal.SIGKILL, *worker.runners)
        for id in canceled[n::kills]:
            await tasks.request_cancel(id)


async def measure(facts: Facts, fleet: Fleet, arguments: argparse.Namespace) -> bool:
    """The whole run; True if every invariant held."""
    rng = random.Random(arguments.seed)
    start = time.perf_counter()
    ids = await enqueue(facts, arguments.tasks, rng)
    show("tasks enqueued", f"{len(ids)} in {time.perf_counter() - start:.1f} s")
    for _ in range(arguments.workers):
        fleet.start("--concurrency", str(arguments.slots), base_backoff="100ms")
    await facts.until("SELECT count(*) > 0 FROM dhara.tasks WHERE status = 'COMPLETED'")
    start = time.perf_counter()
    await disturb(facts, fleet, ids, arguments.kills, rng)
    await facts.all_final(timeout=3_600)
    took = time.perf_counter() - start
    starts = await facts.one("SELECT count(*) FROM dhara.task_logs WHERE event = 'CLAIMED'")
    show("drained", f"{took:.1f} s, {len(ids) / took:,.0f} tasks/s, {starts} starts")
    events = await facts.events()
    show("events besides CLAIMED and COMPLETED", " ".join(f"{k}={v}" for k, v in sorted(events.items())))
    show("states", " ".join(f"{k}={v}" for k, v in sorted((await facts.states()).items())))
    started = await facts.one("SELECT count(*) FROM dhara.tasks WHERE attempts > 0")
    explained = await facts.one("SELECT count(*) FROM dhara.task_logs WHERE event = ANY ($1)", BACK)
    show("starts that no event explains", starts - started - explained)
    start = time.perf_counter()
    found = await invariants.violations(await facts.connection(), acknowledged=ids, asked=ids, quiet=True)
    rows = await facts.one("SELECT count(*) FROM dhara.task_logs")
    show("invariants checked", f"over {rows} log rows in {time.perf_counter() - start:.1f} s")
    for name, bad in found.items():
        show(f"VIOLATED {name}", f"{len(bad)}, such as {bad[0]}")
    show("violations", sum(map(len, found.values())))
    return not found and starts == started + explained


async def main(arguments: argparse.Namespace, dsn: str) -> int:
    name = f"dhara_invariants_{os.getpid()}"
    admin = await asyncpg.connect(dsn)
    await admin.execute(f"CREATE DATABASE {name}")
    facts = Facts(urlsplit(dsn)._replace(path=f"/{name}").geturl())
    try:
        await migrate.up(await facts.connection())
        with tempfile.TemporaryDirectory(prefix="dhara-bench-") as folder:
            fleet = Fleet(facts.dsn, Path(folder))
            try:
                good = await measure(facts, fleet, arguments)
            finally:
                await fleet.end()
            codes = [worker.popen.returncode for worker in fleet.workers]
            show("exit codes of the workers", " ".join(map(str, codes)))
        return int(not good or any(codes))
    finally:
        await facts.close()
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--slots", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with server() as address:
        sys.exit(asyncio.run(main(given, address)))
