"""What maintenance needs to know. Times are seconds; the names are those of `trust.md` 1.1."""

from __future__ import annotations

from msgspec import Struct

from dhara.settings import Settings


class MaintenanceSettings(Struct, frozen=True, kw_only=True):
    """L, R, C, retention and the backoff of reaped tasks."""

    schema: str = "dhara"
    stale_after: float = 30.0
    reaper_interval: float = 5.0
    confirm_after: float = 10.0
    base_backoff: float = 1.0
    max_backoff: float = 3600.0
    retention: float = 7 * 86_400.0
    dead_retention: float = 30 * 86_400.0
    history_retention: float = 30 * 86_400.0

    @classmethod
    def of(cls, settings: Settings) -> MaintenanceSettings:
        """From the process's settings."""
        return cls(**{name: getattr(settings, name) for name in cls.__struct_fields__})
