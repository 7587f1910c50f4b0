"""A look at the database and the fleet for `dhara doctor`: facts only, `domain/doctor.py` judges them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime

from dhara.domain.doctor import Examined, Holder, TableHealth, Wait
from dhara.store import migrate
from dhara.store.pool import Executor
from dhara.store.queues import Queues
from dhara.store.schedules import Schedules
from dhara.store.sql import load
from dhara.store.stats import Stats
from dhara.store.workers import Workers


class Doctor:
    """The statements of `sql/doctor/`, and what other stores know."""

    def __init__(self, db: Executor, schema: str = "dhara") -> None:
        self.db = db
        self.schema = schema

    def _sql(self, name: str) -> str:
        return load("doctor/" + name, self.schema)

    async def look(self, own_version: str, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Examined:
        """Everything, but what needs the schema where migrations are missing. `clock` is this machine's."""
        before = clock()
        row = await self.db.fetchrow(self._sql("server"))
        after = clock()
        assert row is not None
        values = {name: value for name, value in row.items() if name != "now"}
        values["clock"] = (before + (after - before) / 2 - row["now"]).total_seconds()
        missing = (await migrate.status(self.db, self.schema)).missing
        values["missing"] = [f"{step.version:04}_{step.name}" for step in missing]
        values["own_version"] = own_version
        values["holders"] = [Holder(*found) for found in await self.db.fetch(self._sql("holders"))]
        if not missing:
            values |= await self._schema()
        return Examined(**values)

    async def _schema(self) -> dict[str, object]:
        live = [
            worker for worker in await Workers(self.db, self.schema).recent() if worker.state in ("live", "draining")
        ]
        queues = await Queues(self.db, self.schema).list()
        unroutable: Counter[str] = Counter()
        for one in await Stats(self.db, self.schema).unroutable():
            unroutable[one.type] += one.count
        schedules = await Schedules(self.db, self.schema).all()
        return {
            "tables": [TableHealth(*row) for row in await self.db.fetch(self._sql("tables"), self.schema)],
            "denied": [row[0] for row in await self.db.fetch(self._sql("denied"), self.schema)],
            "versions": dict(Counter(worker.version for worker in live)),
            "workers": len(live),
            "silent": max((worker.beat_age for worker in live), default=0.0),
            "unroutable": dict(unroutable.most_common()),
            "paused": {queue.name: queue.depth for queue in queues if queue.paused_at and queue.depth},
            "waits": [
                Wait(queue.name, queue.oldest_ready_age, queue.wait_objective)
                for queue in queues
                if queue.oldest_ready_age is not None and not queue.paused_at
            ],
            "stopped_schedules": [
                one.name for one in schedules if one.next_at is None or (one.paused_by or "").startswith("dhara: ")
            ],
        }
