"""What an enqueue does to the task that holds its unique key, by the key's scope and the holder's state; in SQL alike."""

from __future__ import annotations

import pytest

from dhara.domain.lifecycle import State
from dhara.domain.task import Enqueued
from dhara.store.tasks import Tasks
from tests.factories import Connection, make_task, new_task, row

SCOPES: list[str | float] = ["pending", "open", 3600.0]
# Which states of the holder keep others out.
HOLDS = {
    "pending": {State.PENDING},
    "open": {State.PENDING, State.RUNNING},
    3600.0: set(State),
}


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("on_conflict", ["keep", "replace", "reschedule"])
@pytest.mark.parametrize("way", ["store", "sql"])
async def test_who_holds_a_unique_key(
    db: Connection, tasks: Tasks, scope: str | float, on_conflict: str, way: str
) -> None:
    for state in State:
        key = f"{state} {scope}"
        held = await make_task(db, state, unique_key=key, unique_for=scope, payload='{"old": 1}')
        if way == "store":
            new = new_task(unique_key=key, unique_for=scope, on_conflict=on_conflict, payload='{"new": 1}')
            (answer,) = await tasks.enqueue([new])
            assert isinstance(answer, Enqueued)
            id, created = answer.task.id, answer.created
        else:
            query = (
                "SELECT task_id, created FROM dhara.enqueue('t', '{\"new\": 1}', unique_key => $1, unique_for => $2,"
                " on_conflict => $3)"
            )
            found = await db.fetchrow(query, key, str(scope), on_conflict)
            assert found is not None
            id, created = found
        holds = state in HOLDS[scope]
        assert (id == held.id, created) == (holds, not holds), state
        replaced = holds and state is State.PENDING and on_conflict == "replace"
        assert (await row(db, held.id))["payload"] == ('{"new": 1}' if replaced else '{"old": 1}'), state
        assert (await row(db, held.id))["status"] == state
