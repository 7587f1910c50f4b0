"""The nursery: a process that forks a child for each attempt that must run alone, and can be killed.

Two kinds do: handlers with `executor="process"`, and suspects (tasks that were running when a process crashed), so that
the guilty one takes nobody with it and the innocent are acquitted.

    runner  ->  nursery   a token and one end of a socket pair, per attempt
    nursery ->  child     fork; the child runs one attempt and speaks to the runner through its socket
    nursery ->  runner    how each child ended: exit code or signal

It is forked before the runner has an event loop or threads, with the handlers imported, so a child starts in
milliseconds. It dies with its runner, and its children with it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import msgspec
from msgspec import Struct

from dhara.domain.outcome import (
    Canceled,
    Crashed,
    Done,
    Failed,
    Outcome,
    Released,
    Settled,
    Snoozed,
)
from dhara.domain.task import Claim
from dhara.worker import process
from dhara.worker.context import Context, Line

log = logging.getLogger(__name__)

_LENGTH = struct.Struct("=I")
_TOKEN = struct.Struct("=q")
_EXIT = struct.Struct("=qq")
_POLL = 0.02
_EXIT_PATIENCE = 2.0


class Hello(Struct, frozen=True, tag=True):
    """The child's first word."""

    pid: int


class Said(Struct, frozen=True, tag=True):
    """A log line of the handler."""

    line: Line


class Progressed(Struct, frozen=True, tag=True):
    """The handler's progress, JSON text."""

    progress: str


class Ended(Struct, frozen=True, tag=True):
    """The outcome; the child's last word."""

    outcome: Done | Failed | Snoozed | Canceled | Released | Crashed | Settled


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Hello | Said | Progressed | Ended)
_CLAIM = msgspec.msgpack.Decoder(Claim)

# What a child does with its claim: the composition root gives it, so that this module knows no executor.
Body = Callable[[Claim, Callable[[Any], None]], Outcome]


class Nursery:
    """The runner's side. `start` must come before the runner's event loop; `attach` inside it."""

    def __init__(self, control: socket.socket, pid: int) -> None:
        self._control = control
        self.pid = pid
        self._tokens = 0
        self._exits: dict[int, asyncio.Future[int]] = {}

    @classmethod
    def start(cls, body: Body) -> Nursery:
        """Fork the nursery. `body` runs in each child."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            ours.close()
            _serve(parent, theirs, body)
        theirs.close()
        ours.setblocking(False)
        return cls(ours, pid)

    def attach(self) -> None:
        """Hear of children that end, on the running loop."""
        asyncio.get_running_loop().add_reader(self._control.fileno(), self._heard)

    def close(self) -> None:
        """End the nursery and what it still runs."""
        with suppress(RuntimeError, OSError):
            asyncio.get_running_loop().remove_reader(self._control.fileno())
        self._control.close()
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def _heard(self) -> None:
        try:
            while data := self._control.recv(_EXIT.size):
                token, status = _EXIT.unpack(data)
                waiter = self._exits.pop(token, None)
                if waiter is not None and not waiter.done():
                    waiter.set_result(status)
            asyncio.get_running_loop().remove_reader(self._control.fileno())
        except BlockingIOError:
            pass
        except OSError as error:
            log.error("the nursery is gone: %s", error)

    async def run(self, claim: Claim, context: Context) -> Outcome:
        """Run one attempt in a child of its own. Cancelling this call kills the child."""
        self._tokens += 1
        token = self._tokens
        ours, theirs = socket.socketpair()
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._exits[token] = ended
        child = _Conversation(context)
        try:
            with theirs:
                socket.send_fds(self._control, [_TOKEN.pack(token)], [theirs.fileno()])
            outcome = await child.hold(ours, claim)
            if outcome is not None:
                return outcome
            return _crashed(claim, await asyncio.wait_for(ended, _EXIT_PATIENCE))
        except asyncio.CancelledError:
            child.kill()
            raise
        except (TimeoutError, OSError) as error:
            child.kill()
            return Crashed(f"its process could not be run: {type(error).__name__}: {error}")
        finally:
            self._exits.pop(token, None)
            ours.close()


class _Conversation:
    """What a child says, in order."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._pid = 0

    async def hold(self, sock: socket.socket, claim: Claim) -> Outcome | None:
        """None if the child ended without an outcome."""
        sock.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=sock)
        try:
            writer.write(_frame(claim))
            await writer.drain()
            while True:
                (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
                message = _DECODER.decode(await reader.readexactly(length))
                match message:
                    case Hello(pid):
                        self._pid = pid
                    case Said(line):
                        self._context.log.keep(line)
                    case Progressed(progress):
                        self._context._progress = progress
                        self._context.dirty = True
                    case Ended(outcome):
                        return outcome
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        finally:
            writer.close()

    def kill(self) -> None:
        if self._pid:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)


def _crashed(claim: Claim, status: int) -> Crashed:
    code = os.waitstatus_to_exitcode(status)
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return Crashed(how, fingerprint=f"crash:{claim.type}:{how}")


def _frame(message: Any) -> bytes:
    data = _ENCODER.encode(message)
    return _LENGTH.pack(len(data)) + data


# the nursery's own process


def _serve(parent: int, control: socket.socket, body: Body) -> NoReturn:
    process.die_with_parent(parent)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    tokens: dict[int, int] = {}
    try:
        while True:
            # Without children there is nothing to wait for but the next request.
            readable, _, _ = select.select([control], [], [], _POLL if tokens else None)
            if readable:
                data, fds, _, _ = socket.recv_fds(control, _TOKEN.size, 1)
                if not data:
                    break
                tokens[_fork(control, fds[0], body)] = _TOKEN.unpack(data)[0]
            _report_ended(control, tokens)
    finally:
        for pid in tokens:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os._exit(0)


def _fork(control: socket.socket, fd: int, body: Body) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        control.close()
        _child(parent, fd, body)
    os.close(fd)
    return pid


def _report_ended(control: socket.socket, tokens: dict[int, int]) -> None:
    while tokens:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        token = tokens.pop(pid, None)
        if token is not None:
            control.send(_EXIT.pack(token, status))


# a child's own process


def _child(parent: int, fd: int, body: Body) -> NoReturn:
    code = 1
    try:
        process.die_with_parent(parent)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        sock = socket.socket(fileno=fd)
        claim = _CLAIM.decode(_receive(sock))
        send: Callable[[Any], None] = lambda message: sock.sendall(_frame(message))  # noqa: E731
        send(Hello(os.getpid()))
        send(Ended(body(claim, send)))
        code = 0
    except BaseException as error:
        sys.stderr.write(f"dhara: an attempt's process failed: {error!r}\n")
    finally:
        os._exit(code)


def _receive(sock: socket.socket) -> bytes:
    (length,) = _LENGTH.unpack(_exactly(sock, _LENGTH.size))
    return _exactly(sock, length)


def _exactly(sock: socket.socket, n: int) -> bytes:
    parts = []
    while n:
        part = sock.recv(n)
        if not part:
            raise ConnectionError("the runner is gone")
        parts.append(part)
        n -= len(part)
    return b"".join(parts)
