"""What can be done to an arena: one function a row of the fault matrix (`trust.md` 2.2), each from hurt to healed."""

from __future__ import annotations

from chaos.faults import (  # noqa: F401  they register their rows
    clocks,
    database,
    http,
    limits,
    network,
    processes,
    standby,
    storms,
    strain,
    upgrade,
)
from chaos.faults.row import FAULTS, Fault

__all__ = ["FAULTS", "Fault"]
