"""The HTTP interface: producers that are too fast, clients that are too slow."""

from __future__ import annotations

import asyncio
import json
import random
import time
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import UUID

from chaos import measure
from chaos.faults.row import fault

if TYPE_CHECKING:
    from chaos.arena import Arena

_CALLERS = 48


class Caller:
    """One keep-alive connection that posts a task, again and again, and keeps what it was told."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._where = urlsplit(arena.url)
        self.answers: dict[int, int] = {}
        self.times: list[float] = []

    async def run(self, until: float, pause: float = 0.0) -> None:
        reader, writer = await asyncio.open_connection(self._where.hostname, self._where.port)
        try:
            while time.monotonic() < until:
                start = time.monotonic()
                status = await self._post(reader, writer)
                self.times.append(time.monotonic() - start)
                self.answers[status] = self.answers.get(status, 0) + 1
                await asyncio.sleep(pause)
        finally:
            writer.close()

    async def _post(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        key = self._arena.workload.register("noop")
        payload = {"n": 1, "text": "by HTTP"}
        body = json.dumps({"type": "noop", "payload": payload, "idempotency_key": key, "max_retries": 20}).encode()
        head = f"POST /api/v1/tasks HTTP/1.1\r\nHost: {self._where.netloc}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        length = next(int(line.partition(":")[2]) for line in lines if line.lower().startswith("content-length:"))
        answer = json.loads(await reader.readexactly(length))
        status = int(lines[0].split()[1])
        if status == 201:
            self._arena.workload.acknowledge(UUID(answer["id"]), key, "noop", payload)
        return status


@fault(
    "F56", "HTTP flood", f"{_CALLERS} producers post as fast as they can for five minutes, far beyond what is worked off",
    every=60.0, needs="server", lasting=True, bar="429 at the queue's limit, memory within ± 10 %, everything accepted kept",
)  # fmt: skip
async def http_flood(arena: Arena, rng: random.Random) -> dict[str, Any]:
    warm = [Caller(arena) for _ in range(_CALLERS)]
    await asyncio.gather(*(caller.run(time.monotonic() + 5.0) for caller in warm))
    before, seconds = arena.server.memory, arena.size("F56")
    callers = [Caller(arena) for _ in range(_CALLERS)]
    await asyncio.gather(*(caller.run(time.monotonic() + seconds) for caller in callers))
    after = arena.server.memory
    answers: dict[int, int] = {}
    for caller in callers:
        for status, n in caller.answers.items():
            answers[status] = answers.get(status, 0) + n
    told = ", ".join(f"{n:,} × {status}" for status, n in sorted(answers.items()))
    return {
        "measured": f"in {seconds} s {told}; memory {before:.0f} → {after:.0f} MiB",
        "met": answers.get(429, 0) > 0 and set(answers) <= {201, 429, 503} and after <= 1.1 * before,
    }  # fmt: skip


@fault(
    "F57", "slow clients", "500 connections that send a byte a second, 200 half-closed, 50 open event streams", every=50.0,
    needs="server", lasting=True, bar="p99 of normal requests at most 2 ×, 95 % of the rate",
)  # fmt: skip
async def slow_clients(arena: Arena, rng: random.Random) -> dict[str, Any]:
    start = await _now(arena)
    calm = await _steadily(arena, 10.0)
    before = await measure.since(arena, start)
    where = urlsplit(arena.url)
    end = time.monotonic() + 20.0
    slow = [asyncio.create_task(_drip(where.hostname, where.port, end)) for _ in range(500)]
    slow += [asyncio.create_task(_half_close(where.hostname, where.port, end)) for _ in range(200)]
    slow += [asyncio.create_task(_stream(where.hostname, where.port, end)) for _ in range(50)]
    await asyncio.sleep(3.0)
    start = await _now(arena)
    hurt = await _steadily(arena, 15.0)
    during = await measure.since(arena, start)
    refused = sum(await asyncio.gather(*slow))
    slowed = measure.at(hurt, 0.99) / max(measure.at(calm, 0.99), 1e-9)
    return {
        "refused": refused,
        "measured": f"POST p99 {1e3 * measure.at(calm, 0.99):.0f} → {1e3 * measure.at(hurt, 0.99):.0f} ms;"
        f" {during.against(before)}; {refused} of 750 were sent away meanwhile",
        "met": slowed <= 2.0 and during.rate >= 0.95 * before.rate,
    }  # fmt: skip


async def _now(arena: Arena) -> datetime:
    async with measure.session(arena) as db:
        return await measure.now(db)


async def _steadily(arena: Arena, seconds: float) -> list[float]:
    """The times of normal requests, 100 a second, in order."""
    callers = [Caller(arena) for _ in range(4)]
    await asyncio.gather(*(caller.run(time.monotonic() + seconds, pause=0.04) for caller in callers))
    return sorted(took for caller in callers for took in caller.times)


async def _drip(host: str | None, port: int | None, end: float) -> bool:
    """A request that never comes to its end; whether the server has put an end to it."""
    begun = f"POST /api/v1/tasks HTTP/1.1\r\nHost: {host}:{port}\r\nX-Slow: ".encode()
    return await _held(host, port, end, begun, b"a", half=False)


async def _half_close(host: str | None, port: int | None, end: float) -> bool:
    return await _held(host, port, end, b"GET /livez HTTP/1.1\r\n", b"", half=True)


async def _held(host: str | None, port: int | None, end: float, begun: bytes, more: bytes, *, half: bool) -> bool:
    with suppress(OSError):
        reader, writer = await asyncio.open_connection(host, port)
        reading = asyncio.ensure_future(reader.read())
        try:
            writer.write(begun)
            if half:
                writer.write_eof()
            while time.monotonic() < end and not reading.done():
                if more:
                    writer.write(more)
                await asyncio.wait({reading}, timeout=1.0)
            return reading.done()
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            writer.close()
    return True


async def _stream(host: str | None, port: int | None, end: float) -> bool:
    """An open stream of events, which nobody reads."""
    with suppress(OSError):
        _, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(
                f"GET /api/v1/events HTTP/1.1\r\nHost: {host}:{port}\r\nAccept: text/event-stream\r\n\r\n".encode()
            )
            await asyncio.sleep(max(0.0, end - time.monotonic()))
            return False
        finally:
            writer.close()
    return True
