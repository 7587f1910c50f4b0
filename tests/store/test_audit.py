"""S32: every action is on record with what it changed, in the statement that did it, and stays there."""

from __future__ import annotations

import json
from typing import Any

import asyncpg
import pytest

from dhara.domain.lifecycle import State
from dhara.errors import WrongState
from dhara.store.audit import ACTIONS, Audit
from dhara.store.queues import Queues
from dhara.store.tasks import Tasks
from tests.factories import Connection, make_task


def values(text: str | None) -> Any:
    return None if text is None else json.loads(text)


async def test_each_action_says_who_what_before_and_after(db: Connection, tasks: Tasks) -> None:
    queues, audit = Queues(db), Audit(db)
    dead = await make_task(db, State.DEAD, queue="old")
    running = await make_task(db, State.RUNNING)
    await tasks.revive(dead.id, queue="new", payload="1", by="ada")
    await tasks.request_cancel(running.id, "enough", by="bob")
    await queues.retain("old", 60, by="ada")
    await queues.pause("old", "ada")
    await queues.resume("old", by="bob")
    rows = [(one.actor, one.action, one.target, values(one.before), values(one.after)) for one in await audit.list()]
    resumed = rows.pop(0)
    assert resumed[:3] == ("bob", "queue.resume", "old")
    assert (resumed[3]["paused"], resumed[3]["paused_by"], resumed[4]) == (True, "ada", {"paused": False})
    before = {
        "status": "DEAD",
        "generation": 1,
        "queue": "old",
        "priority": 0,
        "reason": "exhausted",
        "fingerprint": "fp",
    }
    after = {"status": "PENDING", "generation": 2, "queue": "new", "priority": 0, "payload_changed": True}
    assert rows == [
        ("ada", "queue.pause", "old", {"paused": False}, {"paused": True}),
        ("ada", "queue.retention", "old", {"retention": None}, {"retention": 60}),
        ("bob", "task.cancel", str(running.id), {"status": "RUNNING"}, {"status": "RUNNING", "reason": "enough"}),
        ("ada", "task.retry", str(dead.id), before, after),
    ]
    assert {row[1] for row in rows} | {resumed[1]} <= set(ACTIONS)


async def test_what_changes_nothing_is_no_action(db: Connection, tasks: Tasks) -> None:
    done = await make_task(db, State.COMPLETED)
    assert (await tasks.request_cancel(done.id)).changed is False
    with pytest.raises(WrongState):
        await tasks.revive(done.id)
    await Queues(db).resume("never paused")
    assert await Audit(db).list() == []


@pytest.mark.parametrize(
    "statement", ["UPDATE dhara.audit_log SET actor = 'me'", "DELETE FROM dhara.audit_log", "TRUNCATE dhara.audit_log"]
)
async def test_the_log_is_append_only(db: Connection, statement: str) -> None:
    await Audit(db).record("ada", "queue.pause", "q", after={"paused": True})
    with pytest.raises(asyncpg.CheckViolationError, match="append-only"):
        await db.execute(statement)
    (row,) = await Audit(db).list()
    assert (row.actor, row.before, values(row.after)) == ("ada", None, {"paused": True})
