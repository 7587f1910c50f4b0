"""The network: replies and requests lost at an exact message, partitions, resets, stalls, lost notifications."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from chaos import measure
from chaos.faults.row import fault
from dhara.maintenance.scheduler import Scheduler
from dhara.store.pool import DatabaseSettings, Pool, connect
from dhara.store.sql import load
from tests.e2e.kit import H, P
from tests.proxy import Cut, Proxy

if TYPE_CHECKING:
    from chaos.arena import Arena

# Statements whose loss matters, as the proxy knows them by their text; the last two are parts of transactions.
STATEMENTS = {
    "enqueue": load("tasks/enqueue", "dhara"),
    "claim": load("tasks/claim", "dhara"),
    "complete": load("tasks/complete", "dhara"),
    "settle": load("tasks/settle", "dhara"),
    "beat": load("workers/beat", "dhara"),
    "fire": load("schedules/advance", "dhara"),
    "transaction": ".complete(given.outcome)",
}
_CUTTING, _PAUSE = 4.0, 0.2  # seconds: of one injection, and between two cuts at the same statement


def packets() -> bool:
    """Whether packets can be dropped here: root, and an iptables that works."""
    if os.geteuid() != 0 or shutil.which("iptables") is None:
        return False
    return subprocess.run(["iptables", "-w", "-L", "-n"], capture_output=True, check=False).returncode == 0


@contextmanager
def rules(host: str, port: int, *target: str) -> Iterator[None]:
    """What goes to `host`:`port` and what comes from there meets `target`."""
    yield from _rules(
        ["-d", host, "--dport", str(port), "-j", *target],
        ["-s", host, "--sport", str(port), "-j", *target],
    )


@contextmanager
def one_connection(client: int, server: int) -> Iterator[None]:
    """Nothing passes any more between these two ports, and nobody is told."""
    yield from _rules(
        ["--sport", str(client), "--dport", str(server), "-j", "DROP"],
        ["--sport", str(server), "--dport", str(client), "-j", "DROP"],
    )


@contextmanager
def lossy(port: int, share: float) -> Iterator[None]:
    """So many of the packets to and from this port never arrive."""
    chance = ["-m", "statistic", "--mode", "random", "--probability", str(share), "-j", "DROP"]
    yield from _rules(["--dport", str(port), *chance], ["--sport", str(port), *chance])


def _rules(*wanted: list[str]) -> Iterator[None]:
    found = [["INPUT", "-i", "lo", "-p", "tcp", *rule] for rule in wanted]
    for rule in found:
        subprocess.run(["iptables", "-w", "-I", *rule], check=True)
    try:
        yield
    finally:
        for rule in found:
            subprocess.run(["iptables", "-w", "-D", *rule], check=False)


async def _lose(arena: Arena, rng: random.Random, reply: bool) -> dict[str, Any]:
    """Every statement is cut again and again, each whenever it comes, by whichever worker."""
    assert arena.front is not None
    made: Counter[str] = Counter()
    end = time.monotonic() + _CUTTING
    workers = [member.proxy for member in arena.members[: len(arena.members) - arena.spared] if member.proxy]
    ways = {name: [workers] for name in STATEMENTS}
    ways |= {
        "enqueue": [[arena.front]],
        "fire": [[arena.front, *workers]],
        "beat": [[one] for one in workers],
    }
    rival = asyncio.create_task(_firing(arena))
    try:
        await asyncio.gather(
            *(_cutting(name, reply, way, end, made) for name in arena.statements or STATEMENTS for way in ways[name])
        )
    finally:
        rival.cancel()
        await asyncio.gather(rival, return_exceptions=True)
    return {"count": made.total(), "statements": dict(made)}


async def _cutting(name: str, reply: bool, way: Sequence[Proxy], end: float, made: Counter[str]) -> None:
    """Cut at one statement, on whichever of these ways it comes first."""
    while (left := end - time.monotonic()) > 0:
        # Of a worker's beats every second one at most: it would lose its leases. So of fires: they would never catch up.
        cut = Cut(STATEMENTS[name], reply=reply, spares=int(name in ("beat", "fire")))
        for proxy in way:
            proxy.lose(cut)
        with suppress(TimeoutError):
            await asyncio.wait_for(cut.done.wait(), left)
            made[name] += 1
        for proxy in way:
            proxy.forget(cut)
        # Fires come all at once, on the second.
        await asyncio.sleep(0 if name == "fire" else _PAUSE)


async def _firing(arena: Arena) -> None:
    """A rival of the workers' own scheduler, which after a lost connection waits for a second."""
    assert arena.front is not None
    settings = DatabaseSettings(dsn=arena.front.dsn, pool_max=1, prepared="pooler" not in arena.needs)
    while True:
        with suppress(Exception):  # it is what is to be hurt
            async with Pool(settings, "dhara rival") as pool:
                while True:
                    await Scheduler(pool).tick()
                    await asyncio.sleep(0.05)
        await asyncio.sleep(0.05)


