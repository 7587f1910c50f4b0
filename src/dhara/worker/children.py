"""The nursery's own process, and its children: one process an attempt.

    runner  ->  nursery   a token and one end of a socket pair: run an attempt · a negative token: kill that one
    nursery ->  child     fork; the child runs one attempt and speaks to the runner through its socket
    nursery ->  runner    token 0: ready · a token and a wait status: how that child ended

The nursery runs no event loop and no threads, with the handlers imported, so a child starts in milliseconds. It dies
with its runner, and its children with it. Each child leads a process group, so that what it started dies with it.
"""

from __future__ import annotations

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

from dhara.domain.outcome import Canceled, Crashed, Done, Failed, Outcome, Released, Settled, Snoozed
from dhara.domain.task import Claim
from dhara.worker import process
from dhara.worker.context import Line

LENGTH = struct.Struct("=I")
TOKEN = struct.Struct("=q")
EXIT = struct.Struct("=qq")
READY = 0
# In place of a wait status, which is never negative.
NOT_STARTED, NURSERY_LOST = -1, -2
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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
_CLAIM = msgspec.msgpack.Decoder(Claim)
MESSAGES = msgspec.msgpack.Decoder(Said | Progressed | Ended)

# What a child does with its claim: the composition root gives it, so that this module knows no executor.
Body = Callable[[Claim, Callable[[Any], None]], Outcome]


def frame(message: Any) -> bytes:
    """A message as it travels between a child and the runner."""
    data = _ENCODER.encode(message)
    return LENGTH.pack(len(data)) + data


class Home:
    """The nursery, in its own process: which child runs which token."""

    def __init__(self, control: socket.socket, body: Body) -> None:
        self._control = control
        self._body = body
        self._pids: dict[int, int] = {}
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._wake, False)

    def serve(self, parent: int) -> NoReturn:
        """Until the runner is gone."""
        code = 0
        try:
            process.die_with_parent(parent)
            for number in _IGNORED:
                signal.signal(number, signal.SIG_IGN)
            signal.signal(signal.SIGCHLD, lambda *_: None)
            signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
            self._control.send(EXIT.pack(READY, 0))
            while self._turn():
                pass
        except ConnectionError:
            pass  # the runner was killed
        except BaseException as error:
            code = 1
            sys.stderr.write(f"dhara: the nursery ends: {error!r}\n")
        finally:
            for pid in self._pids.values():
                _kill(pid)
            os._exit(code)

    def _turn(self) -> bool:
        """Wait for a wish or for the end of a child; False once the runner is gone."""
        readable, _, _ = select.select([self._control.fileno(), self._woken], [], [])
        if self._woken in readable:
            os.read(self._woken, 4096)
            self._report_ended()
        if self._control.fileno() not in readable:
            return True
        data, fds, _, _ = socket.recv_fds(self._control, TOKEN.size, 1)
        if not data:
            return False
        (token,) = TOKEN.unpack(data)
        if token < 0:
            if -token in self._pids:
                _kill(self._pids[-token])
        else:
            self._start(token, fds[0])
        return True

    def _start(self, token: int, fd: int) -> None:
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            sys.stderr.write(f"dhara: no process for an attempt: {error}\n")
            os.close(fd)
            self._control.send(EXIT.pack(token, NOT_STARTED))
            return
        if pid == 0:
            self._leave_home()
            _live(parent, fd, self._body)
        self._pids[token] = pid
        # Here and in the child, so that it holds whoever comes first.
        with suppress(OSError):
            os.setpgid(pid, pid)
        os.close(fd)

    def _leave_home(self) -> None:
        """In the child: nothing of the nursery's may stay."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._control.close()
        os.close(self._woken)
        os.close(self._wake)

    def _report_ended(self) -> None:
        tokens = {pid: token for token, pid in self._pids.items()}
        while self._pids:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            token = tokens.get(pid)
            if token is not None:
                del self._pids[token]
                self._control.send(EXIT.pack(token, status))


def _kill(pid: int) -> None:
    """The child and what it started; by its own number too, should it not lead its group yet."""
    for kill in (os.killpg, os.kill):
        with suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def _live(parent: int, fd: int, body: Body) -> NoReturn:
    """A child's own process."""
    code = 1
    try:
        with suppress(OSError):
            os.setpgid(0, 0)
        process.die_with_parent(parent)
        for number in _IGNORED:
            signal.signal(number, signal.SIG_DFL)
        sock = socket.socket(fileno=fd)
        claim = _CLAIM.decode(_receive(sock))
        send: Callable[[Any], None] = lambda message: sock.sendall(frame(message))  # noqa: E731
        send(Ended(body(claim, send)))
        code = 0
    except ConnectionError:
        pass  # the runner was killed
    except BaseException as error:
        sys.stderr.write(f"dhara: an attempt's process failed: {error!r}\n")
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _receive(sock: socket.socket) -> bytes:
    (length,) = LENGTH.unpack(_exactly(sock, LENGTH.size))
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
