"""Many workers on one database, and what a worker leaves behind."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path

import pytest

from dhara.store.tasks import Tasks
from tests import invariants
from tests.e2e.kit import Facts, Fleet, children, is_keeper
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300, func_only=True)]


@pytest.mark.timeout(600, func_only=True)
async def test_eight_workers_and_twenty_thousand_tasks(alone: None, fleet: Fleet, facts: Facts) -> None:
    """Small slots, everything mixed, a cancellation here and there, one runner killed: I1 to I9 by query."""
    rng = random.Random(4711)
    mix = [("noop", 14_500), ("sync.noop", 3_000), ("flaky", 1_200), ("fail", 800), ("sleep", 400), ("crash.once", 2)]
    ids = []
    for type, n in mix:
        payload = {"seconds": 0.02} if type == "sleep" else {}
        for part in range(4):
            more = {"queue": f"q{part}", "priority": rng.choice([0, 0, 50]), "max_retries": 2}
            ids += await facts.enqueue(type, payload, times=n // 4 if type != "crash.once" else part % 2, **more)
    workers = [fleet.start("--concurrency", "5", base_backoff="100ms") for _ in range(7)]
    workers.append(fleet.start("--queue", "q1=3", "--queue", "q3=2", "--concurrency", "5", base_backoff="100ms"))
    await facts.until("SELECT count(*) > 2000 FROM dhara.tasks WHERE status = 'COMPLETED'", timeout=180)
    workers[3].signal(signal.SIGKILL, *workers[3].runners)
    tasks = Tasks(await facts.connection())
    for id in rng.sample(ids, 100):
        await tasks.request_cancel(id)
    await facts.all_final(timeout=180)
    found = await invariants.violations(await facts.connection(), acknowledged=ids, asked=ids, quiet=True)
    assert not found
    # I13: every start beyond the first is explained by an event of the history.
    starts = await facts.one("SELECT count(*) FROM dhara.task_logs WHERE event = 'CLAIMED'")
    started = await facts.one("SELECT count(*) FROM dhara.tasks WHERE attempts > 0")
    back = ("RETRIED", "SNOOZED", "RELEASED", "REAPED")
    explained = await facts.one("SELECT count(*) FROM dhara.task_logs WHERE event = ANY ($1)", list(back))
    # What went back and was canceled before its next claim has been explained in vain.
    canceled = "SELECT count(*) FROM dhara.task_logs JOIN dhara.tasks ON tasks.id = task_id"
    vain = await facts.one(f"{canceled} WHERE event = 'CANCELED' AND from_state = 'PENDING' AND attempts > 0")
    assert starts == started + explained - vain
    states = await facts.states()
    assert sum(states.values()) == len(ids)
    dead = await facts.rows("SELECT type, reason, count(*) FROM dhara.tasks WHERE status = 'DEAD' GROUP BY 1, 2")
    assert {row[:2] for row in dead} == {("fail", "exhausted")}
    assert (
        len(
            {
                row[0]
                for row in await facts.rows("SELECT DISTINCT worker_id FROM dhara.task_logs WHERE event = 'COMPLETED'")
            }
        )
        >= 8
    )
    for worker in workers:
        worker.signal(signal.SIGTERM)
    assert [await worker.ended() for worker in workers] == [0] * 8


async def test_two_processes_share_one_keeper(fleet: Fleet, facts: Facts, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    worker = fleet.start("--concurrency", "4", "--processes", "2")
    await facts.until("SELECT count(*) = 2 FROM dhara.workers WHERE beat_seq > 0")
    assert len(worker.keepers) == 1
    first, second = sorted(worker.runners)
    await facts.enqueue("gate", {"path": str(gate)}, times=8)
    await facts.begun(8)
    by_pid = await facts.rows("SELECT pid, slots FROM dhara.workers ORDER BY pid")
    assert by_pid == [(first, 4), (second, 4)]
    worker.signal(signal.SIGKILL, first)
    await eventually(lambda: len(set(worker.runners) - {first}) == 2)
    gate.touch()
    await facts.all_final()
    assert await facts.states() == {"COMPLETED": 8}
    assert await facts.events() == {"REAPED": 4}
    assert second in worker.runners
    assert await facts.one("SELECT max(crashes) FROM dhara.tasks") == 1
    assert await worker.stop() == 0


async def test_queues_with_slots_of_their_own(fleet: Fleet, facts: Facts, tmp_path: Path) -> None:
    """A queue never runs more than its slots, and fills them all the time while it has work."""
    poll = 3.0  # so long that what waits for a poll is told from what waits for a processor
    worker = fleet.start("--queue", "mail=3", "--queue", "reports=1", poll_interval=f"{poll}s")
    await facts.until("SELECT count(*) = 1 FROM dhara.workers WHERE beat_seq > 0")
    file = tmp_path / "effects"
    mail = await facts.enqueue("effect", {"path": str(file), "seconds": 0.1}, times=60, queue="mail")
    reports = await facts.enqueue("effect", {"path": str(file), "seconds": 0.3}, times=3, queue="reports")
    other = await facts.enqueue("noop", times=3, queue="other")
    await facts.all_final(mail + reports)
    spans = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(spans) == 63
    for queue, slots in (("mail", 3), ("reports", 1)):
        mine = [span for span in spans if span["queue"] == queue]
        most = max(sum(s["start"] <= at["start"] < s["end"] for s in mine) for at in mine)
        assert most == slots
    starts, ends = [s["start"] for s in spans], [s["end"] for s in spans]
    assert max(ends) - min(starts) < 60 / 3 * poll / 2, "slots stood idle until a poll"
    assert await facts.one("SELECT count(*) FROM dhara.tasks WHERE id = ANY ($1) AND status = 'PENDING'", other) == 3
    assert await worker.stop() == 0


async def test_the_shape_of_a_worker(fleet: Fleet, facts: Facts) -> None:
    """One keeper, one runner, its nursery; no zombies, no secrets on a command line, handlers' children are awaited."""
    worker = fleet.start("--concurrency", "3")
    await facts.until("SELECT count(*) = 1 FROM dhara.workers WHERE beat_seq > 0")
    await facts.enqueue("spawn", times=10)
    await facts.enqueue("sync.noop", times=10)
    await facts.all_final()
    assert await facts.states() == {"COMPLETED": 20}
    assert sorted(worker.family) == sorted(fleet.left()), "no zombies, no strangers"
    assert [is_keeper(pid) for pid in children(worker.pid)].count(True) == 1
    for pid in worker.family:
        with open(f"/proc/{pid}/cmdline") as file:
            assert "postgresql://" not in file.read()
    assert await worker.stop() == 0
    assert fleet.left() == []
