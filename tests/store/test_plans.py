"""Hot statements keep their index among 60,000 rows: with fresh statistics, with those of an empty table, and with plans
that were cached when the table was new. Custom and generic plans alike.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
import pytest

from dhara.domain.ids import random_uuids
from dhara.store.pool import PLANNER, Pool
from dhara.store.search import Filter, _where
from dhara.store.sql import load, qualify

if TYPE_CHECKING:
    from tests.conftest import Databases

WORKER = UUID(int=1)
NOBODY = UUID(int=99)
ZERO = UUID(int=0)
BEGINNING = "1970-01-01T00:00:00Z"
DELAYED, READY, RUNNING, DONE, DEAD = 20_000, 5_000, 200, 32_000, 3_000

FILL = f"""
INSERT INTO dhara.tasks (id, type, queue, priority, run_at, expires_at)
SELECT dhara.new_id(), 't', 'default', CASE WHEN n <= {DELAYED} THEN 50 ELSE 0 END,
       CASE WHEN n <= {DELAYED} THEN now() + interval '1 day' ELSE now() - n * interval '1 millisecond' END,
       CASE WHEN n > {DELAYED} AND n % 5 = 0 THEN now() + interval '1 hour' END
FROM generate_series(1, {DELAYED + READY + RUNNING + DONE + DEAD}) AS n;
WITH ranked AS (SELECT id, row_number() OVER (ORDER BY id) AS n FROM dhara.tasks WHERE priority = 0)
UPDATE dhara.tasks AS t SET status = 'RUNNING', attempts = 1, lease = gen_random_uuid(), started_at = now() - interval '1 hour',
       locked_by = lpad(to_hex(r.n % 4 + 1), 32, '0')::uuid
FROM ranked AS r WHERE r.id = t.id AND r.n > {READY};
WITH ranked AS (SELECT id, row_number() OVER (ORDER BY id) AS n FROM dhara.tasks WHERE status = 'RUNNING')
UPDATE dhara.tasks AS t SET status = CASE WHEN r.n <= {DONE} THEN 'COMPLETED' ELSE 'DEAD' END, completed_at = now()
FROM ranked AS r WHERE r.id = t.id AND r.n > 0 AND r.n <= {DONE + DEAD};
INSERT INTO dhara.workers (id, pid, slots, host, version, types, queues) SELECT
       lpad(to_hex(n), 32, '0')::uuid, n, 50, 'h', '1', '{{t}}', '{{}}' FROM generate_series(1, 4) AS n;
