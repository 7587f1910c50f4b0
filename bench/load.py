"""Load on the HTTP API: raw sockets, N connections that each send their next request when the answer is there.

    python -m bench.load --url http://127.0.0.1:8080 --connections 64 --seconds 15 [--batch 500]

Prints requests a second and the percentiles of their times; every answer but 201 counts as an error.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import time
from typing import Any
from urllib.parse import urlsplit

import uvloop

TASK = (
    b'{"type":"bench.nothing","payload":{"to":"someone@example.org","subject":"Hello","n":12345,"items":["a","b","c"]}}'
)


class Load:
    """What is sent, until when, and what came back. Times are seconds."""

    def __init__(self, request: bytes, until: float, most: float) -> None:
        self.request = request
        self.until = until
        self.left = most
        self.times: list[float] = []
        self.errors: list[bytes] = []

    def may_send(self) -> bool:
        self.left -= 1
        return self.left >= 0 and time.perf_counter() < self.until


class Caller(asyncio.Protocol):
    """One keep-alive connection."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._buffer = b""
        self._sent = 0.0
        self._finished = False
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes.
        self._transport: Any = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(rest) < length:
            return
        self._buffer = b""
        self._load.times.append(time.perf_counter() - self._sent)
        if not head.startswith(b"HTTP/1.1 201"):
            self._load.errors.append(head + b"\n" + rest)
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._finished:
            self._load.errors.append(f"connection lost: {exc}".encode())
        if not self.done.done():
            self.done.set_result(None)

    def _send(self) -> None:
        if self._load.may_send():
            self._sent = time.perf_counter()
            self._transport.write(self._load.request)
        else:
            self._finished = True
            self._transport.close()


def request_to(host: str, port: int, batch: int, key: str | None) -> bytes:
    """The request, whole: one task, or a batch of them."""
    path, body = ("/batch", b"[" + b",".join([TASK] * batch) + b"]") if batch else ("", TASK)
    head = [f"POST /api/v1/tasks{path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json"]
    head += [f"Authorization: Bearer {key}"] if key else []
    return "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body


async def run(given: argparse.Namespace) -> dict[str, float]:
    """Load the server and answer the figures; times in milliseconds."""
    parts = urlsplit(given.url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    started = time.perf_counter()
    load = Load(request_to(host, port, given.batch, given.key), started + given.seconds, given.most)
    loop = asyncio.get_running_loop()
    callers = [(await loop.create_connection(lambda: Caller(load), host, port))[1] for _ in range(given.connections)]
    await asyncio.gather(*(caller.done for caller in callers))
    elapsed = time.perf_counter() - started
    if load.errors:
        print(load.errors[0].decode("latin-1")[:1_000], file=sys.stderr)
    times = sorted(load.times)
    return {
        "per_second": len(times) * (given.batch or 1) / elapsed,
        "p50_ms": 1000 * times[len(times) // 2],
        "p99_ms": 1000 * times[len(times) * 99 // 100],
        "worst_ms": 1000 * times[-1],
        "requests": len(times),
        "errors": len(load.errors),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--most", type=float, default=math.inf, help="most requests")
    parser.add_argument("--batch", type=int, default=0, help="tasks a request, by /tasks/batch")
    parser.add_argument("--key")
    uvloop.install()
    print(json.dumps(asyncio.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
