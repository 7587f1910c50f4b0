"""The nursery: a process that forks a child for each attempt that must run alone, and can be killed.

Two kinds do: handlers with `executor="process"`, and suspects (tasks that were running when a process crashed), so that
the guilty one takes nobody with it and the innocent are acquitted. This is the runner's side; `children.py` is the
other.

    `start`   forks it, before the runner has an event loop or threads; when it dies its runner is replaced
    `spawn`   starts it as a program that imports the handlers, for `async with Worker`; when it dies it starts again
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from dhara.domain.outcome import Crashed, Failed, Outcome, Released
from dhara.domain.task import Claim
from dhara.errors import ConfigError
from dhara.worker import process
from dhara.worker.children import (
    EXIT,
    LENGTH,
    MESSAGES,
    NOT_STARTED,
    NURSERY_LOST,
    READY,
    TOKEN,
    Body,
    Ended,
    Home,
    Progressed,
    Said,
    frame,
)
from dhara.worker.context import Context

log = logging.getLogger(__name__)

_START_PATIENCE = 30.0
_DEATH_PATIENCE = 2.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_FULL = 0.002

# Its process's number and our end of its control socket.
Begun = tuple[int, socket.socket]


class Nursery:
    """The runner's side. `attach` comes on the runner's event loop; nothing can run before."""

    def __init__(self, begun: Begun, again: Callable[[], Begun] | None = None) -> None:
        self.pid, self._control = begun
        self._again = again
        self._tokens = 0
        self._exits: dict[int, asyncio.Future[int]] = {}
        self._ready = asyncio.Event()
        self._lost = asyncio.Event()
        self._gone: Callable[[], None] = lambda: None
        self._pause = _FIRST_PAUSE
        self._restart: asyncio.TimerHandle | None = None
        self._closed = False

    @classmethod
    def start(cls, body: Body) -> Nursery:
        """Fork the nursery. `body` runs in each child."""
        ours, theirs = control_pair()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            ours.close()
            Home(theirs, body).serve(parent)
        theirs.close()
        return cls((pid, ours))

    @classmethod
    def spawn(cls, begin: Callable[[], Begun]) -> Nursery:
        """A nursery that `begin` starts, and starts again when it has died."""
        return cls(begin(), begin)

    async def attach(self, gone: Callable[[], None]) -> None:
        """Hear of it on the running loop, from when it is ready; `gone` is called when it dies and cannot be replaced.

        Raises `ConfigError` if it does not become ready.
        """
        self._gone = gone
        self._listen()
        waits = [asyncio.create_task(event.wait()) for event in (self._ready, self._lost)]
        await asyncio.wait(waits, timeout=_START_PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if not self._ready.is_set():
            self.close()
            raise ConfigError(
                "the process for attempts that run alone does not start; its own words are above, on standard error"
            )

    def close(self) -> None:
        """End the nursery and what it still runs."""
        self._closed = True
        if self._restart is not None:
            self._restart.cancel()
        self._deaf()
        # The end of its control socket makes it kill its children and leave.
        self._control.close()
        _await_end(self.pid)

    def _listen(self) -> None:
        asyncio.get_running_loop().add_reader(self._control.fileno(), self._heard)

    def _deaf(self) -> None:
        with suppress(RuntimeError, OSError, ValueError):
            asyncio.get_running_loop().remove_reader(self._control.fileno())

    def _heard(self) -> None:
        try:
            while data := self._control.recv(EXIT.size):
                token, status = EXIT.unpack(data)
                if token == READY:
                    self._ready.set()
                    self._pause = _FIRST_PAUSE
                elif (waiter := self._exits.get(token)) is not None and not waiter.done():
                    waiter.set_result(status)
        except BlockingIOError:
            return
        except OSError:
            pass
        self._died()

    def _died(self) -> None:
        self._deaf()
        self._control.close()
        _await_end(self.pid)
        self._ready.clear()
        self._lost.set()
        for waiter in self._exits.values():
            if not waiter.done():
                waiter.set_result(NURSERY_LOST)
        if self._again is None:
            self._gone()
        elif not self._closed:
            log.error("the nursery ended; starting another")
            self._restart = asyncio.get_running_loop().call_later(self._pause, self._begin_again)
            self._pause = min(_LONGEST_PAUSE, self._pause * 2)

    def _begin_again(self) -> None:
        assert self._again is not None
        try:
            self.pid, self._control = self._again()
        except OSError as error:
            log.error("the nursery could not be started: %s", error)
            self._restart = asyncio.get_running_loop().call_later(self._pause, self._begin_again)
            return
        self._lost.clear()
        self._listen()

    async def run(self, claim: Claim, context: Context) -> Outcome:
        """Run one attempt in a child of its own. Cancelling this call kills the child."""
        if self._again is None and self._lost.is_set():
            return Released("its worker is being replaced before it could start")
        await self._ready.wait()
        self._tokens += 1
        token = self._tokens
        ended = self._exits[token] = asyncio.get_running_loop().create_future()
        asked = False
        try:
            ours, theirs = socket.socketpair()
            with ours:
                with theirs:
                    await self._ask(token, theirs)
                asked = True
                outcome = await _hold(ours, claim, context)
            return _verdict(claim, await ended) if outcome is None else outcome
        except asyncio.CancelledError:
            if asked:
                await self._kill(token, ended)
            raise
        except OSError as error:
            return _not_started(str(error))
        finally:
            del self._exits[token]

    async def _ask(self, token: int, theirs: socket.socket | None = None) -> None:
        fds = [] if theirs is None else [theirs.fileno()]
        while True:
            try:
                socket.send_fds(self._control, [TOKEN.pack(token)], fds)
                return
            except OSError as error:
                # It is behind with its forks, or too many descriptors are on their way to it.
                if error.errno not in (errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS):
                    raise
            await asyncio.sleep(_FULL)

    async def _kill(self, token: int, ended: asyncio.Future[int]) -> None:
        """Kill a child, and see it dead: its task may start elsewhere the moment this attempt is settled."""
        with suppress(OSError, TimeoutError):
            await self._ask(-token)
            await asyncio.wait_for(asyncio.shield(ended), _DEATH_PATIENCE)


async def _hold(sock: socket.socket, claim: Claim, context: Context) -> Outcome | None:
    """The conversation with one child; None if it ended without an outcome."""
    sock.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=sock)
    try:
        writer.write(frame(claim))
        await writer.drain()
        while True:
            (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
            match MESSAGES.decode(await reader.readexactly(length)):
                case Said(line):
                    context.log.keep(line)
                case Progressed(progress):
                    context.tell_progress(progress)
                case Ended(outcome):
                    return outcome
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    finally:
        writer.close()


def _verdict(claim: Claim, status: int) -> Outcome:
    if status == NOT_STARTED:
        return _not_started("the machine has no room for it")
    if status == NURSERY_LOST:
        # Not a crash of its own: neighbours in the nursery must not be taken for poison.
        text = "its process was killed as the process that had forked it ended"
        return Failed(text, fingerprint=f"nursery:{claim.type}")
    how = process.ending(os.waitstatus_to_exitcode(status))
    return Crashed(how, fingerprint=f"crash:{claim.type}:{how}")


def _not_started(why: str) -> Failed:
    return Failed(f"no process could be started for it: {why}", fingerprint="no process")


def control_pair() -> tuple[socket.socket, socket.socket]:
    """Ours, which never blocks, and the nursery's end of the socket that both speak through."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    return ours, theirs


def _await_end(pid: int) -> None:
    """Collect a process that is about to end; kill it if it does not."""
    deadline = time.monotonic() + 1.0
    with suppress(ChildProcessError):
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return
            time.sleep(0.002)
