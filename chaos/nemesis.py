"""Carries out a plan and keeps the record of it."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TextIO

from chaos.arena import Arena
from chaos.faults import FAULTS
from chaos.plan import Step

COUNTED = ("backend kill", "TCP cut", "SIGSTOP/CONT")


@dataclass
class Injection:
    """What was done, from when to when (wall clock, seconds), and how it went."""

    row: str
    kind: str
    start: float
    end: float = 0.0
    count: int = 1
    error: str = ""
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def hurt(self) -> float:
        """Since when it may recover."""
        return self.end if FAULTS[self.row].lasting else self.start


async def disturb(arena: Arena, steps: Sequence[Step], log: TextIO) -> list[Injection]:
    """Every step, at its time or as soon as the one before has healed."""
    began = time.monotonic()
    done: list[Injection] = []
    for step in steps:
        await asyncio.sleep(max(0.0, began + step.at - time.monotonic()))
        found = FAULTS[step.row]
        injection = Injection(step.row, found.kind, time.time())
        try:
            injection.told = await found.inject(arena, random.Random(step.seed)) or {}
            # A terminated session or a stopped runner is one fault; what is told in other numbers is one act.
            injection.count = injection.told.get("count", 1) if found.kind in COUNTED else 1
            if injection.told.get("count") == 0:
                injection.count = 0
        except Exception as error:
            injection.error, injection.count = f"{type(error).__name__}: {error}"[:300], 0
        injection.end = time.time()
        done.append(injection)
        log.write(json.dumps(asdict(injection)) + "\n")
        log.flush()
    return done