"""


def lanes(*lanes: tuple[str, int], most: int = 100) -> list[Any]:
    columns = [[lane[0] for lane in lanes], [lane[1] for lane in lanes], [BEGINNING] * len(lanes), [ZERO] * len(lanes)]
    return [WORKER, ["t"], most, *columns, [most] * len(lanes), random_uuids(most)]


def listing(filter: Filter) -> str:
    """The first page as Search composes it; its fragments hold no parameter here."""
    query = (
        f"SELECT * FROM dhara.tasks WHERE {_where(filter).text()} ORDER BY id DESC LIMIT $1::bigint OFFSET $2::bigint"
    )
    return qualify(query, "dhara")


@dataclass(frozen=True)
class Case:
    """A statement, its arguments, the index it needs and the most rows of `tasks` it may touch and buffers it may use."""

    query: str
    args: Any
    index: str
    rows: int
    buffers: int


def cases(sample: dict[str, Any]) -> dict[str, Case]:
    """`sample`: ids and leases of 100 RUNNING tasks."""
    n = len(sample["ids"])
    settled = [sample["ids"], sample["leases"], ["COMPLETED"] * n, [0] * n, [0] * n, *([[None] * n] * 6)]
    parameters = load("tasks/settle", "dhara").count("::text[]") + load("tasks/settle", "dhara").count("::smallint[]")
    # Further columns that settlements may have got: zeros for numbers, nothing for texts.
    extra = {12: [0] * n, 13: [None] * n}
    settle_args = settled + [extra[k] for k in sorted(extra) if f"${k}" in load("tasks/settle", "dhara")]
    assert parameters >= 8
    return {
        "claim 100 ready ones behind 20,000 delayed": Case(
            load("tasks/claim", "dhara"), lanes(("default", 50), ("default", 0)), "tasks_pending", 320, 4_000
        ),
        "claim nothing": Case(load("tasks/claim", "dhara"), lanes(("default", 50)), "tasks_pending", 2, 60),
        "lanes": Case(load("tasks/lanes", "dhara"), [], "tasks_pending", 8, 60),
        "slice": Case(
            load("tasks/slice", "dhara"), ["default", 0, BEGINNING, ZERO, ["t"], 100], "tasks_pending", 110, 1_500
        ),
        "settle 100": Case(load("tasks/settle", "dhara"), settle_args, "tasks_pkey", 500, 5_000),
        "complete 100": Case(
            load("tasks/complete", "dhara"), [sample["ids"], sample["leases"], ["1"] * n], "tasks_pkey", 500, 5_000
        ),
        "reap 50": Case(
            load("tasks/reap", "dhara"), [WORKER, 0, 30, 500, "lost", 1, 60, None], "tasks_running", 700, 3_000
        ),
        "reap nobody": Case(
            load("tasks/reap", "dhara"), [NOBODY, 0, 30, 500, "lost", 1, 60, None], "tasks_running", 2, 60
        ),
        "held": Case(load("tasks/held", "dhara"), [WORKER], "tasks_running", 210, 400),
        "held of 100": Case(load("tasks/held_of", "dhara"), [WORKER, sample["ids"]], "tasks_pkey", 500, 500),
        "expire": Case(load("tasks/expire", "dhara"), [500], "tasks_expiring", 2, 100),
        "first page": Case(listing(Filter()), [21, 0], "tasks_pkey", 25, 100),
        "first page of DEAD": Case(listing(Filter(status=("DEAD",))), [21, 0], "tasks_dead|tasks_pkey", 25, 100),  # type: ignore[arg-type]
        "get": Case(load("tasks/get", "dhara"), [sample["ids"][0]], "tasks_pkey", 1, 20),
        "witness": Case(load("workers/witness", "dhara"), [], "", 0, 100),
    }


NAMES = list(cases({"ids": [ZERO] * 100, "leases": [ZERO] * 100}))


def literal(value: Any) -> str:
    """`value` as an SQL literal without a type, which EXECUTE takes for the parameter's."""
    if value is None:
        return "NULL"
    if isinstance(value, list):
        return literal("{" + ",".join("NULL" if item is None else f'"{item}"' for item in value) + "}")
    if isinstance(value, bytes):
        return rf"'\x{value.hex()}'"
    return "'" + str(value).replace("'", "''") + "'"


class Session:
    """A connection with every statement prepared."""

    def __init__(self, dsn: str, mode: str) -> None:
        self.connection = psycopg.connect(dsn, autocommit=True)
        self.connection.execute(f"SET plan_cache_mode = force_{mode}_plan")
        for name, value in PLANNER.items():
            self.connection.execute(f"SET {name} = {value}".encode())
        self.names: dict[str, str] = {}
        self.vacuumed = False

    def prepare(self, wanted: dict[str, Case]) -> None:
        for name, case in wanted.items():
            self.names[name] = f"s{len(self.names)}"
            self.connection.execute(f"PREPARE {self.names[name]} AS {case.query}".encode())

    def command(self, name: str, case: Case) -> str:
        arguments = ", ".join(map(literal, case.args))
        return f"EXECUTE {self.names[name]}" + (f" ({arguments})" if arguments else "")

    def run_all(self, wanted: dict[str, Case]) -> None:
        for name, case in wanted.items():
            with self.connection.transaction(force_rollback=True):
                self.connection.execute(self.command(name, case).encode())

    def explain(self, name: str, case: Case) -> dict[str, Any]:
        with self.connection.transaction(force_rollback=True):
            query = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {self.command(name, case)}"
            row = self.connection.execute(query.encode()).fetchone()
        assert row is not None
        plan = json.loads(row[0]) if isinstance(row[0], str) else row[0]
        found: dict[str, Any] = plan[0]["Plan"]
        return found


