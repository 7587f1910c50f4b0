"""Sets the stage: the modules of workers and maintenance with the world of a seed around them, instead of the real one."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import dhara.maintenance as maintenance
from dhara.maintenance.reaper import Reaper
from dhara.store.pool import DatabaseSettings
from dhara.worker import keeper as keepers
from dhara.worker import process
from dhara.worker import runner as runners
from dhara.worker.claimer import Claimer
from tests.sim.loop import PROCESS, Loop
from tests.sim.network import Remote
from tests.sim.world import Story, World

_now: World | None = None


def _world() -> World:
    assert _now is not None
    return _now


class _Pool:
    """Nothing goes through it: the store's parts are remote."""

    def __init__(self, settings: DatabaseSettings, *more: Any) -> None:
        self.settings = settings

    async def open(self) -> None:
        await _world().network.ask(lambda: None)

    async def close(self) -> None:
        pass


class _Listener:
    """Wake-ups, where they arrive."""

    def __init__(self, settings: Any, on_wake: Callable[[str], None], *more: Any) -> None:
        self._on_wake = on_wake

    async def start(self) -> None:
        _world().listeners[PROCESS.get()] = self._on_wake

    async def stop(self) -> None:
        _world().listeners.pop(PROCESS.get(), None)

    def rest(self, asleep: bool) -> None:
        pass


class _Watchdog:
    def __init__(self, *more: Any) -> None:
        pass

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass


class _Chore:
    """Bulk operations and schedules have their own tests: `tests/maintenance/`, F49."""

    def __init__(self, *more: Any) -> None:
        pass


def _tasks(*more: Any) -> Any:
    return Remote(_world().network, _world().db.tasks)


def _workers(*more: Any) -> Any:
    return Remote(_world().network, _world().db.workers)


def _rest(*more: Any) -> Any:
    return Remote(_world().network, _world().db.stats)


@contextmanager
def staged() -> Iterator[None]:
    """The modules of workers and maintenance, with the world around them instead of the real one."""
    store: dict[str, Any] = {"Tasks": _tasks, "Workers": _workers}
    clock = lambda: _world().loop.now  # noqa: E731
    with ExitStack() as stack:
        enter = stack.enter_context
        enter(mock.patch.multiple(
            runners, Pool=_Pool, Listener=_Listener, Watchdog=_Watchdog, Stats=_rest, Schedules=_rest, **store
        ))  # fmt: skip
        enter(mock.patch.multiple(keepers, Pool=_Pool, **store))
        enter(mock.patch.multiple(
            maintenance, Stats=_rest, Queues=_rest, Schedules=_rest, Bulk=_Chore, Scheduler=_Chore, Pruner=mock.MagicMock(),
            **store,
        ))  # fmt: skip
        enter(mock.patch.object(process, "runs", lambda pid: _world().runs(pid)))
        enter(mock.patch.object(os, "kill", lambda pid, number: _world().kill(pid, number)))
        enter(mock.patch.object(os, "getpid", PROCESS.get))
        enter(mock.patch.object(time, "monotonic", clock))
        enter(mock.patch.dict(Claimer.__init__.__kwdefaults__, clock=clock))
        enter(mock.patch.object(Reaper.__init__, "__defaults__", (clock,)))
        level = logging.getLogger("dhara").level
        logging.getLogger("dhara").setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            logging.getLogger("dhara").setLevel(level)


def play(seed: int) -> Story:
    """One seed, in a world of its own. Call it within `staged()`."""
    global _now
    loop = Loop()
    _now = world = World(seed, loop)
    asyncio.set_event_loop(None)
    try:
        return loop.run_until_complete(world.play())
    finally:
        loop.run_until_complete(world.curtain())
        loop.close()
        _now = None
