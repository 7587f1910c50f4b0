"""What the end-to-end tests of the engine share: workers with the engine's handlers, and the marks these leave."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path
from uuid import UUID

from msgspec import Struct

from tests.e2e.fleet import Crew, _descendants, crew

ROOT = Path(__file__).parents[2]


def engine(
    dsn: str, *, slots: int = 20, processes: int = 1, marks: Path | None = None, **environ: str
) -> AbstractContextManager[Crew]:
    """A `dhara worker` with tests/worker/engine_handlers.py."""
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]))
    values = {"PYTHONPATH": path, "MARKS": str(marks or ""), **environ}
    return crew(dsn, slots, processes, "tests.worker.engine_handlers", **values)


class Mark(Struct, frozen=True):
    """When, on the clock that all processes share; which attempt; which process."""

    at: float
    attempt: int
    pid: int


def marks(folder: Path, what: str, id: UUID) -> list[Mark]:
    """What the attempts of a task have left behind, in order."""
    file = folder / f"{what}-{id}"
    if not file.exists():
        return []
    return [Mark(float(a), int(b), int(c)) for a, b, c in map(str.split, file.read_text().splitlines())]


def below(pid: int) -> list[int]:
    """All processes that descend from `pid`."""
    return _descendants(pid)
