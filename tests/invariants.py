"""The invariants I1 to I9 of a run (and two of the counters), each a query that returns its violations.

They read only what dhara itself has recorded, are made of set-wise SQL so that a million log rows take seconds, and hold
at any moment but I3, which speaks of quiet times. `seq` orders the changes of a task.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

from dhara.domain.lifecycle import FINAL, NOTES, TRANSITIONS, Event
from dhara.store.pool import Executor

Violations = list[dict[str, Any]]


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names))


_MOVES = ", ".join(
    f"('{source}', '{event}', '{target}')" for source, moves in TRANSITIONS.items() for event, target in moves.items()
)
_FINAL = _quoted(FINAL)
_NOTES = _quoted(NOTES)
_UNCOUNTED = _quoted(NOTES - {Event.SETTLE_REJECTED})


async def _rows(db: Executor, query: str, *args: Any) -> Violations:
    return [dict(row) for row in await db.fetch(query, *args)]


async def i1(db: Executor, acknowledged: Iterable[UUID]) -> Violations:
    """Every acknowledged id exists, or existed until it was pruned."""
    return await _rows(
        db,
        """SELECT a.id FROM unnest($1::uuid[]) AS a (id)
           WHERE NOT EXISTS (SELECT FROM dhara.tasks AS t WHERE t.id = a.id)
             AND NOT EXISTS (SELECT FROM dhara.task_history AS h WHERE h.task_id = a.id AND h.event = 'PRUNED')""",
        list(acknowledged),
    )


async def i2(db: Executor, asked: Iterable[UUID] | None = None) -> Violations:
    """No task that nobody asked for (if `asked` lists all that were); at most one per idempotency key."""
    found = await _rows(
        db,
        """SELECT type, idempotency_key, count(*) FROM dhara.tasks WHERE idempotency_key IS NOT NULL
           GROUP BY type, idempotency_key HAVING count(*) > 1""",
    )
    if asked is not None:
        found += await _rows(db, "SELECT id FROM dhara.tasks WHERE id <> ALL ($1::uuid[])", list(asked))
    return found


async def i3(db: Executor) -> Violations:
    """After quiet time: nothing RUNNING, nothing due and PENDING in a queue that is not paused."""
    return await _rows(
        db,
        """SELECT id, status, run_at FROM dhara.tasks AS t
           WHERE status = 'RUNNING'
              OR (status = 'PENDING' AND run_at <= clock_timestamp()
                  AND NOT EXISTS (SELECT FROM dhara.queues AS q WHERE q.name = t.queue AND q.paused_at IS NOT NULL))""",
    )


async def i4(db: Executor) -> Violations:
    """Each task's log is a path in TRANSITIONS that begins at PENDING and ends at the row (or, pruned, at nothing)."""
    return await _rows(
        db,
        f"""WITH moves (from_state, event, to_state) AS (VALUES {_MOVES}),
        steps AS (
            SELECT task_id, seq, event, from_state, to_state,
                   COALESCE(lag(to_state) OVER task, CASE WHEN row_number() OVER task = 1 THEN 'PENDING' END) AS before,
                   lead(seq) OVER task IS NULL AS last
            FROM dhara.task_logs WHERE event NOT IN ({_NOTES})
            WINDOW task AS (PARTITION BY task_id ORDER BY seq)
        )
        SELECT 'broken path' AS what, task_id, seq, event, before, from_state, to_state FROM steps
        WHERE from_state IS DISTINCT FROM before
        UNION ALL
        SELECT 'illegal move', task_id, seq, event, before, from_state, to_state FROM steps AS s
        WHERE NOT EXISTS (SELECT FROM moves AS m WHERE m.event = s.event AND m.from_state = s.from_state
                          AND m.to_state = s.to_state)
          AND NOT (event = 'PRUNED' AND from_state IN ({_FINAL}) AND to_state IS NULL)
        UNION ALL
        SELECT 'log and row differ', s.task_id, s.seq, s.event, t.status, s.from_state, s.to_state
        FROM steps AS s LEFT JOIN dhara.tasks AS t ON t.id = s.task_id
        WHERE s.last AND s.to_state IS DISTINCT FROM t.status
        UNION ALL
        SELECT 'changed without a log', t.id, NULL, NULL, t.status, NULL, NULL FROM dhara.tasks AS t
        WHERE t.status <> 'PENDING' AND NOT EXISTS (SELECT FROM steps AS s WHERE s.task_id = t.id)""",
    )


