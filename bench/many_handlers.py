"""A thousand task types."""

from __future__ import annotations

from dhara import Registry

TYPES, QUEUES = 1_000, 100
tasks = Registry()


async def nothing(**payload: object) -> None:
    """Do nothing."""


for n in range(TYPES):
    tasks.task(f"bench.type{n}")(nothing)
