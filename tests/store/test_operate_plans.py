"""What operators look at and do in bulk reads no whole table: on 101,000 tasks.

The real methods are driven through an executor that explains each statement before it runs.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest
import pytest_asyncio
from msgspec import structs

from dhara.domain.lifecycle import State
from dhara.store.failures import Failures
from dhara.store.operations import Operations
from dhara.store.pool import PLANNER
from dhara.store.queues import Queues
from dhara.store.schedules import Schedules
from dhara.store.search import FACETED, WALK, WALK_TEXT, Filter, Search
from dhara.store.stats import Stats
from dhara.store.tasks import Tasks
from dhara.store.workers import Workers
from tests.conftest import Databases

pytestmark = pytest.mark.asyncio(loop_scope="module")

PENDING, RUNNING, DEAD, ALL = 30_000, 100, 30_000, 101_000
# As they would stand after months, put there at once: no trigger, and history of the latest only.
FILL = f"""
SET session_replication_role = replica;
INSERT INTO dhara.tasks (id, type, queue, status, priority, fingerprint, last_error, reason, attempts, lease, locked_by, run_at,
                         started_at, completed_at)
SELECT dhara.new_id(), 't' || n % 20, 'q' || n % 5,
       CASE WHEN n <= {DEAD} THEN 'DEAD' WHEN n <= {ALL - PENDING - RUNNING} THEN 'COMPLETED'
            WHEN n <= {ALL - PENDING} THEN 'RUNNING' ELSE 'PENDING' END,
       n % 3, CASE WHEN n <= {DEAD} THEN 'f' || n % 40 END, CASE WHEN n <= {DEAD} THEN 'boom ' || n END,
       CASE WHEN n <= {DEAD} THEN 'exhausted' END, (n <= {ALL - PENDING})::integer, gen_random_uuid(),
       CASE WHEN n > {ALL - PENDING - RUNNING} AND n <= {ALL - PENDING} THEN '{UUID(int=1)}'::uuid END,
       now(), now(), CASE WHEN n <= {ALL - PENDING - RUNNING} THEN now() - n * interval '1 second' END
FROM generate_series(1, {ALL}) AS n;
INSERT INTO dhara.task_history (task_id, generation, attempt, event)
SELECT id, 1, 1, 'CLAIMED' FROM dhara.tasks WHERE status = 'RUNNING';
SET session_replication_role = DEFAULT;
INSERT INTO dhara.workers (id, pid, slots, host, version, types, queues)
VALUES ('{UUID(int=1)}', 1, 100, 'h', '1', '{{t1}}', '{{"*": 100}}');
"""


class Explaining:
    """An executor that keeps the plan of whatever it executes."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.plans: list[dict[str, Any]] = []
        # Those of walks from the newest task on, before the table's first ANALYZE.
        self.early: list[dict[str, Any]] = []

    async def _explain(self, query: str, args: Any) -> None:
        transaction = self.connection.transaction()
        await transaction.start()
        found = await self.connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}", *args)
        await transaction.rollback()
        self.plans.append(json.loads(found)[0]["Plan"])

    async def fetch(self, query: str, *args: Any) -> Any:
        await self._explain(query, args)
        return await self.connection.fetch(query, *args)

    async def fetchrow(self, query: str, *args: Any) -> Any:
        await self._explain(query, args)
        return await self.connection.fetchrow(query, *args)

    async def fetchval(self, query: str, *args: Any) -> Any:
        await self._explain(query, args)
        return await self.connection.fetchval(query, *args)

    async def execute(self, query: str, *args: Any) -> Any:
        await self._explain(query, args)
        return await self.connection.execute(query, *args)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def explaining(databases: Databases, template: str) -> AsyncIterator[Explaining]:
    name = databases.create(template)
    connection: Any = await asyncpg.connect(databases.dsn(name), server_settings=PLANNER)
    for table in ("tasks", "task_history"):
        await connection.execute(f"ALTER TABLE dhara.{table} SET (autovacuum_enabled = off)")
    await connection.execute(FILL)
    found = Explaining(connection)
    for wanted in (Filter(type="t3"), Filter(tag="x"), Filter(q="boom 77", in_payload=True)):
        await Search(found).facets(wanted)
    found.early, found.plans = found.plans, []
    await connection.execute("VACUUM ANALYZE dhara.tasks, dhara.task_history")
    yield found
    await connection.close()
    databases.drop(name)


async def _some(db: Any, status: str) -> UUID:
    id: UUID = await db.connection.fetchval("SELECT id FROM dhara.tasks WHERE status = $1 LIMIT 1", status)
    return id