async def i5(db: Executor) -> Violations:
    """Attempts are 1..k without gap or repeat, k is the row's; failures stay within the budget."""
    return await _rows(
        db,
        """WITH starts AS (
            SELECT task_id, attempt, row_number() OVER (PARTITION BY task_id ORDER BY seq) AS nth
            FROM dhara.task_logs WHERE event = 'CLAIMED'
        )
        SELECT 'attempt out of order' AS what, task_id, attempt, nth FROM starts WHERE attempt <> nth
        UNION ALL
        SELECT 'row counts otherwise', t.id, t.attempts, count(s.task_id)
        FROM dhara.tasks AS t LEFT JOIN starts AS s ON s.task_id = t.id
        GROUP BY t.id HAVING t.attempts <> count(s.task_id)
        UNION ALL
        SELECT 'too many failures', id, failures, max_retries + 1 FROM dhara.tasks WHERE failures > max_retries + 1""",
    )


async def i6(db: Executor) -> Violations:
    """No lease value occurs in two claims."""
    return await _rows(
        db,
        """SELECT lease, count(*) FROM dhara.task_logs WHERE event = 'CLAIMED'
           GROUP BY lease HAVING lease IS NULL OR count(*) > 1""",
    )


async def i7(db: Executor) -> Violations:
    """Claim intervals of one task never overlap, by the log's times."""
    return await _rows(
        db,
        """WITH held AS (
            SELECT task_id, attempt, started_at, ended_at,
                   lag(COALESCE(ended_at, 'infinity')) OVER (PARTITION BY task_id ORDER BY attempt) AS freed_at
            FROM dhara.attempts
        )
        SELECT task_id, attempt, started_at, freed_at FROM held
        WHERE started_at < freed_at OR ended_at < started_at""",
    )


async def i8(db: Executor) -> Violations:
    """Each end of an attempt carries the lease of the latest claim before it."""
    return await _rows(
        db,
        f"""WITH leases AS (
            SELECT task_id, seq, event, from_state, lease,
                   lag(event) OVER task AS previous, lag(lease) OVER task AS claimed
            FROM dhara.task_logs WHERE event NOT IN ({_NOTES})
            WINDOW task AS (PARTITION BY task_id ORDER BY seq)
        )
        SELECT * FROM leases
        WHERE from_state = 'RUNNING' AND (previous IS DISTINCT FROM 'CLAIMED' OR lease IS DISTINCT FROM claimed)""",
    )


async def i9(db: Executor) -> Violations:
    """At most one terminal event per generation; afterwards only REVIVED or PRUNED."""
    return await _rows(
        db,
        f"""WITH steps AS (
            SELECT task_id, generation, seq, event, to_state,
                   lead(event) OVER (PARTITION BY task_id ORDER BY seq) AS next
            FROM dhara.task_logs WHERE event NOT IN ({_NOTES})
        )
        SELECT 'something after the end' AS what, task_id, generation, seq, event || ' ' || next AS found FROM steps
        WHERE to_state IN ({_FINAL}) AND next NOT IN ('REVIVED', 'PRUNED')
        UNION ALL
        SELECT 'ended twice', task_id, generation, NULL, count(*)::text FROM steps WHERE to_state IN ({_FINAL})
        GROUP BY task_id, generation HAVING count(*) > 1""",
    )


async def counted_states(db: Executor) -> Violations:
    """The flows give, per queue, the same numbers by state as the rows."""
    return await _rows(
        db,
        """WITH flows AS (
            SELECT queue, to_state AS status, n FROM dhara.counters WHERE to_state IS NOT NULL
            UNION ALL SELECT queue, from_state, -n FROM dhara.counters WHERE from_state IS NOT NULL
        ), counted AS (SELECT queue, status, sum(n) AS n FROM flows GROUP BY queue, status),
        standing AS (SELECT queue, status, count(*) AS n FROM dhara.tasks GROUP BY queue, status)
        SELECT queue, status, c.n AS counted, s.n AS rows FROM counted AS c FULL JOIN standing AS s USING (queue, status)
        WHERE COALESCE(c.n, 0) <> COALESCE(s.n, 0)""",
    )


async def counted_events(db: Executor) -> Violations:
    """The flows give the same numbers by event as the log, as long as no history has been pruned."""
    return await _rows(
        db,
        f"""WITH counted AS (
            SELECT event, sum(n) AS n FROM dhara.counters WHERE event NOT IN ('MOVED', 'REAPED_FINAL') GROUP BY event
        ), logged AS (
            SELECT event, count(*) AS n FROM dhara.task_logs WHERE event NOT IN ({_UNCOUNTED}) GROUP BY event
            UNION ALL
            SELECT 'ENQUEUED', (SELECT count(*) FROM dhara.tasks)
                   + (SELECT count(*) FROM dhara.task_history WHERE event = 'PRUNED')
        )
        SELECT event, c.n AS counted, l.n AS logged FROM counted AS c FULL JOIN logged AS l USING (event)
        WHERE COALESCE(c.n, 0) <> COALESCE(l.n, 0) AND event NOT IN ({_UNCOUNTED})""",
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
        "counted states": await counted_states(db),
        "counted events": await counted_events(db),
    }
    return {name: rows for name, rows in found.items() if rows}
