"""A runner's process, from fork to exit."""

from __future__ import annotations

import asyncio
import importlib
import logging
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, NoReturn

from dhara.domain.ids import IdSource
from dhara.errors import ConfigError, DharaError, RegistryError, SchemaError, Unavailable
from dhara.service import within
from dhara.store import migrate
from dhara.store.pool import connect
from dhara.worker import isolated, process
from dhara.worker.board import Board
from dhara.worker.nursery import Nursery
from dhara.worker.registry import Registry
from dhara.worker.runner import Runner, RunnerSettings

log = logging.getLogger(__name__)

RELEASE = signal.SIGQUIT  # from the supervisor to a runner that drains: give back what still runs, now

_LOOPS: list[asyncio.Runner] = []  # kept until the process ends, since they are never closed
EXIT_SCHEMA, EXIT_UNAVAILABLE, EXIT_CONFIG = 3, 69, 78
_EXIT_CODES: tuple[tuple[type[DharaError], int], ...] = (
    (SchemaError, EXIT_SCHEMA),
    (Unavailable, EXIT_UNAVAILABLE),
    (ConfigError, EXIT_CONFIG),
    (RegistryError, EXIT_CONFIG),
)


def run_child(
    parent: int, build: Callable[[], Registry], settings: RunnerSettings, board: Board, *, patient: bool
) -> NoReturn:
    """In the forked child: run, and leave by `os._exit`, since what the parent's exit handlers do is not ours to do.

    `patient`: wait for the database instead of ending when it is away.
    """
    code = 1
    try:
        os.setpgid(0, 0)  # the terminal's Ctrl-C is for the supervisor, which passes it on once
        process.die_with_parent(parent)
        process.share_heap()
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        code = _run(build, settings, board, patient)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(build: Callable[[], Registry], settings: RunnerSettings, board: Board, patient: bool) -> int:
    try:
        registry = build()
        nursery = Nursery.start(isolated.body(registry, settings.database))
        return loop_runner(lambda: _live(registry, settings, board, nursery, patient))
    except DharaError as error:
        sys.stderr.write(f"dhara: {error}\n")
        return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), 1)


def loop_runner(main: Callable[[], object]) -> int:
    """Run a coroutine function on uvloop where there is one.

    What is left on the loop afterwards (a handler that swallows its cancellation, a thread that never ends) is not waited
    for, as closing the loop would: the process ends with `os._exit`.
    """
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with suppress(ImportError):  # Windows has no uvloop
        from uvloop import new_event_loop

        factory = new_event_loop
    runner = asyncio.Runner(loop_factory=factory)
    _LOOPS.append(runner)
    result: int = runner.run(main())  # type: ignore[arg-type]
    return result


async def _live(registry: Registry, settings: RunnerSettings, board: Board, nursery: Nursery, patient: bool) -> int:
    runner = Runner(registry, settings, worker=IdSource().new(), board=board, nursery=nursery)
    told = asyncio.Event()
    again = asyncio.Event()
    loop = asyncio.get_running_loop()
    # Not a second SIGTERM: a service manager sends its own to all processes, beside the one that the supervisor passes on.
    loop.add_signal_handler(signal.SIGTERM, told.set)

    def hurry() -> None:
        told.set()
        again.set()

    loop.add_signal_handler(RELEASE, hurry)
    await _start(runner, settings, patient, told)
    if told.is_set():
        await runner.stop()
        return 0
    await _first(told.wait(), runner.worn.wait(), runner.unwanted.wait())
    if not told.is_set():
        # Worn out, or drained by an operator: nobody is in a hurry, so what runs may run to its end; else the longest
        # tasks would never end.
        await _first(told.wait(), runner.drain(math.inf))
    draining = asyncio.create_task(runner.drain())
    hurried = asyncio.create_task(again.wait())
    await asyncio.wait((draining, hurried), return_when=asyncio.FIRST_COMPLETED)
    if not draining.done():
        await runner.release()
        draining.cancel()
    hurried.cancel()
    await runner.stop()
    with suppress(Exception):
        await within(1, loop.shutdown_asyncgens())
    return 0


async def _first(*waits: Coroutine[Any, Any, Any]) -> None:
    """Until one of them is over."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


async def _start(runner: Runner, settings: RunnerSettings, patient: bool, told: asyncio.Event) -> None:
    while not told.is_set():
        try:
            connection = await connect(settings.database, "dhara runner start")
            try:
                await migrate.check(connection, settings.database.schema)
            finally:
                await connection.close()
            await runner.start()
            return
        except Unavailable as error:
            if not patient:
                raise
            log.warning("waiting for the database: %s", error)
            await asyncio.sleep(1)


def load_registry(module: str, name: str = "tasks") -> Registry:
    """The registry `name` of `module`. Raises `ConfigError`, one line that names what is wrong."""
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), name)
    except RegistryError as error:
        raise ConfigError(f"module {module!r}: {error}") from error
    except ModuleNotFoundError as error:
        hint = (
            "run this where it can be imported, or install it" if error.name == module else f"it needs {error.name!r}"
        )
        raise ConfigError(f"cannot import module {module!r}: {error}; {hint}") from error
    except AttributeError as error:
        raise ConfigError(f"module {module!r} has no registry {name!r}; write MODULE:REGISTRY ({error})") from error
    except (Exception, SystemExit) as error:
        raise ConfigError(f"importing module {module!r} failed: {type(error).__name__}: {error}") from error
    if not isinstance(found, Registry):
        raise ConfigError(f"{module}:{name} is no dhara Registry but {type(found).__name__}")
    if not len(found):
        raise ConfigError(f"the registry {module}:{name} has no handlers; register some with @{name}.task(...)")
    return found
