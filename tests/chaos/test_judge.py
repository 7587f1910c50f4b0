"""The judge of chaos runs: silent on a sound run; each invariant it adds to the audit's is shown a history that breaks it."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from chaos import measure, plan, recovery, report, soak
from chaos.checker import Evidence, Notes, Run, judge, lopsided, misfired, read_notes
from chaos.faults import FAULTS
from chaos.handlers import NOTES, digest, note
from chaos.nemesis import Injection
from dhara.domain.backoff import Backoff
from dhara.domain.lifecycle import State
from dhara.domain.schedule import Spec
from dhara.domain.task import Task
from dhara.maintenance.scheduler import Scheduler
from dhara.store.pool import Pool
from dhara.store.schedules import Schedules
from tests.factories import Connection, history, make_task

Break = Callable[[Evidence], None]


def _more(evidence: Evidence, *runs: Run) -> None:
    evidence.notes = Notes([*evidence.notes.runs, *runs], evidence.notes.hashes)


def _again(evidence: Evidence, **changes: object) -> Run:
    return Run(**(vars(evidence.notes.runs[0]) | changes))


def _crowd(evidence: Evidence) -> None:
    _more(evidence, *(_again(evidence, task=uuid4(), lease=uuid4()) for _ in range(evidence.slots)))


# invariant -> what breaks it: the evidence itself, or (text) the database, $1 the task
BROKEN: dict[str, Break | str] = {
    "I1": lambda e: setattr(e, "acknowledged", {**e.acknowledged, uuid4(): "noop"}),
    "I2": lambda e: setattr(e, "asked", {}),
    "I10": "UPDATE dhara.task_history SET event = 'REAPED', reason = 'lease lost: silent', worker_id = w.id"
    " FROM dhara.workers AS w WHERE task_id = $1",
    "I11": "UPDATE dhara.task_history SET event = 'REAPED', claimed_at = at - interval '1 hour', worker_id = w.id"
    " FROM dhara.workers AS w WHERE task_id = $1",
    "I12": lambda e: _more(e, _again(e, lease=uuid4(), attempt=2)),
    "I13": lambda e: _more(e, _again(e, lease=uuid4(), attempt=2, start=5.0, end=6.0)),
    "I13 twice": lambda e: _more(e, _again(e, start=5.0, end=6.0)),
    "I14": "INSERT INTO effects (task, attempt) VALUES ($1, 1)",
    "I18": _crowd,
    "I22": lambda e: setattr(e, "hashes", {task: digest("other") for task in e.hashes}),
    "I22 handler": lambda e: setattr(e, "notes", Notes(e.notes.runs, [(e.notes.hashes[0][0], digest("other"))])),
    "I23": lambda e: setattr(e, "texts", ["connecting with canary"]),
    "I23 stored": "UPDATE dhara.tasks SET last_error = 'no canary' WHERE id = $1",
    "F8": "UPDATE dhara.tasks SET status = 'DEAD', reason = 'poison' WHERE id = $1",
}


async def _evidence(db: Connection, task: Task) -> Evidence:
    (ended,) = await history(db, task.id)
    run = Run(task.id, 1, ended["lease"], task.type, 77, 1.0, 2.0)
    return Evidence(
        acknowledged={task.id: task.type},
        hashes={task.id: digest({"n": 1})},
        asked={"k": task.type},
        notes=Notes([run], [(task.id, digest({"n": 1}))]),
        deaths=[(77, ended["at"].timestamp() - 60)],
        secrets=["canary"],
        texts=["nothing of note"],
        poison_expected=True,
    )


@pytest.mark.parametrize("name", ["none", *BROKEN])
async def test_a_run_is_judged(db: Connection, name: str) -> None:
    await db.execute("CREATE TABLE effects (task uuid NOT NULL, attempt int NOT NULL)")
    await db.execute(
        "INSERT INTO dhara.workers (id, pid, slots, host, version, types, queues)"
        " VALUES (gen_random_uuid(), 77, 16, 'h', 'v', '{}', '{}')"
    )
    task = await make_task(db, State.COMPLETED, type="effect", payload='{"n": 1}', idempotency_key="k")
    await db.execute("INSERT INTO effects VALUES ($1, 1)", task.id)
    evidence = await _evidence(db, task)
    breaking = BROKEN.get(name)
    if isinstance(breaking, str):
        await db.execute("SET session_replication_role = replica")
        await db.execute(breaking, task.id)
    elif breaking is not None:
        breaking(evidence)
    verdict = await judge(db, evidence)
    assert (name == "none") == (not verdict.violations)
    if name != "none":
        assert name.split()[0] in verdict.violations, verdict.violations
        assert verdict.lost == (name == "I1")
    if name == "I14":
        assert any("COMPLETED" in line for line in verdict.histories[str(task.id)])


def test_overlaps_are_excused_where_a_side_was_silenced_but_never_for_exclusive() -> None:
    from chaos.checker import overlapping

    def run(attempt: int, pid: int, type: str) -> Run:
        return Run(UUID(int=1), attempt, uuid4(), type, pid, float(attempt), attempt + 5.0)

    for type, excused in (("noop", 0), ("exclusive", 1)):
        assert len(overlapping([run(1, 10, type), run(2, 20, type)], [10])) == excused
    assert len(overlapping([run(1, 10, "noop"), run(2, 20, "noop")], [30])) == 1
    # Attempt 1 runs from 1 to 6, attempt 2 from 2 on. Whoever stands still cannot be stopped; whoever goes on must be.
    exclusive = [run(1, 10, "exclusive"), run(2, 20, "exclusive")]
    for stop, broken in (((10, 1.5, 5.5), 0), ((10, 1.5, 3.0), 1), ((10, 2.5, 5.5), 1), ((20, 1.5, 5.5), 1)):
        assert len(overlapping(exclusive, [10], [stop])) == broken


def test_notes_survive_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NOTES, str(tmp_path))
    first, second = ({"task": str(uuid4()), "attempt": 1, "lease": str(uuid4()), "type": "noop"} for _ in range(2))
    note(what="start", **first)
    note(what="start", **second)
    note(what="end", **first)
    runs = {str(run.task): run for run in read_notes(tmp_path).runs}
    assert runs[str(first["task"])].end is not None
    assert runs[str(second["task"])].end is None
    assert runs[str(first["task"])].pid == os.getpid()


def test_a_seed_gives_one_schedule() -> None:
    rows = ["F1", "F16"]
    assert plan.plan(7, rows, 120) == plan.plan(7, rows, 120) != plan.plan(8, rows, 120)
    assert plan.mixed(7, rows, 600) == plan.mixed(7, rows, 600) != plan.mixed(8, rows, 600)
    steps = plan.plan(7, rows, 120, pace=2)
    assert {step.row for step in steps} == set(rows)
    assert [step.at for step in steps] == sorted(step.at for step in steps)
    assert len(steps) > 1.8 * len(plan.plan(7, rows, 120))


def test_recovery_and_the_ledger(tmp_path: Path) -> None:
    """100/s, nothing for three seconds from second 10 on, then 100/s again."""
    times = [n / 100 for n in range(3_000) if not 10 <= n / 100 < 13]
    injection = Injection("F1", "kill -9", start=10.0, end=10.1)
    (figures,) = recovery.recoveries(times, [injection], 100.0, 30.0).values()
    assert 2.8 <= figures["worst"] <= 3.1
    ledger = tmp_path / "ledger.json"
    base = {"acknowledged": 5, "lost": 0, "starts": 6, "unexplained": 0, "violations": 0, "postgres": "18.6"}
    for injected in (3, 4):
        report.add_to_ledger(ledger, base | {"rows": {"F1": {"injected": injected, **figures}}})
    import json

    totals = report.totals(json.loads(ledger.read_text()))
    assert (totals["rows"], totals["kinds"], totals["acknowledged"]) == ({"F1": 7}, {"kill -9": 7}, 10)
    table = report.ledger_table(json.loads(ledger.read_text()))
    assert FAULTS["F1"].about in table
    assert "**missed**" not in table
    assert "7 on PostgreSQL 18.6" in table
    # A run that had priority decides; a fault that measures by itself says whether its bar is met.
    slow = {"injected": 1, "measured": 1, "median": 4.0, "worst": 4.0}
    report.add_to_ledger(ledger, base | {"rows": {"F1": slow}, "priority": True})
    told = {"injected": 2, "told": [{"measured": "so", "met": True}, {"measured": "not so", "met": False}]}
    report.add_to_ledger(ledger, base | {"rows": {"F9": told}})
    table = report.ledger_table(json.loads(ledger.read_text()))
    assert "at worst 4.0 s, with priority | **missed** |" in table
    assert "not so | **missed** (1 of 2) |" in table
    # Figures are told of PostgreSQL 18, of the size that the bar asks for; what was missed elsewhere is told below.
    for size, met in (("full", False), ("quick", True)):
        held = {"injected": 1, "told": [{"measured": f"{size} measured", "met": met}]}
        report.add_to_ledger(ledger, base | {"rows": {"F23": held}, "size": size})
    report.add_to_ledger(ledger, base | {"rows": {"F9": told, "F16": {"injected": 2, **slow}}, "postgres": "15.18"})
    report.add_to_ledger(ledger, base | {"rows": {"F9": told}, "pooled": True})
    cuts = {"F20": {"injected": 5, "statements": {"claim": 2, "beat": 3}}, "F21": {"injected": 7}}
    report.add_to_ledger(ledger, base | {"rows": cuts})
    table = report.ledger_table(json.loads(ledger.read_text()))
    assert "| 6 | 2 | 2 | not so | **missed** (1 of 2) |" in table
    assert "full measured | **missed** |" in table
    assert "- F9 on PostgreSQL 15: not so" in table
    assert "- F9 behind PgBouncer: not so" in table
    assert "| beat | 3 | 0 |" in table
    assert "| not told apart, in earlier runs | 0 | 7 |" in table


async def test_ghost_claims_are_timed_by_the_log(db: Connection) -> None:
    """F20: from the claim whose answer was lost, while they were, to its release; nothing else is one."""
    task = await make_task(db, State.COMPLETED)
    ended = "UPDATE dhara.task_history SET event = 'RELEASED', reason = $1, at = claimed_at + interval '3 s'"
    claimed = await db.fetchval(
        "SELECT extract(epoch FROM claimed_at)::float8 FROM dhara.task_history WHERE task_id = $1", task.id
    )
    await db.execute("SET session_replication_role = replica")
    await db.execute(ended, "drained")
    assert await measure.ghosts(db, [(claimed - 1, claimed + 1)]) == []
    await db.execute(ended, "ghost claim: its answer was lost")
    assert await measure.ghosts(db, [(claimed - 9, claimed - 8), (claimed - 1, claimed + 1)]) == [3.0]
    assert await measure.ghosts(db, [(claimed + 1, claimed + 2)]) == []


# breaks what a schedule should have done, $1 a task that it enqueued
MISFIRED = {
    "a fire without its task": "DELETE FROM dhara.tasks WHERE id = $1",
    "a fire at no time of its schedule": "UPDATE dhara.schedule_fires SET fire_at = fire_at + interval '1 s' WHERE task_id = $1",
    "a task of a schedule without a fire": "DELETE FROM dhara.schedule_fires WHERE task_id = $1",
}


@pytest.mark.parametrize("what", ["none", *MISFIRED])
async def test_fires_are_compared_with_their_schedule(db: Connection, pool: Pool, what: str) -> None:
    """I16."""
    await Schedules(db).create(Spec(name="s", type="t", every=60.0, missed="catch_up"), "chaos")
    await db.execute(
        "UPDATE dhara.schedules SET anchor = anchor - interval '200 s', next_at = next_at - interval '200 s'"
    )
    await Scheduler(pool).tick()
    fires = await Schedules(db).fires("s")
    assert len(fires) == 3
    assert await misfired(db) == []
    if what != "none":
        await db.execute("SET session_replication_role = replica")
        await db.execute(MISFIRED[what], fires[1].task_id)
    found = {row["what"] for row in await misfired(db)}
    assert (what in found) == (what != "none")
    # Where the server's clock has jumped, times may be missing; doubles may not.
    assert what != "a task of a schedule without a fire" or await misfired(db, gaps=True)


def test_waits_are_spread_evenly() -> None:
    """I15: those of the backoff pass; without jitter, with half of it, or with a hump they do not."""
    rng = random.Random(15)
    backoff = Backoff(base=8.0)
    sound = [backoff.delay(1, rng) / 8.0 for _ in range(1_000)]
    assert lopsided(sound) == []
    for broken in (
        [1.0] * 1_000,
        [0.75 + n / 2_000 for n in range(1_000)],
        [0.5 + rng.betavariate(2, 2) for _ in sound],
    ):
        assert lopsided(broken)
    assert lopsided(broken[:999]) == [], "too few to say"


async def test_what_a_failover_took_back_is_named_and_not_lost(db: Connection) -> None:
    await db.execute("CREATE TABLE effects (task uuid NOT NULL, attempt int NOT NULL)")
    gone, lost = uuid4(), uuid4()
    run = Run(gone, 1, uuid4(), "noop", 77, time.monotonic(), None)
    evidence = Evidence(
        acknowledged={gone: "noop", lost: "noop"}, hashes={}, asked={}, notes=Notes([run], []),
        times={gone: time.time(), lost: time.time() - 60}, rewound=[(time.time() - 5, time.time() + 5)],
    )  # fmt: skip
    verdict = await judge(db, evidence)
    assert verdict.missing == [str(gone)]
    assert [row["task_id"] for row in verdict.violations["I1"]] == [lost]
    assert "I13" not in verdict.violations


def _samples(memory: Callable[[float], float], files: Callable[[float], int]) -> list[soak.Sample]:
    rng = random.Random(1)
    return [soak.Sample(at, memory(at) + rng.uniform(-0.3, 0.3), files(at)) for at in range(0, 3_600, 5)]


def test_a_soak_finds_what_leaks() -> None:
    """F60: each of its bars, shown something that misses it."""
    lives = {
        "sound": _samples(lambda at: 80.0, lambda at: 30),
        "leaks": _samples(lambda at: 80.0 + 3.0 * at / 3_600, lambda at: 30),
        "forgets to close": _samples(lambda at: 80.0, lambda at: 30 + int(at / 900)),
        "young": _samples(lambda at: 80.0, lambda at: 30)[-100:],
    }
    found = {row["process"]: row["met"] for row in soak.judge_processes(lives, 0, 3_600)}
    assert found == {"sound": True, "leaks": False, "forgets to close": False}

    def tables(dead: Callable[[int], int], width: Callable[[int], int]) -> bool:
        rows = [soak.Tables(n, dead(n), 1_000 * width(n), 1_000) for n in range(100)]
        return bool(soak.judge_tables(rows, 0, 100)["met"])

    short = soak.judge_tables([soak.Tables(n, 6_000, 700, None) for n in range(100)], 0, 100)
    shown = {"processes": [], "seconds": 100, "tables": short, "delays": {"p99": [0.1, 0.1], "met": True}}
    assert "too short" in report.soak_table(shown)[-1] and not short["met"]
    assert tables(lambda n: 6_000, lambda n: 700)
    assert not tables(lambda n: 6_000 + 200 * n, lambda n: 700)
    assert not tables(lambda n: 6_000, lambda n: 700 + 2 * n)
    slow = [(float(n), 0.03 if n < 500 else 0.05) for n in range(1_000)]
    assert not soak.judge_delays(slow, [])["met"]
    assert soak.judge_delays(slow, [(500.0, 1_000.0)])["met"], "what a fault has hurt does not count"
