"""S29: the database itself refuses every move that lifecycle.TRANSITIONS does not list, whoever tries."""

from __future__ import annotations

import itertools
from typing import Any

import asyncpg
import pytest

from dhara.domain.lifecycle import TRANSITIONS, State
from tests.factories import Connection, make_task, row

# A state may stay what it is: progress, cancel requests, times.
ALLOWED = {(source, target) for source, moves in TRANSITIONS.items() for target in moves.values()}
ALLOWED |= {(state, state) for state in State}
REFUSED = sorted(set(itertools.product(State, State)) - ALLOWED)


def companions(source: State, target: State) -> str:
    """What a legal move changes besides the status, so that only the status can be the reason of a refusal."""
    if (source, target) == (State.PENDING, State.RUNNING):
        return ", lease = gen_random_uuid(), attempts = attempts + 1"
    if target is State.PENDING and source is State.DEAD:
        return ", generation = generation + 1, lease = NULL"
    return ""


async def refused(db: Connection, query: str, *args: Any) -> None:
    with pytest.raises(asyncpg.CheckViolationError, match="dhara: ") as caught:
        await db.execute(query, *args)
    assert caught.value.hint


def test_no_pair_of_states_is_left_out() -> None:
    assert len(ALLOWED) + len(REFUSED) == len(State) ** 2
    assert len(REFUSED) == 12


@pytest.mark.parametrize(("source", "target"), REFUSED)
async def test_refused(db: Connection, source: State, target: State) -> None:
    task = await make_task(db, source)
    before = await row(db, task.id)
    extras = ("", companions(source, target), ", lease = gen_random_uuid(), attempts = attempts + 1")
    for extra in {*extras, ", generation = generation + 1"}:
        await refused(db, f"UPDATE dhara.tasks SET status = $2{extra} WHERE id = $1", task.id, target)
    assert await row(db, task.id) == before


@pytest.mark.parametrize(("source", "target"), sorted(ALLOWED))
async def test_allowed(db: Connection, source: State, target: State) -> None:
    task = await make_task(db, source)
    await db.execute(f"UPDATE dhara.tasks SET status = $2{companions(source, target)} WHERE id = $1", task.id, target)
    assert (await row(db, task.id))["status"] == target


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("status", ["", "pending", "FOO", "running "])
async def test_unknown_states(db: Connection, state: State, status: str) -> None:
    task = await make_task(db, state)
    await refused(db, "UPDATE dhara.tasks SET status = $2 WHERE id = $1", task.id, status)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize(
    "change",
    [
        "attempts = attempts - 1",
        "attempts = attempts + 1",
        "generation = generation - 1",
        "generation = generation + 1",
        "id = gen_random_uuid()",
    ],
)
async def test_counters_that_only_moves_may_change(db: Connection, state: State, change: str) -> None:
    task = await make_task(db, state, failures=1)
    await refused(db, f"UPDATE dhara.tasks SET {change} WHERE id = $1", task.id)


@pytest.mark.parametrize("target", [State.RUNNING, State.COMPLETED, State.PENDING, State.CANCELED, State.DEAD])
@pytest.mark.parametrize("lease", ["gen_random_uuid()", "NULL"])
async def test_a_lease_cannot_be_swapped(db: Connection, target: State, lease: str) -> None:
    task = await make_task(db, "RUNNING")
    await refused(db, f"UPDATE dhara.tasks SET status = $2, lease = {lease} WHERE id = $1", task.id, target)


@pytest.mark.parametrize(
    "change",
    [
        "lease = NULL, attempts = attempts + 1",
        "attempts = attempts + 1",  # the lease of the attempt before
        "lease = gen_random_uuid()",
        "lease = gen_random_uuid(), attempts = attempts + 2",
        "lease = gen_random_uuid(), attempts = attempts + 1, generation = generation + 1",
    ],
)
async def test_a_claim_needs_a_new_lease_and_the_next_attempt(db: Connection, change: str) -> None:
    task = await make_task(db, failures=1)
    await refused(db, f"UPDATE dhara.tasks SET status = 'RUNNING', {change} WHERE id = $1", task.id)


@pytest.mark.parametrize("generation", ["generation", "generation + 2", "1"])
async def test_a_revival_needs_the_next_generation(db: Connection, generation: str) -> None:
    task = await make_task(db, "DEAD", generation=2)
    await refused(db, f"UPDATE dhara.tasks SET status = 'PENDING', generation = {generation} WHERE id = $1", task.id)


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        ("status", "'RUNNING'"),
        ("status", "'COMPLETED'"),
        ("status", "'CANCELED'"),
        ("status", "'DEAD'"),
        ("status", "'FOO'"),
        ("attempts", "1"),
        ("generation", "2"),
        ("lease", "gen_random_uuid()"),
        ("priority", "101"),
        ("priority", "-1"),
        ("max_retries", "21"),
        ("max_retries", "-1"),
        ("queue", "''"),
        ("queue", "repeat('q', 101)"),
    ],
)
async def test_inserts(db: Connection, columns: str, values: str) -> None:
    query = f"INSERT INTO dhara.tasks (id, type, run_at, {columns}) VALUES (gen_random_uuid(), 't', now(), {values})"
    await refused(db, query)


@pytest.mark.parametrize("type", ["", "t" * 101])
async def test_inserts_of_types(db: Connection, type: str) -> None:
    await refused(db, "INSERT INTO dhara.tasks (id, type, run_at) VALUES (gen_random_uuid(), $1, now())", type)


async def test_upserts_and_merges_are_moves_too(db: Connection) -> None:
    task = await make_task(db, "COMPLETED")
    await refused(
        db,
        "INSERT INTO dhara.tasks (id, type, run_at) VALUES ($1, 't', now())"
        " ON CONFLICT (id) DO UPDATE SET status = 'PENDING'",
        task.id,
    )
    await refused(
        db,
        "MERGE INTO dhara.tasks AS t USING (SELECT $1::uuid AS id) AS s ON t.id = s.id"
        " WHEN MATCHED THEN UPDATE SET status = 'PENDING'",
        task.id,
    )


@pytest.mark.parametrize("state", State)
async def test_deletes(db: Connection, state: State) -> None:
    task = await make_task(db, state)
    if state in (State.PENDING, State.RUNNING):
        await refused(db, "DELETE FROM dhara.tasks WHERE id = $1", task.id)
    else:
        assert await db.execute("DELETE FROM dhara.tasks WHERE id = $1", task.id) == "DELETE 1"


@pytest.mark.parametrize("table", ["tasks", "task_history"])
async def test_truncates(db: Connection, table: str) -> None:
    await make_task(db, "COMPLETED")
    await refused(db, f"TRUNCATE dhara.{table}")
    await refused(db, f"TRUNCATE dhara.{table} CASCADE")


async def test_one_bad_row_refuses_the_whole_statement(db: Connection) -> None:
    pending, done = await make_task(db), await make_task(db, "COMPLETED")
    await refused(db, "UPDATE dhara.tasks SET status = 'CANCELED'")
    assert [(await row(db, task.id))["status"] for task in (pending, done)] == ["PENDING", "COMPLETED"]


async def test_the_message_says_what_and_what_to_do(db: Connection) -> None:
    task = await make_task(db, "COMPLETED")
    with pytest.raises(asyncpg.CheckViolationError) as caught:
        await db.execute("UPDATE dhara.tasks SET status = 'PENDING'")
    assert str(task.id) in str(caught.value)
    assert "COMPLETED to PENDING" in str(caught.value)
    assert "docs/reference/states.md" in (caught.value.hint or "")
