"""What a registry and an enqueue offer, with two workers of which one dies as a whole: all of it outlives the death."""

from __future__ import annotations

import json
import signal
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dhara import AsyncClient, State
from dhara.domain.task import Attempt
from tests import invariants
from tests.e2e.kit import SHORT, Facts, Fleet

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300, func_only=True)]

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def said(attempt: Attempt) -> list[str]:
    return [line["message"] for line in json.loads(attempt.logs or "[]")]


async def test_features_outlive_a_worker(fleet: Fleet, facts: Facts, dsn: str) -> None:
    async with AsyncClient(dsn) as dhara:
        victim = fleet.start("--concurrency", "10", module="tests.e2e.features", **SHORT)
        first = await dhara.enqueue("steady", unique_key="k", tags=["a"], traceparent=TRACE, retention=3600)
        await facts.until("SELECT progress IS NOT NULL FROM dhara.tasks")
        # The key is held by what runs, and may be waited for while its worker dies.
        assert (await dhara.enqueue("steady", unique_key="k")).id == first.id
        await facts.until("SELECT count(*) = 1 FROM dhara.workers WHERE beat_seq > 0")
        # Nobody serves its type; burying it is the work of whoever leads the maintenance.
        soon = datetime.now(UTC) + timedelta(seconds=2)
        late = await dhara.enqueue("unknown", expires_at=soon)
        debounced = await dhara.enqueue("steady", {}, delay=3600, unique_key="d", unique_for="pending")
        again = await dhara.enqueue("steady", {}, delay=1800, unique_key="d", on_conflict="reschedule")

        other = fleet.start("--concurrency", "10", module="tests.e2e.features", **SHORT)
        await facts.until("SELECT count(*) = 2 FROM dhara.workers WHERE beat_seq > 0")
        # By name and without a policy, as SQL or HTTP would: the handler's own holds when it fails.
        more: list[Any] = await dhara.enqueue_many(
            [{"type": kind} for kind in ("snoozer", "choosy") for _ in range(20)]
        )
        doomed = victim.runners
        victim.signal(signal.SIGKILL, *victim.family)
        await victim.ended()
        assert (await dhara.enqueue("steady", unique_key="k")).id == first.id, "nor is the key let go by a death"
        result = await first.result(timeout=60)
        await facts.all_final([late.id, *(handle.id for handle in more)])

        # Lifespan and middleware (it runs as a suspect now, in a process of its own), progress and log lines.
        assert result["value"] == "in the end"
        assert result["from"] not in doomed
        task = await dhara.get(first.id)
        assert (task.attempts, task.failures, task.crashes) == (2, 1, 1)
        assert (task.tags, task.traceparent, task.retention) == (("a",), TRACE, 3600)
        assert json.loads(task.progress or "") == {"percent": 40.0, "message": "nearly half"}
        attempts = await dhara.attempts(first.id)
        assert [(attempt.outcome, said(attempt)) for attempt in attempts] == [
            ("REAPED", ["around attempt 1"]),
            ("COMPLETED", ["around attempt 2"]),
        ]
        # Unique once it is final: another task. Expiry and debouncing.
        assert (await dhara.enqueue("steady", unique_key="k")).id != first.id
        buried = await dhara.get(late.id)
        assert (buried.status, buried.reason, buried.attempts) == (State.DEAD, "expired", 0)
        assert again.id == debounced.id
        moved = await dhara.get(debounced.id)
        assert 1700 < (moved.run_at - moved.created_at).total_seconds() < 1900
        # Snoozes are no failures; of the others, each exception had the policy that is its own.
        for handle in more:
            task = await dhara.get(handle.id)
            if task.type == "snoozer":
                crashed = task.crashes  # by the death, and by nothing else
                assert (task.status, task.failures) == (State.COMPLETED, crashed)
                assert json.loads(task.result or "")["value"] == crashed
            else:
                assert (task.status, task.reason) == (State.DEAD, "permanent")
                assert task.last_error == "ValueError: no"
                # The death may have come in its third attempt.
                assert (task.failures, task.crashes) in {(3, 0), (3, 1), (4, 1)}
    assert await other.stop() == 0
    assert not await invariants.violations(await facts.connection())
