"""A TCP proxy before PostgreSQL that understands message headers, so that a connection can be cut at an exact message.

lose_request(name)   the next execution of that statement (such as `tasks/settle`) never reaches the server
lose_reply(name)     it does, and is committed, but its answer never reaches the client
lose(cut)            the same for a cut that several proxies share: the first that sees the statement takes it
freeze()             nothing passes any more and nobody is told: a half-open link
cut()                every connection ends now
close()              and new ones too, until reopen()
deaf                 notifications are swallowed
delay                what passes arrives so many seconds later, in order
bandwidth            all connections share so many bytes a second, each way
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit

from dhara.store.sql import load

_LENGTH = struct.Struct("!I")
_PIECE = 4_096


class Cut:
    """A connection is to be cut at the next execution of a statement, which is known by a part of its text: before it reaches
    the server, or (`reply`) after it is committed. Within a transaction it is that one's COMMIT which is lost, or its answer.
    `spares`: so many executions pass unharmed before.
    """

    def __init__(self, text: str, *, reply: bool, spares: int = 0) -> None:
        self.text = text
        self.reply = reply
        self._spares = spares
        self.taken = False  # a connection has executed the statement
        self.done = asyncio.Event()

    def takes(self, query: str) -> bool:
        """Whether it is to be made at this statement; from now on it is for nobody else then."""
        if self.taken or self.text not in query:
            return False
        self._spares -= 1
        self.taken = self._spares < 0
        return self.taken

    @classmethod
    def at(cls, name: str, *, reply: bool) -> Self:
        """At the statement of that name, such as `tasks/settle`."""
        return cls(load(name, "dhara"), reply=reply)


class Proxy:
    """Listens on a free port of 127.0.0.1; `dsn` leads through it."""

    def __init__(self, dsn: str) -> None:
        self._target = urlsplit(dsn)
        self._wanted: list[Cut] = []
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self.cuts = 0
        self.accepted = 0
        self.deaf = False
        self.refusing = False
        self.delay = 0.0
        self.bandwidth: float | None = None
        self._pipes = (
            asyncio.Lock(),
            asyncio.Lock(),
        )  # up, down; they wake in the order of asking: everyone gets a turn
        self.dsn = ""
        self.flowing = asyncio.Event()
        self.flowing.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        login, at, _ = self._target.netloc.rpartition("@")
        changed = self._target._replace(netloc=f"{login}{at}127.0.0.1:{port}", query="sslmode=disable")
        self.dsn = changed.geturl()
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        self.flowing.set()
        self.cut()
        await asyncio.gather(*(link.ended.wait() for link in list(self._links)))

    def lose_request(self, name: str) -> None:
        """Cut before the next execution of the statement reaches the server."""
        self.lose(Cut.at(name, reply=False))

    def lose_reply(self, name: str) -> None:
        """Cut after the server has answered the statement's next execution, before the client hears of it."""
        self.lose(Cut.at(name, reply=True))

    def lose(self, cut: Cut) -> None:
        """Carry it out, unless another proxy does so first."""
        self._wanted.append(cut)

    def forget(self, cut: Cut) -> None:
        """Carry it out no more."""
        self._wanted = [one for one in self._wanted if one is not cut]

    @property
    def links(self) -> int:
        """Connections open now."""
        return len(self._links)

    def freeze(self) -> None:
        """Hold everything back without a word."""
        self.flowing.clear()

    def thaw(self) -> None:
        self.flowing.set()

    def close(self) -> None:
        """The database is away: every connection ends, new ones end at once."""
        self.refusing = True
        self.cut()

    def reopen(self) -> None:
        """It is back."""
        self.refusing = False

    def cut(self) -> None:
        """End every connection."""
        for link in list(self._links):
            link.close()

    async def carry(self, writer: asyncio.StreamWriter, data: bytes, late: _Late, down: bool) -> None:
        """Write `data`, as slowly and as late as is set."""
        if self.bandwidth is not None:
            for start in range(0, len(data), _PIECE):
                piece = data[start : start + _PIECE]
                async with self._pipes[down]:
                    await asyncio.sleep(len(piece) / self.bandwidth)
                writer.write(piece)
        elif self.delay or late.waiting:
            late.write(writer, data, self.delay)
        else:
            writer.write(data)
        await writer.drain()

    def take(self, query: str) -> Cut | None:
        """The cut that is to be made at this statement, if any."""
        return next((cut for cut in self._wanted if cut.takes(query)), None)

    def made(self, cut: Cut) -> None:
        """It has been carried out."""
        self.cuts += 1
        cut.done.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self.refusing:
            writer.close()
            return
        try:
            server = await asyncio.open_connection(self._target.hostname, self._target.port or 5432)
        except OSError:
            writer.close()
            return
        link = _Link(self, (reader, writer), server)
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.discard(link)