async def _bulk(db: Any, kind: str, wanted: Filter) -> None:
    """As a step of a bulk operation: pick a batch, change it."""
    ids = await Search(db).walk(wanted, UUID(int=0), 500)
    assert len(ids) == 500
    await getattr(Operations(db), kind)(ids, "by a test")


def _state(*states: State, **fields: Any) -> Filter:
    return Filter(status=states, **fields)


FEW_ROWS = 2_000
# What is done -> by what, and how many rows of `tasks` it may touch in all its statements.
CASES: dict[str, tuple[Callable[[Any], Awaitable[Any]], int]] = {
    "failure groups": (lambda db: Failures(db).groups(cap=100), 40 * 400),
    "one failure group": (lambda db: Failures(db).group("f3", cap=100), 400),
    "failure groups of some queues": (lambda db: Failures(db).groups(cap=100, queues=["q1"]), 40 * 400),
    "what became of a bulk operation": (lambda db: _changed(db), 4_000),
    "first page": (lambda db: Search(db).page(Filter()), 12_000),
    "first page of DEAD": (lambda db: Search(db).page(_state(State.DEAD)), 50_000),
    "first page of a group": (lambda db: Search(db).page(_state(State.DEAD, fingerprint="f3")), 4_000),
    "first page of COMPLETED": (lambda db: Search(db).page(_state(State.COMPLETED)), 6 * WALK),
    "first page of a type": (lambda db: Search(db).page(Filter(type="t3")), 4 * WALK),
    "search": (lambda db: Search(db).page(Filter(q="boom 77")), 10 * WALK + 4 * WALK_TEXT),
    "search in payloads": (
        lambda db: Search(db).page(Filter(q="boom 77", in_payload=True, veiled=('"number"',))),
        10 * WALK + 4 * WALK_TEXT,
    ),
    "facets": (lambda db: Search(db).facets(Filter()), FACETED),
    "facets of RUNNING": (lambda db: Search(db).facets(_state(State.RUNNING)), 2 * RUNNING),
    "facets of COMPLETED": (lambda db: Search(db).facets(_state(State.COMPLETED)), FACETED + 1),
    "explain a PENDING task": (lambda db: _facts(db, "PENDING"), 12_000),
    "explain a DEAD task": (lambda db: _facts(db, "DEAD"), FEW_ROWS),
    "bulk retry of a group": (lambda db: _bulk(db, "retry", _state(State.DEAD, fingerprint="f3")), 32_000),
    "bulk purge of a type": (lambda db: _bulk(db, "purge", _state(State.DEAD, type="t4")), 32_000),
    "bulk cancel": (lambda db: Search(db).some(_state(State.PENDING, queue="q1"), 500), 4_000),
    "troubled schedules": (lambda db: Schedules(db).troubled(), 10),
    "queues": (lambda db: Queues(db).list(), 40_000),
    "unroutable": (lambda db: Stats(db).unroutable(), 40_000),
    "what a worker runs": (lambda db: Workers(db).running([UUID(int=1)]), 2 * RUNNING),
}


async def _changed(db: Any) -> None:
    """One of two days ago."""
    operation = await Operations(db.connection).create("retry", Filter(), "ann", total=0, is_estimate=False)
    moment = operation.created_at - timedelta(days=2)
    operation = structs.replace(operation, created_at=moment, finished_at=moment + timedelta(minutes=5))
    await Operations(db).tasks(operation)


async def _facts(db: Any, status: str) -> None:
    await Tasks(db).facts(await _some(db, status))


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def touched(node: dict[str, Any]) -> float:
    dropped = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    return float((node["Actual Rows"] + dropped) * node["Actual Loops"])


async def test_the_newest_tasks_are_walked_by_the_index_before_the_first_analyze(explaining: Explaining) -> None:
    kinds = {
        node["Node Type"] for plan in explaining.early for node in nodes(plan) if node.get("Relation Name") == "tasks"
    }
    assert kinds <= {"Index Scan", "Index Only Scan"}, kinds


async def test_no_whole_table_is_read(explaining: Explaining) -> None:
    """One test, so that the table is filled once."""
    wrong = {}
    for name, (work, most) in CASES.items():
        explaining.plans.clear()
        await work(explaining)
        assert explaining.plans, name
        scans = [
            (node["Node Type"], node.get("Index Name"), touched(node))
            for plan in explaining.plans
            for node in nodes(plan)
            if node.get("Relation Name") in ("tasks", "task_history") and "Scan" in node["Node Type"]
        ]
        if sum(rows for _, _, rows in scans) > most or any(kind == "Seq Scan" for kind, _, _ in scans):
            wrong[name] = scans
    assert not wrong
