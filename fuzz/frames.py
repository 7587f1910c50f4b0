"""Mutated HTTP frames over raw sockets.

    python -m fuzz.frames [--frames 100000] [--seed 0]

Each frame is a valid exchange, bent (bytes flipped, lines doubled, lengths that lie, chunks that end early), and a last
request behind it. The server must answer with a status below 500, or wait for what the frame promised and hang up once it
hears that nothing will come. It must not make a task without answering 201 on that connection: what two parsers read
differently (request smuggling) would show there.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable

from fuzz.server import served

TASK = b'{"type":"fuzz","payload":{"a":[1,2,"x"]}}'
PATIENCE = 30.0
LAST = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


def _post(body: bytes, *lines: bytes) -> bytes:
    head = [b"POST /api/v1/tasks HTTP/1.1", b"Host: 127.0.0.1", b"Content-Type: application/json", *lines]
    return b"\r\n".join([*head, b"", b""]) + body


def _chunks(body: bytes, size: int) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


_LENGTH = b"Content-Length: %d" % len(TASK)
_CHUNKED = b"Transfer-Encoding: chunked"
SEEDS: tuple[bytes, ...] = (
    b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"GET /api/v1/tasks?limit=1&q=x HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\nX-Request-Id: abc\r\n\r\n",
    b"DELETE /api/v1/tasks/00000000-0000-7000-8000-000000000000 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    _post(TASK, _LENGTH),
    _post(TASK, _LENGTH, b"Connection: close"),
    _post(TASK, _LENGTH, b"Expect: 100-continue"),
    _post(_chunks(TASK, 7), _CHUNKED),
    _post(_chunks(TASK, 100), _CHUNKED, b"Trailer: X-Y"),
    _post(TASK, _LENGTH) * 2,
    _post(_chunks(TASK, 9), _CHUNKED) + b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    _post(_chunks(TASK, 9), _CHUNKED, _LENGTH),
    _post(_chunks(TASK, 9), _LENGTH, _CHUNKED),
    b"GET /livez HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n",
)
SPLICES: tuple[bytes, ...] = (
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\x00",
        b" ",
        b"\t",
        b":",
        b"\xff",
        b"\r\n\r\n",
        b"0\r\n\r\n",
        b"ffffffff\r\n",
        b"-1",
        b";a=b",
    ),
    *(
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: identity\r\n",
        b"Transfer-Encoding:\tchunked, chunked\r\n",
    ),
    *(b"Content-Length: 0\r\n", b"Content-Length: 5\r\n", b"Content-Length: +41\r\n", b"Content-Length: 41, 41\r\n"),
    *(
        b"Host: evil.example\r\n",
        b"Upgrade: websocket\r\nConnection: upgrade\r\n",
        b"Connection: close\r\n",
        b" folded\r\n",
    ),
    *(b"HTTP/2.0", b"HTTP/1.1 200 OK\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"X" * 9_000, b"A: b\r\n" * 2_000),
)
Bend = Callable[[bytearray, random.Random], None]


def _flip(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _cut(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice((1, 2, 10, 1_000))]


def _splice(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.choice(SPLICES)


def _at_line(data: bytearray, rng: random.Random) -> None:
    ends = [found.end() for found in re.finditer(b"\r\n", bytes(data))] or [0]
    at = rng.choice(ends)
    data[at:at] = rng.choice(SPLICES)


def _repeat(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    data[at:at] = data[at : at + rng.choice((1, 5, 40))] * rng.choice((1, 2, 20))


def _digit(data: bytearray, rng: random.Random) -> None:
    digits = [at for at, byte in enumerate(data) if 48 <= byte <= 57]
    if digits:
        data[rng.choice(digits)] = rng.choice(b"0123456789abcdefx-+ ")


BENDS: tuple[Bend, ...] = (_flip, _cut, _splice, _at_line, _repeat, _digit)


def mutated(rng: random.Random) -> bytes:
    """A frame: a seed, bent up to four times."""
    data = bytearray(rng.choice(SEEDS))
    for _ in range(rng.randint(0, 4)):
        if data:
            rng.choice(BENDS)(data, rng)
    return bytes(data)


class Verdict:
    """What has come of the frames."""

    def __init__(self) -> None:
        self.statuses: Counter[str] = Counter()
        self.created = 0
        # Exchanges that had to be ended from here: their last answers may have been on their way.
        self.cut = 0
        self.faults: list[tuple[str, bytes, bytes]] = []

    def judge(self, frame: bytes, answer: bytes | None) -> None:
        if answer is None:
            self.faults.append(("no end of the answer", frame, b""))
            return
        found = [int(status) for status in STATUS.findall(answer)]
        self.statuses.update(map(str, found) if found else ["hung up"])
        self.created += found.count(201)
        # 503: more at once than the database has connections for; the machine's fault, not the frame's.
        if any(status >= 500 and status != 503 for status in found):
            self.faults.append(("a 5xx", frame, answer))


async def exchange(port: int, frame: bytes, quiet: float = 2.0) -> tuple[bytes | None, bool]:
    """What comes back until the server hangs up, and whether it had to be told, after `quiet` seconds without an answer,
    that nothing more will come. None: it never hung up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    found, cut = b"", False
    try:
        writer.write(frame)
        await writer.drain()
        while True:
            try:
                async with asyncio.timeout(PATIENCE if cut else quiet):
                    piece = await reader.read(65_536)
            except TimeoutError:
                if cut:
                    return None, True
                cut = True
                writer.write_eof()
                continue
            if not piece:
                return found, cut
            found += piece
    except OSError:
        return found, cut
    finally:
        writer.close()


async def run(
    port: int, frames: int, seed: int, *, seconds: float = 1e9, lanes: int = 100, quiet: float = 2.0
) -> tuple[int, Verdict]:
    """Send `frames` frames, for at most `seconds`; answers how many were sent."""
    rng, verdict, sent = random.Random(seed), Verdict(), 0
    until = time.monotonic() + seconds

    async def lane() -> None:
        nonlocal sent
        while sent < frames and time.monotonic() < until:
            sent += 1
            frame = mutated(rng) + LAST
            answer, cut = await exchange(port, frame, quiet)
            verdict.cut += cut
            verdict.judge(frame, answer)

    await asyncio.gather(*(lane() for _ in range(lanes)))
    return sent, verdict


async def main(frames: int, seed: int) -> int:
    logging.disable(logging.WARNING)
    started = time.monotonic()
    async with served() as (port, pool, _):
        sent, verdict = await run(port, frames, seed)
        made = await pool.fetchval(f'SELECT count(*) FROM "{pool.settings.schema}".tasks')
        alive, _ = await exchange(port, LAST)
    print(f"{sent:,} frames in {time.monotonic() - started:.0f} s, seed {seed}")
    print("answers: " + ", ".join(f"{status}: {n:,}" for status, n in sorted(verdict.statuses.items())))
    print(
        f"tasks: {made:,} made, {verdict.created:,} answered 201, {verdict.cut:,} exchanges cut; faults: {len(verdict.faults)}"
    )
    for fault, frame, answer in verdict.faults[:20]:
        print(f"  {fault}: {frame[:300]!r} -> {answer[:200]!r}")
    return 0 if not verdict.faults and alive and b" 200 " in alive and made <= verdict.created + verdict.cut else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sys.exit(asyncio.run(main(arguments.frames, arguments.seed)))
