"""The composition root: builds the parts, starts them in order, stops them in reverse."""

from __future__ import annotations

from typing import Any

from dhara.settings import Settings
from dhara.store.pool import DatabaseSettings


def database_of(settings: Settings, **changes: Any) -> DatabaseSettings:
    """What the store needs of the settings."""
    values = {
        "dsn": settings.database_url,
        "schema": settings.schema,
        "pool_min": settings.pool_min,
        "pool_max": settings.pool_max,
        "connect_timeout": settings.connect_timeout,
        "command_timeout": settings.command_timeout,
        "prepared": not settings.pooler,
    }
    values |= changes
    values["pool_min"] = min(values["pool_min"], values["pool_max"])
    return DatabaseSettings(**values)
