"""stats/*.sql: flows, histograms, gauges."""

from __future__ import annotations

import pytest

from dhara.domain.lifecycle import State
from dhara.store.stats import Fleet, Flow, Histogram, Stats, by_status
from tests.factories import Connection, make_task, make_worker


async def test_flows_and_states(stats: Stats, db: Connection) -> None:
    for queue in ("a", "b"):
        await make_task(db, "COMPLETED", queue=queue)
    await make_task(db, "RUNNING")
    found = await stats.flows()
    assert {(f.event, f.from_state, f.to_state): f.n for f in found} == {
        ("ENQUEUED", None, "PENDING"): 3,
        ("CLAIMED", "PENDING", "RUNNING"): 3,
        ("COMPLETED", "RUNNING", "COMPLETED"): 2,
    }
    assert by_status(found) == {
        State.PENDING: 0,
        State.RUNNING: 1,
        State.COMPLETED: 2,
        State.CANCELED: 0,
        State.DEAD: 0,
    }
    assert by_status([Flow("SETTLE_REJECTED", None, None, 3)]) == dict.fromkeys(State, 0)


async def test_ready(stats: Stats, db: Connection) -> None:
    for due_in in (-5, 0, 60, 70, 80):
        await make_task(db, due_in=due_in)
    await make_task(db, "COMPLETED")
    assert await stats.ready() == (2, 3)
    assert await stats.ready(cap=2) == (2, 2)


async def test_fleet(stats: Stats, db: Connection) -> None:
    assert await stats.fleet() == Fleet(0, 0, 0, 0.0)
    await make_worker(db, slots=10, beats=1)
    await make_worker(db, slots=5, state="draining", beat_age=60)
    await make_worker(db, slots=5, state="lost")
    fleet = await stats.fleet()
    assert (fleet.workers, fleet.slots, fleet.running) == (2, 15, 0)
    assert fleet.beat_age == pytest.approx(60, abs=5)


async def test_observations_add_up(stats: Stats) -> None:
    wait, run = Histogram("wait", "q", "t", 1.5, [1, 0, 2]), Histogram("run", "q", "t", 3.0, [0, 1, 0])
    await stats.observe([wait, run])
    await stats.observe([])
    await stats.observe([Histogram("wait", "q", "t", 0.5, [0, 5, 1])])
    assert await stats.histograms() == [run, Histogram("wait", "q", "t", 2.0, [1, 5, 3])]
    assert await stats.histograms(most=1) == [run]


async def test_clock(stats: Stats, db: Connection) -> None:
    clock = await stats.clock()
    assert abs((clock.now - await db.fetchval("SELECT clock_timestamp()")).total_seconds()) < 5
    assert (clock.standby, clock.read_only) == (False, False)


async def test_origin_is_one_per_schema(stats: Stats, db: Connection) -> None:
    from dhara.errors import SchemaError
    from dhara.store import migrate

    await migrate.up(db, "other")
    one, other = await stats.origin(), await Stats(db, "other").origin()
    assert one == await stats.origin() != other
    with pytest.raises(SchemaError):
        await Stats(db, "missing").origin()
