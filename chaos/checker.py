"""The verdict: I1 to I24 over the database, what the client was promised, what handlers noted and what was done to them.

I18 stands here for the slots of a runner.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from dhara.store.invariants import CHECKS, Audit, Scope
from tests import invariants
from tests.factories import Connection
from tests.invariants import Violations


@dataclass(frozen=True)
class Run:
    """One execution as its handler noted it. `end` is None if it never came to it."""

    task: UUID
    attempt: int
    lease: UUID
    type: str
    pid: int
    start: float
    end: float | None


@dataclass(frozen=True)
class Notes:
    """All that handlers have noted: executions, and the hash of each payload they saw."""

    runs: Sequence[Run]
    hashes: Sequence[tuple[UUID, str]]


@dataclass
class Evidence:
    """What is known beside the database. `deaths`: runner's pid and wall time; `excused`: pids that were silenced."""

    acknowledged: Mapping[UUID, str]
    hashes: Mapping[UUID, str]
    asked: Mapping[str, str]
    notes: Notes
    deaths: Sequence[tuple[int, float]] = ()
    excused: frozenset[int] = frozenset()
    slots: int = 16
    lease: float = 6.0
    bound: float = 12.0
    secrets: Sequence[str] = ()
    texts: Sequence[str] = ()
    skips: frozenset[str] = frozenset()
    poison_expected: bool = False
    # What an asynchronous failover took back (wall time, since and until), and when each id was acknowledged.
    rewound: Sequence[tuple[float, float]] = ()
    times: Mapping[UUID, float] = field(default_factory=dict)
    delays: Sequence[float] = ()
    stood: Sequence[tuple[int, float, float]] = ()  # processes that stood still: pid, since, until, monotonic


@dataclass
class Verdict:
    """What was found; empty `violations` means that all holds. `histories` are those of the tasks concerned."""

    violations: dict[str, Violations] = field(default_factory=dict)
    histories: dict[str, list[str]] = field(default_factory=dict)
    lost: int = 0
    missing: list[str] = field(default_factory=list)  # ids that a failover took back, as it may
    unexplained: int = 0
    figures: dict[str, Any] = field(default_factory=dict)


def read_notes(folder: Path) -> Notes:
    """The files of all handlers' processes."""
    runs: list[Run] = []
    hashes: list[tuple[UUID, str]] = []
    for path in sorted(folder.glob("*.jsonl")):
        begun: dict[str, dict[str, Any]] = {}
        for line in path.read_text().splitlines():
            found = json.loads(line)
            if found["what"] == "payload":
                hashes.append((UUID(found["task"]), found["hash"]))
            elif found["what"] == "start":
                begun[found["lease"]] = found
            else:
                runs.append(_run(begun.pop(found["lease"]), found["at"]))
        runs += [_run(found, None) for found in begun.values()]
    return Notes(runs, hashes)


def _run(start: Mapping[str, Any], end: float | None) -> Run:
    return Run(
        UUID(start["task"]), start["attempt"], UUID(start["lease"]), start["type"], start["pid"], start["at"], end
    )


async def judge(db: Connection, evidence: Evidence) -> Verdict:
    """Every invariant. `db` must be quiet: nothing RUNNING, nothing due."""
    verdict = Verdict()
    workers = await db.fetch("SELECT pid, id FROM dhara.workers")
    healthy = [row["id"] for row in workers if row["pid"] not in evidence.excused]
    found: dict[str, Violations] = defaultdict(list)
    scope = Scope(stale_after=evidence.lease, healthy=healthy, quiet=True)
    for check in CHECKS:
        if check.statement not in evidence.skips:
            rows = await Audit(db).violations(check, scope) or []
            found[check.number] += [{"what": v.what, "task_id": v.task_id, "detail": v.detail} for v in rows]
    for row in await invariants.i1(db, evidence.acknowledged):
        if within(evidence.times.get(row["task_id"]), evidence.rewound):
            verdict.missing.append(str(row["task_id"]))
        else:
            found["I1"].append(row)
    found["I2"] += await nobodys(db, evidence.asked, evidence.acknowledged)
    deaths = _deaths(workers, evidence.deaths)
    if "overlaps" not in evidence.skips:  # the server's clock can be compared with ours
        found["I11"] += await invariants.taken_back(db, deaths, evidence.bound)
    runs = evidence.notes.runs if not evidence.rewound else _kept(evidence)
    found["I12"] += overlapping(runs, evidence.excused, evidence.stood)
    claims = {row["lease"]: row for row in await db.fetch("SELECT lease, task_id, attempt FROM dhara.attempts")}
    found["I13"] += unclaimed(runs, claims)
    found["I14"] += await invariants.i14(db, type="effect")
    found["I15"] += lopsided(evidence.delays)
    found["I16"] += await misfired(db, "fires" in evidence.skips)
    found["I18"] += crowded(evidence.notes.runs, evidence.slots)
    found["I22"] += await payloads(db, evidence)
    found["I23"] += await leaks(db, evidence)
    if evidence.poison_expected:
        found["F8"] += await innocents(db)
    verdict.violations = {number: rows for number, rows in found.items() if rows}
    open_ = "SELECT count(*) FROM dhara.tasks WHERE id = ANY ($1::uuid[]) AND status IN ('PENDING', 'RUNNING')"
    verdict.lost = len(found["I1"]) + await db.fetchval(open_, list(evidence.acknowledged))
    verdict.figures["fires"] = await db.fetchval("SELECT count(*) FROM dhara.schedule_fires")
    verdict.unexplained = len(found["I13"])
    verdict.histories = await _histories(db, verdict.violations)
    return verdict


