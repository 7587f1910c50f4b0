"""The table of faults."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chaos.arena import Arena

Inject = Callable[["Arena", random.Random], Awaitable[dict[str, Any] | None]]
Afterwards = Callable[["Arena", Sequence[tuple[float, float]]], Awaitable[dict[str, Any]]]


@dataclass(frozen=True)
class Fault:
    """A row: what the ledger counts it as, how often it comes (seconds), what kind of arena it needs.

    `needs`: `proxy` (every connection through our proxy), `packets` (root and iptables), `faketime`, `tmpfs`, `standby`,
    `pooler`, `server` (`dhara server`), `notify` (a small queue of notifications), `older` (workers of the release before),
    `fires` (schedules that fire each second). `skips`: statements of the audit that cannot hold under it. `lasting`:
    recovery is measured from its end. `most`: seconds it may take; a fault that has another bar answers what was `measured`
    and whether it is `met`, or `afterwards` does, by the whole run's log, given when each injection began and ended (wall
    time); it may have nothing to say. `bar`: in words, for the report.
    """

    row: str
    kind: str
    about: str
    every: float
    inject: Inject
    needs: frozenset[str] = frozenset()
    skips: frozenset[str] = frozenset()
    lasting: bool = False
    bar: str = ""
    most: float | None = None
    afterwards: Afterwards | None = None


FAULTS: dict[str, Fault] = {}


def fault(
    row: str,
    kind: str,
    about: str,
    *,
    every: float,
    needs: str = "",
    skips: str = "",
    lasting: bool = False,
    bar: str = "",
    most: float | None = None,
    afterwards: Afterwards | None = None,
) -> Callable[[Inject], Inject]:
    """Register a row."""

    def register(inject: Inject) -> Inject:
        assert row not in FAULTS
        words = bar or (f"90 % of the calm rate after {most:g} s" if most is not None else "")
        FAULTS[row] = Fault(
            row,
            kind,
            about,
            every,
            inject,
            frozenset(needs.split()),
            frozenset(skips.split()),
            lasting,
            words,
            most,
            afterwards,
        )
        return inject

    return register
