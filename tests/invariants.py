"""The invariants of a run: those that a database can tell (`dhara.store.invariants`, what `dhara audit` asks), and those that
need to know more: what clients were promised, which workers were killed and when, what handlers have written.

All hold at any moment but I3, which speaks of quiet times. Each answers its violations as rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from dhara.store.invariants import CHECKS, Audit, Scope
from dhara.store.pool import Executor

Violations = list[dict[str, Any]]
QUIET = Scope(quiet=True)


async def _rows(db: Executor, query: str, *args: Any) -> Violations:
    return [dict(row) for row in await db.fetch(query, *args)]


async def _ask(number: str, db: Executor, scope: Scope = QUIET, statement: str | None = None) -> Violations:
    """What breaks the audit's checks of that number (or of them the one `statement`)."""
    found: Violations = []
    for check in CHECKS:
        if check.number == number and statement in (None, check.statement):
            rows = await Audit(db).violations(check, scope) or []
            found += [{"what": row.what, "task_id": row.task_id, "detail": row.detail} for row in rows]
    return found


async def i1(db: Executor, acknowledged: Iterable[UUID]) -> Violations:
    """Every acknowledged id exists, or existed until it was pruned."""
    return await _rows(
        db,
        """SELECT 'acknowledged, and not there' AS what, a.id AS task_id FROM unnest($1::uuid[]) AS a (id)
           WHERE NOT EXISTS (SELECT FROM dhara.tasks AS t WHERE t.id = a.id)
             AND NOT EXISTS (SELECT FROM dhara.task_history AS h WHERE h.task_id = a.id AND h.event = 'PRUNED')""",
        list(acknowledged),
    )


async def i2(db: Executor, asked: Iterable[UUID] | None = None) -> Violations:
    """No task that nobody asked for (if `asked` lists all that were); at most one per idempotency key."""
    found = await _ask("I2", db)
    if asked is not None:
        query = """SELECT 'nobody asked for it' AS what, t.id AS task_id FROM dhara.tasks AS t
                   LEFT JOIN unnest($1::uuid[]) AS a (id) ON a.id = t.id WHERE a.id IS NULL"""
        found += await _rows(db, query, list(asked))
    return found


i3, i4, i5, i6 = (partial(_ask, number) for number in ("I3", "I4", "I5", "I6"))
i7, i8, i9, i13 = (partial(_ask, number) for number in ("I7", "I8", "I9", "I13"))
i17, i19, i21, i24 = (partial(_ask, number) for number in ("I17", "I19", "I21", "I24"))
i15 = partial(_ask, "I15", statement="early")
counted_states = partial(_ask, "I20", statement="states")
counted_events = partial(_ask, "I20", statement="events")


async def i10(db: Executor, lease: float, healthy: Iterable[UUID] = ()) -> Violations:
    """Nobody is reaped before `lease` seconds after its last beat (as far as it is still known), nor who was healthy."""
    return await _ask("I10", db, Scope(stale_after=lease, healthy=list(healthy)))


async def i11(db: Executor, deaths: Mapping[UUID, datetime], bound: float) -> Violations:
    """What each worker held as it died (by the database's clock) was claimed again, or ended, `bound` seconds later."""
    return await _rows(
        db,
        """WITH deaths AS (SELECT * FROM unnest($1::uuid[], $2::timestamptz[]) AS d (worker, died)),
        held AS (
            SELECT a.task_id, a.attempt, d.died FROM deaths AS d JOIN dhara.attempts AS a ON a.worker_id = d.worker
            WHERE a.started_at <= d.died AND COALESCE(a.ended_at, 'infinity') > d.died
              -- A settlement that was on its way as its worker died has ended the attempt itself.
              AND COALESCE(a.outcome, 'REAPED') IN ('REAPED', 'RELEASED')
        )
        SELECT 'not claimed again in time' AS what, h.* FROM held AS h JOIN dhara.tasks AS t ON t.id = h.task_id
        WHERE NOT EXISTS (SELECT FROM dhara.attempts AS n WHERE n.task_id = h.task_id AND n.attempt = h.attempt + 1
                          AND n.started_at <= h.died + $3 * interval '1 second')
          AND NOT (t.status IN ('DEAD', 'CANCELED') AND t.attempts = h.attempt)""",
        list(deaths),
        list(deaths.values()),
        bound,
    )


async def taken_back(db: Executor, deaths: Mapping[UUID, datetime], bound: float) -> Violations:
    """I11 where workers are too few for the load, so that a task may wait for its turn: what each worker held as it died was
    taken back, or had ended, `bound` seconds later.
    """
    return await _rows(
        db,
        """SELECT 'not taken back in time' AS what, a.task_id, a.attempt, d.died, a.ended_at
           FROM unnest($1::uuid[], $2::timestamptz[]) AS d (worker, died)
           JOIN dhara.attempts AS a ON a.worker_id = d.worker
           WHERE a.started_at <= d.died
             AND COALESCE(a.ended_at, 'infinity') > d.died + $3 * interval '1 second'""",
        list(deaths),
        list(deaths.values()),
        bound,
    )


async def i14(db: Executor, effects: str = "effects", type: str | None = None) -> Violations:
    """In `effects` (column `task`), written through ctx.transaction(): exactly one row per COMPLETED task (of `type`), else
    none.
    """
    return await _rows(
        db,
        f"""SELECT t.id AS task_id, t.status AS what, count(e.task) AS effects
            FROM dhara.tasks AS t LEFT JOIN {effects} AS e ON e.task = t.id
            WHERE $1::text IS NULL OR t.type = $1
            GROUP BY t.id HAVING count(e.task) <> (t.status = 'COMPLETED')::int
            UNION ALL
            SELECT e.task, 'of no task', count(*) FROM {effects} AS e
            WHERE NOT EXISTS (SELECT FROM dhara.tasks AS t WHERE t.id = e.task) GROUP BY e.task""",
        type,
    )


async def stored_delays(db: Executor, base: float, cap: float) -> Violations:
    """I15: waits stored after a failure are inside C14's band, for tasks that follow the worker's settings."""
    return await _ask("I15", db, Scope(base=base, cap=cap), "delays")


async def i22(db: Executor, hashes: Mapping[UUID, str]) -> Violations:
    """The payload of each task has the hash (md5 of its text) that its client knows, or its handler saw."""
    return await _rows(
        db,
        """SELECT 'another payload' AS what, t.id AS task_id FROM unnest($1::uuid[], $2::text[]) AS k (id, hash) JOIN dhara.tasks AS t ON t.id = k.id
           WHERE md5(t.payload::text) <> k.hash""",
        list(hashes),
        list(hashes.values()),
    )


async def violations(
    db: Executor,
    *,
    acknowledged: Iterable[UUID] | None = None,
    asked: Iterable[UUID] | None = None,
    quiet: bool = False,
) -> Mapping[str, Violations]:
    """All violations, by invariant; empty when all hold. `quiet`: the work is over, so I3 must hold too."""
    found = {
        "I1": await i1(db, acknowledged or ()),
        "I2": await i2(db, asked),
        "I3": await i3(db) if quiet else [],
        "I4": await i4(db),
        "I5": await i5(db),
        "I6": await i6(db),
        "I7": await i7(db),
        "I8": await i8(db),
        "I9": await i9(db),
        "I13": await i13(db),
        "I15": await i15(db),
        "I17": await i17(db),
        "I19": await i19(db),
        "I21": await i21(db),
        "counted states": await counted_states(db),
        "counted events": await counted_events(db),
    }
    return {name: rows for name, rows in found.items() if rows}