def _deaths(workers: Iterable[Any], deaths: Iterable[tuple[int, float]]) -> dict[UUID, datetime]:
    by_pid = {row["pid"]: row["id"] for row in workers}
    return {by_pid[pid]: datetime.fromtimestamp(at, UTC) for pid, at in deaths if pid in by_pid}


async def nobodys(db: Connection, asked: Iterable[str], acknowledged: Iterable[UUID]) -> Violations:
    """I2: tasks under keys that the client never used, or under none without its having been told of them."""
    query = """SELECT 'nobody asked for it' AS what, t.id AS task_id FROM dhara.tasks AS t
               LEFT JOIN unnest($1::text[]) AS a (key) ON a.key = t.idempotency_key WHERE a.key IS NULL
                 AND (t.idempotency_key IS NOT NULL OR t.id <> ALL ($2::uuid[]))
                 AND NOT EXISTS (SELECT FROM dhara.schedule_fires AS f WHERE f.task_id = t.id)"""
    return [dict(row) for row in await db.fetch(query, list(asked), list(acknowledged))]


_WAKING = 2.0  # seconds after SIGCONT until whoever watches has looked at the clock, on a busy machine


def overlapping(
    runs: Iterable[Run], excused: Iterable[int] = (), stood: Sequence[tuple[int, float, float]] = ()
) -> Violations:
    """I12: executions of one task at the same time, but where one side was silenced; never for `exclusive`, unless that side
    stood still as the other began, when nothing could act, and was over as soon as it went on.

    An execution without an end ended at an unknown moment: its process was killed.
    """
    silenced = frozenset(excused)
    by_task: dict[UUID, list[Run]] = defaultdict(list)
    for run in runs:
        by_task[run.task].append(run)
    found: Violations = []
    for task, mine in by_task.items():
        mine.sort(key=lambda run: run.start)
        for n, one in enumerate(mine):
            for other in mine[n + 1 :]:
                if one.end is None or other.start >= one.end:
                    continue
                if one.type == "exclusive":
                    broken = not any(
                        pid == one.pid and since <= other.start and one.end <= until + _WAKING
                        for pid, since, until in stood
                    )
                else:
                    broken = not {one.pid, other.pid} & silenced
                if broken:
                    detail = f"attempts {one.attempt} and {other.attempt}, {one.end - other.start:.3f} s"
                    found.append({"what": "two executions at once", "task_id": task, "detail": detail})
    return found


def unclaimed(runs: Iterable[Run], claims: Mapping[UUID, Any]) -> Violations:
    """I13: executions that no claim of the log explains, and claims that were executed twice."""
    found: Violations = []
    seen: set[UUID] = set()
    for run in runs:
        claim = claims.get(run.lease)
        if claim is None or (claim["task_id"], claim["attempt"]) != (run.task, run.attempt):
            found.append({"what": "a start without a claim", "task_id": run.task, "detail": f"attempt {run.attempt}"})
        if run.lease in seen:
            found.append({"what": "a claim executed twice", "task_id": run.task, "detail": f"attempt {run.attempt}"})
        seen.add(run.lease)
    return found


def within(at: float | None, spans: Sequence[tuple[float, float]]) -> bool:
    """Whether that moment lies in one of the spans."""
    return at is not None and any(since <= at <= until for since, until in spans)


def _kept(evidence: Evidence) -> list[Run]:
    """Without the executions that began in a time that a failover took back: their claims may be gone."""
    offset = time.time() - time.monotonic()
    return [run for run in evidence.notes.runs if not within(run.start + offset, evidence.rewound)]


def lopsided(delays: Sequence[float]) -> Violations:
    """I15: waits, as parts of their base, are spread evenly over [0.5, 1.5) (Kolmogorov and Smirnov, p > 0.01).

    Asked of a thousand and more.
    """
    if len(delays) < 1_000:
        return []
    p = evenly(delays)
    detail = f"p = {p:.2g} for {len(delays)} waits"
    return [] if p > 0.01 else [{"what": "waits that are not spread evenly", "task_id": None, "detail": detail}]


def evenly(delays: Sequence[float]) -> float:
    """How likely such an unevenness is by chance, if `delays` are evenly spread over [0.5, 1.5)."""
    n = len(delays)
    parts = [min(1.0, max(0.0, delay - 0.5)) for delay in sorted(delays)]
    worst = max(max((i + 1) / n - part, part - i / n) for i, part in enumerate(parts))
    scaled = worst * (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n))
    if scaled < 0.2:
        return 1.0
    terms = ((-1) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 101))
    return min(1.0, max(0.0, 2 * sum(terms)))


