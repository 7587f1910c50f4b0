"""The network: replies and requests lost at an exact message, partitions, resets, stalls, lost notifications."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from chaos.faults.row import fault

if TYPE_CHECKING:
    from chaos.arena import Arena
    from tests.proxy import Proxy

# Statements whose loss matters, as the proxy knows them by their text.
_STATEMENTS = ("tasks/claim", "tasks/settle", "tasks/complete", "workers/beat", "tasks/enqueue")


def packets() -> bool:
    """Whether packets can be dropped here: root, and an iptables that works."""
    if os.geteuid() != 0 or shutil.which("iptables") is None:
        return False
    return subprocess.run(["iptables", "-w", "-L", "-n"], capture_output=True, check=False).returncode == 0


@contextmanager
def rules(host: str, port: int, *target: str) -> Iterator[None]:
    """What goes to `host`:`port` and what comes from there meets `target`."""
    found = [
        ["INPUT", "-i", "lo", "-p", "tcp", "-d", host, "--dport", str(port), "-j", *target],
        ["INPUT", "-i", "lo", "-p", "tcp", "-s", host, "--sport", str(port), "-j", *target],
    ]
    for rule in found:
        subprocess.run(["iptables", "-w", "-I", *rule], check=True)
    try:
        yield
    finally:
        for rule in found:
            subprocess.run(["iptables", "-w", "-D", *rule], check=False)


async def _lose(arena: Arena, rng: random.Random, reply: bool) -> dict[str, Any]:
    name = rng.choice(_STATEMENTS)
    proxy = arena.front if name == "tasks/enqueue" else arena.pick(rng).proxy
    assert proxy is not None
    before = proxy.cuts
    (proxy.lose_reply if reply else proxy.lose_request)(name)
    end = time.monotonic() + 5
    while proxy.cuts == before and time.monotonic() < end:
        await asyncio.sleep(0.01)
    if proxy.cuts == before:
        proxy.forget()
        return {"count": 0, "statement": name}
    return {"statement": name}


@fault("F20", "TCP cut", "a commit's reply is lost: enqueue, claim, settle, beat", every=0.5, needs="proxy")
async def reply_lost(arena: Arena, rng: random.Random) -> dict[str, Any]:
    return await _lose(arena, rng, reply=True)


@fault("F21", "TCP cut", "a request is lost before its commit", every=0.5, needs="proxy")
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
        member.proxy.thaw()
        return {"worker": member.index, "by": "proxy", "seconds": seconds}
    with rules(member.host, arena.postgres.port, "DROP"):
        await asyncio.sleep(seconds)
    return {"worker": member.index, "by": "iptables DROP", "seconds": seconds}


@fault("F39", "TCP cut", "every connection of one worker is reset", every=1.0)
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


@fault("F41", "stall", "the database stalls for 5 s, less than the lease", every=15.0, needs="proxy", lasting=True)
async def stalled(arena: Arena, rng: random.Random) -> dict[str, Any]:
    for proxy in _everyone(arena):
        proxy.freeze()
    await asyncio.sleep(5.0 * arena.lease / 6.0)
    for proxy in _everyone(arena):
        proxy.thaw()
    return {"seconds": 5.0 * arena.lease / 6.0}


@fault("F43", "notifications lost", "no NOTIFY arrives for ten seconds", every=12.0, needs="proxy", lasting=True)
async def deaf(arena: Arena, rng: random.Random) -> dict[str, Any]:
    for proxy in _everyone(arena):
        proxy.deaf = True
    await asyncio.sleep(10.0)
    for proxy in _everyone(arena):
        proxy.deaf = False
    return {"seconds": 10.0}
