"""`Worker`: a worker as users start it, from their own code."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import subprocess
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Self

from dhara import settings as settings_module
from dhara.domain.ids import IdSource
from dhara.errors import ConfigError
from dhara.service import Every
from dhara.store import migrate
from dhara.store.pool import DatabaseSettings, connect
from dhara.worker import board as boards
from dhara.worker import spawned
from dhara.worker.nursery import Nursery
from dhara.worker.registry import Registry
from dhara.worker.runner import Runner, RunnerSettings
from dhara.worker.supervisor import WorkerSpec, dismiss, hang_up, start_keeper, supervise

log = logging.getLogger(__name__)

_KEEPER_WATCH = 0.5


class Worker:
    """Runs a registry's handlers for the tasks of a database.

    `Worker(dsn, tasks, queues={"mail": 20}).run()` blocks, forks its processes and handles signals; call it from the
    main thread, before starting threads. `async with Worker(...)` runs the handlers on the caller's own loop; its
    keeper is a process all the same. `queues`: name -> slots; None: all queues. Further keyword arguments are settings
    by their names, such as `stale_after=30` (seconds).

    With handlers of `executor="process"`, `async with` starts one more process, which imports their module and forks one
    child an attempt. So the registry must be a global of a module that can be imported, and a script must guard what it
    runs by `if __name__ == "__main__":`; else `ConfigError`. Without such handlers a task that was running when a process
    crashed runs in this process, while nothing else does.
    """

    def __init__(
        self,
        dsn: str,
        registry: Registry,
        *,
        queues: Mapping[str, int] | None = None,
        concurrency: int | None = None,
        processes: int | None = None,
        **settings: Any,
    ) -> None:
        self.settings = settings_module.load({"database_url": dsn, **settings})
        self._registry = registry
        self._queues = dict(queues) if queues else None
        default = sum(queues.values()) if queues else self.settings.worker_count
        self._concurrency = concurrency or default
        self._processes = processes or self.settings.processes
        self._runner: Runner | None = None
        self._heeding: asyncio.Task[None] | None = None
        self._keeper: subprocess.Popen[bytes] | None = None
        self._keeping = threading.Lock()
        self._ended = False
        self._fd = -1
        self._watch = Every(_KEEPER_WATCH, self._watch_keeper, "watching the keeper")
        if not len(registry):
            raise ConfigError("the registry has no handlers; register some with @tasks.task(...)")

    def run(self) -> int:
        """Run until SIGTERM or SIGINT; answers the exit code (0: drained)."""
        spawned.refuse_recursion()
        return supervise(
            WorkerSpec(
                settings=self.settings,
                registry=self._registry,
                queues=self._queues,
                concurrency=self._concurrency,
                processes=self._processes,
            )
        )

    @property
    def runner(self) -> Runner:
        """The runner of an `async with` worker."""
        if self._runner is None:
            raise RuntimeError("the worker is not running; use `async with Worker(...)`")
        return self._runner

    async def __aenter__(self) -> Self:
        spawned.refuse_recursion()
        settings = RunnerSettings.of(self.settings, self._queues, self._concurrency)
        connection = await connect(settings.database, "dhara worker start")
        try:
            await migrate.check(connection, settings.database.schema)
        finally:
            await connection.close()
        self._ended = False
        self._fd = boards.share(1, self._concurrency)
        (board,) = boards.attach(self._fd, 1, self._concurrency)
        nursery = self._nursery(settings.database)
        runner = Runner(self._registry, settings, worker=IdSource().new(), board=board, nursery=nursery)
        await self._watch.start()
        try:
            await runner.start()
        except BaseException:
            if nursery is not None:
                nursery.close()
            await self._end()
            raise
        self._runner = runner
        self._heeding = asyncio.create_task(self._heed(runner))
        return self

    async def _heed(self, runner: Runner) -> None:
        """An operator's wish: drain without hurry, then run nothing, until the application leaves."""
        await runner.unwanted.wait()
        await runner.drain(math.inf)

    def _nursery(self, database: DatabaseSettings) -> Nursery | None:
        if all(handler.options.executor != "process" for handler in self._registry.handlers):
            return None
        return Nursery.spawn(spawned.beginner(self._registry, database, self.settings.log_level))

    async def __aexit__(self, *exc: object) -> None:
        await self.drain()

    async def drain(self, grace: float | None = None) -> None:
        """Claim nothing more, finish what runs within `grace` seconds, release the rest, stop."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        if self._heeding is not None:
            self._heeding.cancel()
        try:
            await runner.drain(grace)
        finally:
            try:
                await runner.stop()
            finally:
                await self._end()

    async def _end(self) -> None:
        await self._watch.stop()
        await asyncio.to_thread(self._stop_keeper)

    async def _watch_keeper(self) -> None:
        """Start the keeper, and another one when it has died."""
        if self._keeper is not None and self._keeper.poll() is None:
            return
        if self._keeper is not None:
            log.error("the keeper ended; starting another")
            hang_up(self._keeper)
        await asyncio.to_thread(self._start_keeper)

    def _start_keeper(self) -> None:
        with self._keeping:
            if not self._ended:  # its caller may have been cancelled meanwhile
                self._keeper = start_keeper(self.settings, self._fd, 1, self._concurrency)

    def _stop_keeper(self) -> None:
        with self._keeping:
            self._ended = True
        if self._keeper is not None:
            dismiss(self._keeper)
            self._keeper = None
        with suppress(OSError):
            os.close(self._fd)