class _Late:
    """What is under way on one side of a connection, in order."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[asyncio.StreamWriter, bytes]] = deque()

    def write(self, writer: asyncio.StreamWriter, data: bytes, delay: float) -> None:
        self.waiting.append((writer, data))
        asyncio.get_running_loop().call_later(delay, self._arrive)

    def _arrive(self) -> None:
        writer, data = self.waiting.popleft()
        if not writer.is_closing():
            writer.write(data)


class _Link:
    """One connection through the proxy."""

    def __init__(
        self,
        proxy: Proxy,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._proxy = proxy
        self._client, self._server = client, server
        self._statements: dict[bytes, str] = {}
        self._late = (_Late(), _Late())
        self._transaction = False
        self._coming: Cut | None = None  # it is to be made at the COMMIT of this transaction
        self._swallowing: Cut | None = None
        self.ended = asyncio.Event()

    async def run(self) -> None:
        """Until either side ends."""
        ways = [asyncio.create_task(self._upwards()), asyncio.create_task(self._downwards())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._spare()
            self.close()
            self.ended.set()

    def close(self) -> None:
        for _, writer in (self._client, self._server):
            with suppress(OSError):
                writer.transport.abort()

    async def _upwards(self) -> None:
        reader, writer = self._client[0], self._server[1]
        head = await reader.readexactly(4)  # the start-up message has no type
        writer.write(head + await reader.readexactly(_LENGTH.unpack(head)[0] - 4))
        while True:
            kind, body = await _message(reader)
            await self._proxy.flowing.wait()
            query = self._executed(kind, body)
            cut = None if query is None else self._cut_now(query)
            if cut is not None and not cut.reply:
                self._proxy.made(cut)
                return
            self._swallowing = self._swallowing or cut
            await self._proxy.carry(writer, kind + _LENGTH.pack(len(body) + 4) + body, self._late[0], False)

    def _cut_now(self, query: str) -> Cut | None:
        """The cut to be made as this is executed."""
        if not self._transaction:
            return self._proxy.take(query)
        if query.startswith("COMMIT"):
            coming, self._coming = self._coming, None
            return coming
        if query.startswith("ROLLBACK"):
            self._spare()
        elif self._coming is None:
            self._coming = self._proxy.take(query)
        return None

    def _spare(self) -> None:
        """There is no COMMIT to be cut at: somebody else may take it."""
        if self._coming is not None:
            self._coming.taken, self._coming = False, None

    def _executed(self, kind: bytes, body: bytes) -> str | None:
        """The text of the statement that this message executes, if it does."""
        if kind == b"P":
            name, text = body.split(b"\0")[:2]
            self._statements[name] = text.decode()
        elif kind == b"B":
            return self._statements.get(body.split(b"\0")[1])
        elif kind == b"Q":
            return body.decode(errors="replace")
        return None

    async def _downwards(self) -> None:
        reader, writer = self._server[0], self._client[1]
        while True:
            kind, body = await _message(reader)
            await self._proxy.flowing.wait()
            if self._swallowing is not None:
                if kind == b"Z":  # ready for the next query: the transaction has ended
                    self._proxy.made(self._swallowing)
                    return
                continue
            if kind == b"Z":
                self._transaction = body == b"T"
            if kind == b"A" and self._proxy.deaf:
                continue
            await self._proxy.carry(writer, kind + _LENGTH.pack(len(body) + 4) + body, self._late[1], True)


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readexactly(5)
    return head[:1], await reader.readexactly(_LENGTH.unpack(head[1:])[0] - 4)