async def _ghosts(arena: Arena, spans: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """How long the claims whose answer was lost stayed with their worker, by the log; nothing if there were none."""
    async with measure.session(arena) as db:
        waits = await measure.ghosts(db, spans)
    if not waits:
        return {}
    middle, most, worst = (measure.at(waits, share) for share in (0.5, 0.99, 1.0))
    return {
        "measured": f"{len(waits):,} ghost claims, released after {middle:.1f} s, 99 % within {most:.1f} s, at worst"
        f" {worst:.1f} s",
        "met": worst <= H + 3.0,
    }  # fmt: skip


@fault(
    "F20", "TCP cut", "a commit's reply is lost: by statement below", every=5.0, needs="proxy fires",
    bar=f"1,000 of each statement, every invariant, ghost claims released within H + 3 s = {H + 3:g} s", afterwards=_ghosts,
)  # fmt: skip
async def reply_lost(arena: Arena, rng: random.Random) -> dict[str, Any]:
    return await _lose(arena, rng, reply=True)


@fault(
    "F21", "TCP cut", "a request is lost before its commit: by statement below", every=5.0, needs="proxy fires",
    bar="1,000 of each statement, every invariant",
)  # fmt: skip
async def request_lost(arena: Arena, rng: random.Random) -> dict[str, Any]:
    return await _lose(arena, rng, reply=False)


@fault("F37", "partition", "one worker's packets are dropped for longer than its lease", every=26.0, lasting=True)
async def partitioned(arena: Arena, rng: random.Random) -> dict[str, Any]:
    member = arena.pick(rng)
    arena.excuse(member)
    seconds = arena.lease * 2.0
    if member.proxy is not None:
        member.proxy.freeze()
        await asyncio.sleep(seconds)
        arena.excuse(member)  # also what its runners have forked meanwhile
        member.proxy.thaw()
        return {"worker": member.index, "by": "proxy", "seconds": seconds}
    with rules(member.host, arena.postgres.port, "DROP"):
        await asyncio.sleep(seconds)
        arena.excuse(member)
    return {"worker": member.index, "by": "iptables DROP", "seconds": seconds}


@fault("F39", "TCP cut", "every connection of one worker is reset", every=1.0, most=3.0)
async def reset(arena: Arena, rng: random.Random) -> dict[str, Any]:
    member = arena.pick(rng)
    if member.proxy is not None:
        count = member.proxy.links
        member.proxy.cut()
        return {"worker": member.index, "count": min(1, count), "links": count}
    with rules(member.host, arena.postgres.port, "REJECT", "--reject-with", "tcp-reset"):
        await asyncio.sleep(0.2)
    return {"worker": member.index, "by": "iptables REJECT tcp-reset"}


def _everyone(arena: Arena) -> list[Proxy]:
    found = [arena.front, *(member.proxy for member in arena.members)]
    return [proxy for proxy in found if proxy is not None]


@fault(
    "F41", "stall", "the database stalls for 5 s, less than the lease", every=15.0, needs="proxy", lasting=True,
    bar="nobody reaped",
)  # fmt: skip
async def stalled(arena: Arena, rng: random.Random) -> dict[str, Any]:
    before, seconds = await _reaped(arena), 5.0 * arena.lease / 6.0
    for proxy in _everyone(arena):
        proxy.freeze()
    await asyncio.sleep(seconds)
    for proxy in _everyone(arena):
        proxy.thaw()
    await asyncio.sleep(arena.lease)  # whoever was taken for lost is reaped by then
    found = await _reaped(arena) - before
    return {"measured": f"{found} reaped for {seconds:g} s of silence", "met": found == 0}


@fault(
    "F43", "notifications lost", "no NOTIFY arrives for ten seconds", every=12.0, needs="proxy", lasting=True,
    bar=f"start delay within P + 0.5 s = {P + 0.5:g} s",
)  # fmt: skip
async def deaf(arena: Arena, rng: random.Random) -> dict[str, Any]:
    async with measure.session(arena) as db:
        start = await measure.now(db)
    for proxy in _everyone(arena):
        proxy.deaf = True
    await asyncio.sleep(10.0)
    for proxy in _everyone(arena):
        proxy.deaf = False
    found = await measure.since(arena, start)
    return {
        "measured": f"start delay p50 {found.p50:.2f} s, p99 {found.p99:.2f} s, worst {found.worst:.2f} s",
        "met": found.worst <= P + 0.5,
    }


@fault(
    "F38", "half-open", "one connection's packets are dropped: the idle listener's, one idle in the pool, one in mid-query",
    every=18.0, lasting=True, bar="found within 12 s",
)  # fmt: skip
async def half_open(arena: Arena, rng: random.Random) -> dict[str, Any]:
    name = rng.choice(["dhara listener", "dhara runner", "dhara keeper", "dhara query"])
    async with measure.session(arena) as db, AsyncExitStack() as stack:
        if name == "dhara query":
            connection = await connect(DatabaseSettings(dsn=arena.dsn), name)
            stack.callback(connection.terminate)
            asking = asyncio.ensure_future(connection.fetchval("SELECT pg_sleep(28)"))
            stack.callback(asking.cancel)
            await asyncio.sleep(0.5)
        query = """SELECT client_port FROM pg_stat_activity WHERE application_name = $1 AND client_port > 0
                   AND state IN ('idle', $2) ORDER BY random() LIMIT 1"""
        port = await db.fetchval(query, name, "active" if name == "dhara query" else "idle")
        if port is None:
            return {"count": 0}
        start = time.monotonic()
        with one_connection(port, arena.postgres.port):
            while _established(port) and time.monotonic() < start + 25:
                await asyncio.sleep(0.1)
            took = time.monotonic() - start
    return {"session": name, "measured": f"{name}: found after {took:.1f} s", "met": took <= 12.0}


def _established(port: int) -> bool:
    """Whether the client's end still believes in its connection."""
    with open("/proc/net/tcp") as file:
        return any(
            line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "01" for line in file.readlines()[1:]
        )


async def _reaped(arena: Arena) -> int:
    async with measure.session(arena) as db:
        return int(await db.fetchval("SELECT count(*) FROM dhara.task_history WHERE event = 'REAPED'"))


@fault(
    "F40", "loss and delay", "a twentieth of the packets between workers and proxy is lost, and all come 50 ms late each way",
    every=30.0, needs="proxy", lasting=True, bar="nobody reaped",
)  # fmt: skip
async def lossy_and_late(arena: Arena, rng: random.Random) -> dict[str, Any]:
    before = await _reaped(arena)
    with ExitStack() as stack:
        for member in arena.members:
            assert member.proxy is not None
            member.proxy.delay = 0.05
            stack.enter_context(lossy(urlsplit(member.proxy.dsn).port or 0, 0.05))
        await asyncio.sleep(20.0)
    for member in arena.members:
        assert member.proxy is not None
        member.proxy.delay = 0.0
    found = await _reaped(arena) - before
    return {"measured": f"{found} reaped in 20 s", "met": found == 0}


@fault(
    "F42", "thin pipe", "each worker has 1 Mbit/s, and payloads of 200 KiB come along", every=40.0, needs="proxy",
    lasting=True, bar="nobody reaped",
)  # fmt: skip
async def thin_pipe(arena: Arena, rng: random.Random) -> dict[str, Any]:
    before = await _reaped(arena)
    for member in arena.members:
        assert member.proxy is not None
        member.proxy.bandwidth = 125_000.0
    for n in range(40):
        if n < 24:
            arena.workload.submit("noop", n=n, text="x" * 200_000)
        await asyncio.sleep(0.6)
    for member in arena.members:
        assert member.proxy is not None
        member.proxy.bandwidth = None
    found = await _reaped(arena) - before
    return {"measured": f"{found} reaped in 24 s, 24 payloads of 200 KiB", "met": found == 0}
