"""The collaborators that pages work with: the same store methods as the API's, built once."""

from __future__ import annotations

from typing import Protocol
from uuid import UUID

from msgspec import Struct

from dhara.dashboard.pulse import Pulse
from dhara.store.pool import Pool
from dhara.store.queues import Queues
from dhara.store.search import Search
from dhara.store.tasks import Tasks
from dhara.store.workers import Workers


class Wakes(Protocol):
    """Tells workers, after the commit, that there is something to do or to stop."""

    def wake(self, queue: str) -> None: ...
    def cancel(self, worker: UUID) -> None: ...


class Desk(Struct, frozen=True, kw_only=True):
    """What pages read from and act through."""

    pool: Pool
    tasks: Tasks
    queues: Queues
    workers: Workers
    search: Search
    pulse: Pulse
    notifier: Wakes | None


def desk_on(pool: Pool, notifier: Wakes | None) -> Desk:
    """A desk on a pool, which may be opened later."""
    schema = pool.settings.schema
    return Desk(
        pool=pool,
        tasks=Tasks(pool, schema),
        queues=Queues(pool, schema),
        workers=Workers(pool, schema),
        search=Search(pool, schema),
        pulse=Pulse(pool, schema),
        notifier=notifier,
    )
