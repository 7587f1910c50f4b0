"""`dhara audit`: silent where all holds; what breaks an invariant, beside the history of its task."""

from __future__ import annotations

from dhara import State
from dhara.store.invariants import CHECKS
from dhara.store.pool import Pool
from tests.cli.conftest import Dhara
from tests.cli.test_commands import arrange, task_in


def test_a_sound_database(dhara: Dhara, dsn: str) -> None:
    for state in State:
        task_in(dsn, state)
    answer = dhara.json("audit")
    assert answer["ok"]
    assert [check["check"] for check in answer["checks"]] == [check.statement for check in CHECKS]
    assert [check["check"] for check in answer["checks"] if not check["asked"]] == ["quiet", "delays"]


def test_violations_beside_their_history(dhara: Dhara, dsn: str) -> None:
    task = task_in(dsn, State.COMPLETED)
    task_in(dsn, State.PENDING)

    async def break_it(pool: Pool) -> None:
        async with pool.acquire() as connection:
            await connection.execute("SET session_replication_role = replica")
            await connection.execute("UPDATE dhara.tasks SET status = 'DEAD', attempts = 3 WHERE id = $1", task.id)
            await connection.execute("RESET session_replication_role")

    arrange(dsn, break_it)
    answer = dhara.json("audit", "--quiet", code=1)
    broken = {check["check"]: check["shown"] for check in answer["checks"] if check["violations"]}
    assert set(broken) == {"quiet", "paths", "attempts", "states"}
    assert [change["event"] for change in broken["paths"][0]["history"]] == ["CLAIMED", "COMPLETED"]
    shown = dhara("audit", "--quiet", code=1).stdout
    assert "log and row differ" in shown
    assert f"task {task.id}" in shown
    assert shown.count("CLAIMED") >= 2
    assert "VIOLATION" in shown
