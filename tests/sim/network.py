"""What lies between a process and its database: each request and each reply may be late, lost or come twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from tests.sim.loop import PROCESS

if TYPE_CHECKING:
    from tests.sim.loop import Loop

# A connection whose packets are dropped is given up after so many seconds.
COMMAND_TIMEOUT = 3.0


class Network:
    """Between all processes and one database. Its own callbacks belong to no process, so whatever is on its way stays so."""

    def __init__(self, loop: Loop, rng: random.Random, trouble: float) -> None:
        self._loop = loop
        self._rng = rng
        self.trouble = trouble  # the chance that a request, or a reply, is lost; a tenth of it: that it comes twice
        self.away = False  # the database is
        self.cut: set[int] = set()  # processes whose packets are dropped
        self._context = copy_context()
        self._context.run(PROCESS.set, 0)

    def later(self, seconds: float, call: Callable[..., object], *args: Any) -> None:
        """Whatever becomes of who asked for it."""
        self._loop.call_later(seconds, call, *args, context=self._context)

    async def ask(self, statement: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Send a statement; answers what it answers, or raises what a driver would, also after it was carried out."""
        process, answer = PROCESS.get(), self._loop.create_future()
        self.later(self._delay(), self._arrive, process, answer, lambda: statement(*args, **options))
        return await answer

    def _delay(self) -> float:
        # Mostly quick, sometimes slow: so that what was sent later may come first.
        return self._rng.random() * (0.5 if self._rng.random() < 0.05 else 0.01)

    def _fails(self, part: float = 1.0) -> bool:
        return self._rng.random() < self.trouble * part

    def _arrive(self, process: int, answer: asyncio.Future[Any], statement: Callable[[], Any]) -> None:
        if process in self.cut:
            self.later(COMMAND_TIMEOUT, _fail, answer, TimeoutError("no answer"))
        elif self.away or self._fails():
            self.later(self._delay(), _fail, answer, ConnectionResetError("the request was lost"))
        else:
            self._carry_out(process, answer, statement)

    def _carry_out(self, process: int, answer: asyncio.Future[Any], statement: Callable[[], Any]) -> None:
        try:
            if self._fails(0.1):
                statement()
            found = statement()
        except Exception as error:
            self.later(self._delay(), _fail, answer, error)
            return
        self.later(self._delay(), self._reply, process, answer, found)

    def _reply(self, process: int, answer: asyncio.Future[Any], found: Any) -> None:
        if process in self.cut:
            self.later(COMMAND_TIMEOUT, _fail, answer, TimeoutError("no answer"))
        elif self.away or self._fails():
            _fail(answer, ConnectionResetError("the reply was lost"))
        elif not answer.done():
            answer.set_result(found)


def _fail(answer: asyncio.Future[Any], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)


class Remote:
    """A part of the store as a process sees it: every method is a statement that travels."""

    def __init__(self, network: Network, part: object) -> None:
        self._network = network
        self._part = part

    def __getattr__(self, name: str) -> Callable[..., Any]:
        statement = getattr(self._part, name)
        return lambda *args, **options: self._network.ask(statement, *args, **options)