@pytest.fixture(
    scope="module",
    params=[
        "analyzed custom",
        "analyzed generic",
        "no-statistics custom",
        "no-statistics generic",
        "cached-when-new generic",
    ],
)
def session(
    request: pytest.FixtureRequest, databases: Databases, template: str
) -> Iterator[tuple[Session, dict[str, Case]]]:
    """60,000 rows and a session that has prepared the statements."""
    statistics, mode = request.param.split()
    name = databases.create(template)
    dsn = databases.dsn(name)
    with psycopg.connect(dsn, autocommit=True) as other:
        other.execute("ALTER TABLE dhara.tasks SET (autovacuum_enabled = off)")
        if not statistics.startswith("cached"):
            other.execute("VACUUM ANALYZE dhara.tasks")
        opened = Session(dsn, mode)
        if statistics.startswith("cached"):
            empty = cases({"ids": [ZERO], "leases": [ZERO]})
            opened.prepare(empty)
            opened.run_all(empty)
        other.execute(FILL.encode())
        if statistics == "analyzed":
            other.execute("VACUUM ANALYZE dhara.tasks")
            opened.vacuumed = True
        running = other.execute("SELECT id, lease FROM dhara.tasks WHERE status = 'RUNNING' LIMIT 100").fetchall()
        wanted = cases({"ids": [row[0] for row in running], "leases": [row[1] for row in running]})
        if not statistics.startswith("cached"):
            opened.prepare(wanted)
    yield opened, wanted
    opened.connection.close()
    databases.drop(name)


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def touched(node: dict[str, Any]) -> float:
    """Rows of the table that a scan has looked at, kept or not."""
    dropped = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    return float((node["Actual Rows"] + dropped) * node["Actual Loops"])


@pytest.mark.parametrize("name", NAMES)
def test_index_rows_and_buffers(session: tuple[Session, dict[str, Case]], name: str) -> None:
    opened, wanted = session
    case = wanted[name]
    plan = opened.explain(name, case)
    scans = [node for node in nodes(plan) if node.get("Relation Name") == "tasks" and "Scan" in node["Node Type"]]
    by_bitmap = [node for node in nodes(plan) if node["Node Type"] == "Bitmap Index Scan"]
    shown = json.dumps(plan, indent=1)
    assert not [node for node in scans if node["Node Type"] in ("Seq Scan", "Sample Scan")], shown
    indexes = {node["Index Name"] for node in scans + by_bitmap if "Index Name" in node}
    if case.index:
        assert indexes & set(case.index.split("|")), (indexes, shown)
        assert sum(map(touched, scans)) <= case.rows, shown
    buffers = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    # Nobody has vacuumed after the 35,000 updates of the filling, so index scans also meet entries of dead rows.
    assert buffers <= case.buffers + (0 if opened.vacuumed else 2_000), shown


def test_the_claim_takes_what_it_was_asked_for(session: tuple[Session, dict[str, Case]]) -> None:
    """Otherwise the bounds above would hold for a statement that finds nothing."""
    opened, wanted = session
    for name, expected in (
        ("claim 100 ready ones behind 20,000 delayed", 100),
        ("claim nothing", 0),
        ("settle 100", 100),
    ):
        assert opened.explain(name, wanted[name])["Actual Rows"] == expected
    completed = next(nodes(opened.explain("complete 100", wanted["complete 100"])))["Plans"][0]
    assert completed["Actual Rows"] == 100
    assert opened.explain("reap 50", wanted["reap 50"])["Actual Rows"] == 50


async def test_the_pools_connections_plan_as_these_tests_do_and_plan_anew(pool: Pool) -> None:
    """A plan cached on a table known to be empty is blind; it must not live long."""
    for name, value in PLANNER.items():
        assert await pool.fetchval("SELECT current_setting($1)", name) == value
    async with pool.acquire() as connection:
        assert 0 < connection._stmt_cache.get_max_lifetime() <= 60