async def misfired(db: Connection, gaps: bool = False) -> Violations:
    """I16: each schedule of fixed intervals has one task for every time that it should have fired until its last one, and
    none else. `gaps`: the server's clock has jumped, so that times may be missing.
    """
    query = """
        WITH due AS (
            SELECT s.name, s.anchor + n * s.every * interval '1 second' AS at FROM dhara.schedules AS s
            CROSS JOIN LATERAL generate_series(
                1, round(extract(epoch FROM GREATEST(s.last_at, s.paused_at - interval '20 s') - s.anchor) / s.every)::bigint
            ) AS n
            WHERE s.every IS NOT NULL
        ), fired AS (
            SELECT f.schedule, f.fire_at, t.id FROM dhara.schedule_fires AS f LEFT JOIN dhara.tasks AS t ON t.id = f.task_id
        )
        SELECT 'a fire without its task' AS what, f.id AS task_id, format('%s at %s', d.name, d.at) AS detail
        FROM due AS d LEFT JOIN fired AS f ON f.schedule = d.name AND f.fire_at = d.at
        WHERE f.id IS NULL AND NOT $1
        UNION ALL
        SELECT 'a fire at no time of its schedule', f.id, format('%s at %s', f.schedule, f.fire_at) FROM fired AS f
        WHERE NOT EXISTS (SELECT FROM due AS d WHERE d.name = f.schedule AND d.at = f.fire_at)
        UNION ALL
        SELECT 'a task of a schedule without a fire', t.id, t.idempotency_key FROM dhara.tasks AS t
        WHERE t.idempotency_key LIKE 'schedule:%' AND NOT EXISTS (SELECT FROM fired AS f WHERE f.id = t.id)
        UNION ALL
        SELECT 'two tasks of one fire', min(f.id::text)::uuid, format('%s at %s', f.schedule, f.fire_at) FROM fired AS f
        GROUP BY f.schedule, f.fire_at HAVING count(f.id) > 1"""
    return [dict(row) for row in await db.fetch(query, gaps)]


def crowded(runs: Iterable[Run], slots: int) -> Violations:
    """I18: a process that ran more at once than it has slots."""
    events: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for run in runs:
        if run.end is not None:
            events[run.pid] += [(run.start, 1), (run.end, -1)]
    found: Violations = []
    for pid, moments in events.items():
        running = most = 0
        for _, step in sorted(moments):
            running += step
            most = max(most, running)
        if most > slots:
            found.append({"what": "more than its slots", "task_id": None, "detail": f"process {pid} ran {most}"})
    return found


async def payloads(db: Connection, evidence: Evidence) -> Violations:
    """I22: what a handler saw, and what is stored, is what the client sent."""
    from chaos.handlers import digest

    found: Violations = []
    for task, hash in evidence.notes.hashes:
        if evidence.hashes.get(task, hash) != hash:
            found.append({"what": "the handler saw another payload", "task_id": task, "detail": hash})
    for row in await db.fetch("SELECT id, payload::text FROM dhara.tasks"):
        if evidence.hashes.get(row["id"]) not in (None, digest(json.loads(row["payload"]))):
            found.append({"what": "another payload is stored", "task_id": row["id"], "detail": row["payload"][:100]})
    return found


async def leaks(db: Connection, evidence: Evidence) -> Violations:
    """I23: canaries in logs, and in what is stored of failures."""
    found: Violations = []
    for secret in evidence.secrets:
        if any(secret in text for text in evidence.texts):
            found.append({"what": "a secret in a log", "task_id": None, "detail": "the database's password"})
        query = """SELECT task_id FROM dhara.task_history WHERE strpos(concat(reason, error::text, logs::text), $1) > 0
                   UNION SELECT id FROM dhara.tasks WHERE strpos(concat(reason, last_error, result::text), $1) > 0"""
        for row in await db.fetch(query, secret):
            found.append({"what": "a secret is stored", "task_id": row["task_id"], "detail": "the database's password"})
    return found


async def innocents(db: Connection) -> Violations:
    """F8: tasks that died as poison and are none. (Those of F54's mill are reaped as if their process had crashed, again and
    again.)"""
    query = """SELECT 'an innocent is DEAD' AS what, id AS task_id, type AS detail FROM dhara.tasks
               WHERE status = 'DEAD' AND reason = 'poison' AND type NOT IN ('poison', 'hog') AND type NOT LIKE 'mill%'"""
    return [dict(row) for row in await db.fetch(query)]


async def _histories(db: Connection, violations: Mapping[str, Violations], most: int = 3) -> dict[str, list[str]]:
    tasks = {row["task_id"] for rows in violations.values() for row in rows[:most] if row.get("task_id")}
    found = await Audit(db).history(tasks)
    return {
        str(task): [
            f"{c.at} {c.event} {c.from_state} -> {c.to_state}, attempt {c.attempt}, lease {c.lease}, {c.reason or ''}"
            for c in changes
        ]
        for task, changes in found.items()
    }
