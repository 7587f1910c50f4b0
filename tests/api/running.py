"""The real server in this process, on a socket, and what to send to it."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from dhara.api.asgi import Api
from dhara.api.server import serve


class Running:
    """A server under test."""

    def __init__(self, app: Api) -> None:
        self.app = app
        self.stop = asyncio.Event()
        self.port = 0
        self._started = asyncio.Event()
        self.task = asyncio.create_task(
            serve(app, host="127.0.0.1", port=0, stop=self.stop, on_started=self._on_started, grace=5)
        )

    def _on_started(self, host: str, port: int) -> None:
        self.port = port
        self._started.set()

    async def start(self) -> Running:
        await asyncio.wait_for(self._started.wait(), 30)
        return self

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def send(self, *pieces: bytes) -> bytes:
        """What comes back on a fresh connection until the server closes it."""
        reader, writer = await self.open()
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            return await asyncio.wait_for(reader.read(), 30)
        except ConnectionError:
            return b""
        finally:
            await hang_up(writer)


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """One answer on a connection that stays open."""
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)).decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    body = await reader.readexactly(int(headers["content-length"]))
    return int(head[0].split(" ")[1]), headers, body


def request(body: bytes = b'{"type":"echo"}', *lines: str, path: str = "/api/v1/tasks", method: str = "POST") -> bytes:
    head = [
        f"{method} {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*head, *lines, "", ""]).encode() + body
