"""The invariants of a run that its database can tell (and two of the counters), each a query that returns violations.

They read what dhara itself has recorded, are made of set-wise SQL so that a million log rows take seconds, and hold at any
moment but I3, which speaks of quiet times. `seq` orders the changes of a task. Those that need to know more (which workers
were killed, when; what handlers have written) take it as arguments, and are not part of `violations`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
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


async def i10(db: Executor, lease: float, healthy: Iterable[UUID] = ()) -> Violations:
    """Nobody is reaped before `lease` seconds after its last beat (as far as it is still known), nor who was healthy."""
    return await _rows(
        db,
        """SELECT h.task_id, h.worker_id, h.at, w.beat_at, w.id = ANY ($2::uuid[]) AS healthy
           FROM dhara.task_history AS h JOIN dhara.workers AS w ON w.id = h.worker_id
           WHERE h.claim_seq IS NOT NULL AND h.reason LIKE '%lease lost%'
             AND (w.id = ANY ($2::uuid[])
                  -- A worker that has come back has beaten again since; then its last beat before is not on record.
                  OR (w.state = 'lost' AND h.at < w.beat_at + $1 * interval '1 second'))""",
        lease,
        list(healthy),
    )


async def i11(db: Executor, deaths: Mapping[UUID, datetime], bound: float) -> Violations:
    """What each worker held as it died (by the database's clock) was claimed again, or ended, `bound` seconds later."""
    return await _rows(
        db,
        """WITH deaths AS (SELECT * FROM unnest($1::uuid[], $2::timestamptz[]) AS d (worker, died)),
        held AS (
            SELECT a.task_id, a.attempt, d.died FROM deaths AS d JOIN dhara.attempts AS a ON a.worker_id = d.worker
            WHERE a.started_at <= d.died AND COALESCE(a.ended_at, 'infinity') > d.died
        )
        SELECT h.* FROM held AS h JOIN dhara.tasks AS t ON t.id = h.task_id
        WHERE NOT EXISTS (SELECT FROM dhara.attempts AS n WHERE n.task_id = h.task_id AND n.attempt = h.attempt + 1
                          AND n.started_at <= h.died + $3 * interval '1 second')
          AND NOT (t.status IN ('DEAD', 'CANCELED') AND t.attempts = h.attempt)""",
        list(deaths),
        list(deaths.values()),
        bound,
    )


async def i13(db: Executor) -> Violations:
    """Every start is explained: one for the task itself, and one for each return to PENDING, unless it left otherwise."""
    return await _rows(
        db,
        f"""WITH steps AS (
            SELECT task_id,
                   count(*) FILTER (WHERE event = 'CLAIMED') AS starts,
                   count(*) FILTER (WHERE to_state = 'PENDING') AS returns,
                   count(*) FILTER (WHERE from_state = 'PENDING' AND event <> 'CLAIMED') AS left_unstarted
            FROM dhara.task_logs WHERE event NOT IN ({_NOTES}) GROUP BY task_id
        )
        SELECT s.*, t.status FROM steps AS s LEFT JOIN dhara.tasks AS t ON t.id = s.task_id
        WHERE s.starts <> 1 + s.returns - s.left_unstarted - COALESCE((t.status = 'PENDING')::int, 0)""",
    )


async def i14(db: Executor, effects: str = "effects") -> Violations:
    """In `effects` (column `task`), written through ctx.transaction(): exactly one row per COMPLETED task, else none."""
    return await _rows(
        db,
        f"""SELECT t.id, t.status, count(e.task) FROM dhara.tasks AS t LEFT JOIN {effects} AS e ON e.task = t.id
            GROUP BY t.id HAVING count(e.task) <> (t.status = 'COMPLETED')::int
            UNION ALL
            SELECT e.task, 'of no task', count(*) FROM {effects} AS e
            WHERE NOT EXISTS (SELECT FROM dhara.tasks AS t WHERE t.id = e.task) GROUP BY e.task""",
    )


async def i15(db: Executor) -> Violations:
    """No claim before `run_at`."""
    return await _rows(
        db, "SELECT id, run_at, started_at FROM dhara.tasks WHERE status = 'RUNNING' AND started_at < run_at"
    )


async def stored_delays(db: Executor, base: float, cap: float) -> Violations:
    """I15: waits stored after a failure are inside C14's band, for tasks that follow the worker's settings."""
    return await _rows(
        db,
        """WITH waiting AS (
            SELECT t.id, t.failures, extract(epoch FROM t.run_at - t.updated_at)::float8 AS wait,
                   LEAST($2, $1 * 2 ^ (t.failures - 1)) AS middle
            FROM dhara.tasks AS t
            WHERE t.status = 'PENDING' AND t.failures > 0 AND 'RETRIED' = (
                SELECT h.event FROM dhara.task_history AS h WHERE h.task_id = t.id ORDER BY h.seq DESC LIMIT 1)
        )
        SELECT * FROM waiting WHERE wait NOT BETWEEN 0.5 * middle - 0.01 AND 1.5 * middle + 0.01""",
        base,
        cap,
    )


async def i17(db: Executor) -> Violations:
    """Never two live tasks with one unique key; who is live keeps others out, for as long as its scope says."""
    return await _rows(
        db,
        """WITH live AS (
            SELECT * FROM dhara.tasks WHERE unique_key IS NOT NULL AND status IN ('PENDING', 'RUNNING')
        )
        SELECT 'two are open' AS what, type, unique_key, array_agg(id) AS ids FROM live
        WHERE unique_scope = 'open' GROUP BY type, unique_key HAVING count(*) > 1
        UNION ALL
        SELECT 'two wait that were never claimed', type, unique_key, array_agg(id) FROM live
        WHERE unique_scope = 'pending' AND status = 'PENDING' AND attempts = 0
        GROUP BY type, unique_key HAVING count(*) > 1
        UNION ALL
        SELECT 'open and keeps nobody out', type, unique_key, ARRAY[id] FROM live
        WHERE unique_scope = 'open' AND unique_slot IS NULL
        UNION ALL
        SELECT 'final and keeps others out', type, unique_key, ARRAY[id] FROM dhara.tasks
        WHERE unique_slot IS NOT NULL AND unique_scope <> 'period' AND status NOT IN ('PENDING', 'RUNNING')
        UNION ALL
        SELECT 'keeps others out by another key', type, unique_key, ARRAY[id] FROM dhara.tasks
        WHERE unique_slot IS DISTINCT FROM unique_key AND unique_slot IS NOT NULL""",
    )


async def i19(db: Executor) -> Violations:
    """After a cancel request no further attempt in that generation; after CANCELED none at all."""
    return await _rows(
        db,
        """SELECT c.task_id, c.event, c.seq, l.seq AS claimed FROM dhara.task_logs AS c
           JOIN dhara.task_logs AS l ON l.task_id = c.task_id AND l.event = 'CLAIMED' AND l.seq > c.seq
           WHERE c.event = 'CANCELED' OR (c.event = 'CANCEL_REQUESTED' AND l.generation = c.generation)""",
    )


async def i21(db: Executor) -> Violations:
    """One log row per change; `seq` and `at` agree in order per task (notes are made without the task's lock)."""
    return await _rows(
        db,
        f"""WITH steps AS (
            SELECT task_id, seq, at, lag(at) OVER (PARTITION BY task_id ORDER BY seq) AS before
            FROM dhara.task_logs WHERE event NOT IN ({_NOTES})
        )
        SELECT 'order' AS what, task_id, seq, at, before FROM steps WHERE at < before
        UNION ALL
        SELECT 'number used twice', NULL, seq, NULL, NULL FROM dhara.task_logs GROUP BY seq HAVING count(*) > 1""",
    )


async def i22(db: Executor, hashes: Mapping[UUID, str]) -> Violations:
    """The payload of each task has the hash (md5 of its text) that its client knows, or its handler saw."""
    return await _rows(
        db,
        """SELECT t.id FROM unnest($1::uuid[], $2::text[]) AS k (id, hash) JOIN dhara.tasks AS t ON t.id = k.id
           WHERE md5(t.payload::text) <> k.hash""",
        list(hashes),
        list(hashes.values()),
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
        "I13": await i13(db),
        "I15": await i15(db),
        "I17": await i17(db),
        "I19": await i19(db),
        "I21": await i21(db),
        "counted states": await counted_states(db),
        "counted events": await counted_events(db),
    }
    return {name: rows for name, rows in found.items() if rows}
