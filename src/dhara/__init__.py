"""dhara: a distributed task queue on PostgreSQL.

Names are loaded when they are first used, so that the command line starts quickly.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dhara.client import AsyncClient, Client, Handle, SyncHandle
    from dhara.domain.backoff import RetryPolicy
    from dhara.domain.lifecycle import State
    from dhara.domain.outcome import Cancel, DeadLetter, Retry, Snooze
    from dhara.domain.task import Call, Task
    from dhara.errors import (
        ConfigError,
        DharaError,
        IdempotencyConflict,
        InvalidBatch,
        InvalidTask,
        LeaseLost,
        NotFound,
        QueueFull,
        RegistryError,
        SchemaError,
        TaskFailed,
        Unavailable,
        WrongState,
    )
    from dhara.worker.context import Context
    from dhara.worker.registry import Registry
    from dhara.worker.worker import Worker

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "Call",
    "Cancel",
    "Client",
    "ConfigError",
    "Context",
    "DeadLetter",
    "DharaError",
    "Handle",
    "IdempotencyConflict",
    "InvalidBatch",
    "InvalidTask",
    "LeaseLost",
    "NotFound",
    "QueueFull",
    "Registry",
    "RegistryError",
    "Retry",
    "RetryPolicy",
    "SchemaError",
    "Snooze",
    "State",
    "SyncHandle",
    "Task",
    "TaskFailed",
    "Unavailable",
    "Worker",
    "WrongState",
]

_HOMES = {
    "dhara.client": ("AsyncClient", "Client", "Handle", "SyncHandle"),
    "dhara.domain.backoff": ("RetryPolicy",),
    "dhara.domain.lifecycle": ("State",),
    "dhara.domain.outcome": ("Cancel", "DeadLetter", "Retry", "Snooze"),
    "dhara.domain.task": ("Call", "Task"),
    "dhara.errors": (
        "ConfigError",
        "DharaError",
        "IdempotencyConflict",
        "InvalidBatch",
        "InvalidTask",
        "LeaseLost",
        "NotFound",
        "QueueFull",
        "RegistryError",
        "SchemaError",
        "TaskFailed",
        "Unavailable",
        "WrongState",
    ),
    "dhara.worker.context": ("Context",),
    "dhara.worker.registry": ("Registry",),
    "dhara.worker.worker": ("Worker",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dhara' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
