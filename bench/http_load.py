"""Load on POST /api/v1/tasks: raw sockets, N connections that each send their next request when the answer is there.

    python bench/http_load.py --url http://127.0.0.1:8080 --connections 64 --seconds 15

Prints requests a second and the percentiles of their times; every answer but 201 counts as an error.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Any
from urllib.parse import urlsplit

import uvloop

BODY = b'{"type":"echo","payload":{"to":"someone@example.org","subject":"Hello","n":12345,"items":["a","b","c"]}}'


class Caller(asyncio.Protocol):
    """One keep-alive connection."""

    def __init__(self, request: bytes, until: float, times: list[float], errors: list[bytes]) -> None:
        self._request = request
        self._until = until
        self._times = times
        self._errors = errors
        self._buffer = b""
        self._sent = 0.0
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
        now = time.perf_counter()
        self._times.append(now - self._sent)
        if not head.startswith(b"HTTP/1.1 201"):
            self._errors.append(head + b"\n" + rest)
        if now < self._until:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if time.perf_counter() < self._until:
            self._errors.append(f"connection lost: {exc}".encode())
        if not self.done.done():
            self.done.set_result(None)

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(self._request)


async def run(url: str, connections: int, seconds: float, key: str | None) -> dict[str, float | int]:
    """Load `url` and answer the figures; times in milliseconds."""
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    head = [f"POST /api/v1/tasks HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json"]
    head += [f"Authorization: Bearer {key}"] if key else []
    request = "\r\n".join([*head, f"Content-Length: {len(BODY)}", "", ""]).encode() + BODY
    times: list[float] = []
    errors: list[bytes] = []
    started = time.perf_counter()
    loop = asyncio.get_running_loop()
    callers = [
        (await loop.create_connection(lambda: Caller(request, started + seconds, times, errors), host, port))[1]
        for _ in range(connections)
    ]
    await asyncio.gather(*(caller.done for caller in callers))
    elapsed = time.perf_counter() - started
    times.sort()
    if errors:
        print(errors[0].decode("latin-1")[:1_000])
    return {
        "per_second": round(len(times) / elapsed),
        "p50_ms": round(1000 * times[len(times) // 2], 2),
        "p99_ms": round(1000 * times[len(times) * 99 // 100], 2),
        "worst_ms": round(1000 * times[-1], 2),
        "requests": len(times),
        "errors": len(errors),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--key")
    given = parser.parse_args()
    uvloop.install()
    print(json.dumps(asyncio.run(run(given.url, given.connections, given.seconds, given.key))))


if __name__ == "__main__":
    main()
