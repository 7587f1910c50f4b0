"""The nursery as a program of its own, for `async with Worker`.

The user's process may have threads and a running loop, so it cannot be forked; the nursery starts afresh and imports the
handlers. For that the registry must be a global of a module, and a script must guard what it runs by
`if __name__ == "__main__"`, as for multiprocessing. What is to be imported, and how the database is reached, comes
through the control socket, so that no secret is on a command line.
"""

from __future__ import annotations

import importlib
import os
import runpy
import socket
import sys
from collections.abc import Callable

import msgspec
from msgspec import Struct

from dhara.errors import ConfigError
from dhara.store.pool import DatabaseSettings
from dhara.telemetry import log as logs
from dhara.worker import isolated
from dhara.worker.children import Home
from dhara.worker.nursery import Begun, control_pair
from dhara.worker.registry import Registry

_MOST = 64 * 1024
_COMMAND = "from dhara.worker.spawned import main; main()"
_SCRIPT = "__mp_main__"  # the name that multiprocessing gives to an imported script, too

# True in the nursery while it imports the user's module: a worker that starts there lacks the guard.
importing = False


class Place(Struct, frozen=True):
    """Where a registry is found: a module by name, or a script by its file, and the registry's name in it."""

    module: str
    file: str | None
    name: str


class _Order(Struct, frozen=True):
    place: Place
    path: list[str]
    arguments: list[str]
    database: DatabaseSettings
    log_level: str


def place_of(registry: Registry) -> Place:
    """Where another process can import `registry`. Raises `ConfigError` if it is no module's global."""
    names = dict.fromkeys(handler.function.__module__ for handler in registry.handlers)
    for module in [*names, *sys.modules]:
        for name, value in list(vars(sys.modules.get(module) or object).items()):
            if value is registry:
                return _place(module, name)
    raise ConfigError(
        'executor="process" inside `async with Worker` needs a registry that another process can import: make it a'
        " global of a module, or use Worker(...).run() or `dhara worker`"
    )


def _place(module: str, name: str) -> Place:
    if module != "__main__":
        return Place(module, None, name)
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return Place(spec.name, None, name)
    if file := getattr(main, "__file__", None):
        return Place(module, os.path.abspath(file), name)
    raise ConfigError('executor="process" inside `async with Worker` needs handlers from a module or a script file')


def beginner(registry: Registry, database: DatabaseSettings, log_level: str) -> Callable[[], Begun]:
    """What starts such a nursery. Raises `ConfigError` if the registry cannot be imported elsewhere."""
    order = msgspec.json.encode(_Order(place_of(registry), sys.path, sys.argv, database, log_level))

    def begin() -> Begun:
        ours, theirs = control_pair()
        with theirs:
            theirs.set_inheritable(True)
            path = os.pathsep.join(entry for entry in sys.path if entry)
            command = [sys.executable, "-c", _COMMAND, str(theirs.fileno()), str(os.getpid())]
            pid = os.posix_spawn(sys.executable, command, os.environ | {"PYTHONPATH": path}, setpgroup=0)
        ours.send(order)
        return pid, ours

    return begin


def refuse_recursion() -> None:
    """Raises `ConfigError` in the nursery itself, while it imports the user's module."""
    if importing:
        raise ConfigError(
            'a worker starts as its module is imported; put what runs it below `if __name__ == "__main__":`, because'
            ' handlers with executor="process" import the module in another process'
        )


def _find(place: Place) -> Registry:
    if place.file is not None:
        found = runpy.run_path(place.file, run_name=_SCRIPT)[place.name]
    else:
        found = getattr(importlib.import_module(place.module), place.name)
    assert isinstance(found, Registry)
    return found


def main() -> None:
    """The process, until the one that started it is gone."""
    global importing
    control, parent = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    order = msgspec.json.decode(control.recv(_MOST), type=_Order)
    sys.path[:], sys.argv[:] = order.path, order.arguments
    logs.configure(order.log_level, "text")
    importing = True
    try:
        registry = _find(order.place)
    except ConfigError as error:
        sys.exit(f"dhara: {error}")
    importing = False
    Home(control, isolated.body(registry, order.database)).serve(parent)
