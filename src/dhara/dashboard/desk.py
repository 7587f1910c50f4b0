"""The collaborators that pages work with: the same store methods as the API's, built once."""

from __future__ import annotations

from msgspec import Struct

from dhara.dashboard.pulse import Pulse
from dhara.domain.masking import Mask
from dhara.maintenance.bulk import Bulk, Wakes
from dhara.maintenance.scheduler import Scheduler
from dhara.settings import Settings
from dhara.store.audit import Audit
from dhara.store.failures import Failures
from dhara.store.keys import Keys
from dhara.store.operations import Operations
from dhara.store.pool import Pool
from dhara.store.queues import Queues
from dhara.store.schedules import Schedules
from dhara.store.search import Search
from dhara.store.tasks import Tasks
from dhara.store.workers import Workers

NO_MASK = Mask(())


class Desk(Struct, frozen=True, kw_only=True):
    """What pages read from and act through."""

    pool: Pool
    tasks: Tasks
    queues: Queues
    workers: Workers
    search: Search
    pulse: Pulse
    audit: Audit
    failures: Failures
    operations: Operations
    schedules: Schedules
    bulk: Bulk
    scheduler: Scheduler
    notifier: Wakes | None
    stale_after: float
    mask: Mask
    trace_url: str
    wait_objective: float
    keys: Keys


def desk_on(
    pool: Pool,
    notifier: Wakes | None,
    stale_after: float = 30.0,
    mask: Mask = NO_MASK,
    trace_url: str = "",
    wait_objective: float = Settings().wait_objective,
) -> Desk:
    """A desk on a pool, which may be opened later. `stale_after`: seconds without a beat that make a worker lost;
    `mask`: fields that nobody sees; `trace_url`: where traces are shown, with `{trace_id}`;
    `wait_objective`: seconds that a ready task may wait, where its queue says nothing else."""
    schema = pool.settings.schema
    return Desk(
        pool=pool,
        tasks=Tasks(pool, schema),
        queues=Queues(pool, schema),
        workers=Workers(pool, schema),
        search=Search(pool, schema),
        pulse=Pulse(pool, schema),
        audit=Audit(pool, schema),
        failures=Failures(pool, schema),
        operations=Operations(pool, schema),
        schedules=Schedules(pool, schema),
        bulk=Bulk(pool, schema, notifier),
        scheduler=Scheduler(pool, schema, notifier),
        notifier=notifier,
        stale_after=stale_after,
        mask=mask,
        trace_url=trace_url,
        wait_objective=wait_objective,
        keys=Keys(pool, schema),
    )
