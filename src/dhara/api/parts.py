"""The collaborators that endpoints work with, built once by `asgi.create_app`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from dhara.api.auth import Auth
from dhara.api.backpressure import Backpressure
from dhara.api.cursors import Cursors
from dhara.api.events import Feed
from dhara.api.figures import Figures
from dhara.api.health import Health
from dhara.api.ingest import Ingest, Wakes
from dhara.api.keyring import KeyRing
from dhara.api.waiters import Waiters
from dhara.domain.masking import Mask
from dhara.maintenance.bulk import Bulk
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
from dhara.store.stats import Stats
from dhara.store.tasks import Tasks
from dhara.store.workers import Workers
from dhara.telemetry.metrics import LoopLag, Traffic


class Parts(Struct, frozen=True, kw_only=True):
    """What the API is made of."""

    settings: Settings
    pool: Pool
    tasks: Tasks
    audit: Audit
    failures: Failures
    operations: Operations
    bulk: Bulk
    schedules: Schedules
    scheduler: Scheduler
    hint: Callable[[], None]
    queues: Queues
    workers: Workers
    search: Search
    stats: Stats
    notifier: Wakes | None
    keys: Keys
    ring: KeyRing
    auth: Auth
    mask: Mask
    cursors: Cursors
    figures: Figures
    feed: Feed
    health: Health
    ingest: Ingest
    pressure: Backpressure
    waiters: Waiters
    traffic: Traffic
    lag: LoopLag
    document: dict[str, Any]
