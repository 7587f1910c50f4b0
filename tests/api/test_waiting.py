"""Long polls: one poller for all, bounded, gone when nobody waits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import httpx
import pytest

from dhara.api.asgi import Api
from dhara.api.exchange import ClientGone
from dhara.api.problems import Refused
from dhara.api.waiters import Waiters
from dhara.domain.lifecycle import Event, State
from dhara.store.pool import Pool
from dhara.store.tasks import Tasks
from tests import factories
from tests.waiting import Signal, eventually


class Watched(Tasks):
    """The real store; tells of every look."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool)
        self.looked = Signal("a look")

    async def final(self, ids: Sequence[UUID]) -> set[UUID]:
        self.looked.fire(list(ids))
        return await super().final(ids)


@pytest.fixture
def store(pool: Pool) -> Watched:
    return Watched(pool)


async def test_it_returns_when_the_task_is_final(client: httpx.AsyncClient, pool: Pool, app: Api) -> None:
    task = await factories.make_task(pool, State.RUNNING)
    waiting = asyncio.create_task(client.get(f"/api/v1/tasks/{task.id}/wait?timeout=20"))
    await eventually(lambda: len(app.parts.waiters) == 1)
    await Tasks(pool).settle([factories.settlement(task, Event.COMPLETED, result="7")])
    answer = await asyncio.wait_for(waiting, 30)
    assert (answer.status_code, answer.json()["result"]) == (200, 7)
    assert len(app.parts.waiters) == 0


async def test_all_share_one_look(store: Watched, pool: Pool) -> None:
    waiters = Waiters(store)
    tasks = [await factories.make_task(pool) for _ in range(20)]
    waiting = [asyncio.create_task(waiters.wait(task.id, 20)) for task in tasks for _ in range(3)]
    await eventually(lambda: len(waiters) == 60)
    (first, *_) = await store.looked.wait()
    assert set(first) == {task.id for task in tasks}
    for task in tasks:
        await store.request_cancel(task.id)
    await asyncio.wait_for(asyncio.gather(*waiting), 30)
    assert len(waiters) == 0
    seen = store.looked.fired
    await eventually(lambda: waiters._poller is None)
    assert store.looked.fired == seen


async def test_the_time_is_over(store: Watched, pool: Pool) -> None:
    task = await factories.make_task(pool)
    await asyncio.wait_for(Waiters(store).wait(task.id, 0.05), 30)
    await asyncio.wait_for(Waiters(store).wait(task.id, 0), 30)
    assert (await store.get(task.id)).status is State.PENDING


async def test_too_many_are_refused(store: Watched, pool: Pool) -> None:
    waiters = Waiters(store, most=1)
    task = await factories.make_task(pool)
    first = asyncio.create_task(waiters.wait(task.id, 20))
    await eventually(lambda: len(waiters) == 1)
    with pytest.raises(Refused) as refused:
        await waiters.wait(task.id, 20)
    assert (refused.value.status, refused.value.code) == (503, "overloaded")
    waiters.close()
    await asyncio.wait_for(first, 30)


async def test_a_client_who_hangs_up_waits_no_longer(store: Watched, pool: Pool) -> None:
    waiters = Waiters(store)
    task = await factories.make_task(pool)
    messages: list[dict[str, Any]] = [{"type": "http.request"}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        return messages.pop(0)

    with pytest.raises(ClientGone):
        await asyncio.wait_for(waiters.wait(task.id, 20, receive), 30)
    assert len(waiters) == 0


async def test_closing_lets_everybody_go(store: Watched, pool: Pool) -> None:
    waiters = Waiters(store)
    task = await factories.make_task(pool)
    waiting = asyncio.create_task(waiters.wait(task.id, 60))
    await eventually(lambda: len(waiters) == 1)
    waiters.close()
    await asyncio.wait_for(waiting, 30)
    await asyncio.wait_for(waiters.wait(task.id, 60), 30)


async def test_an_outage_is_outlasted(store: Watched, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    waiters = Waiters(store)
    task = await factories.make_task(pool)
    real, broken = store.final, Signal("a failing look")

    async def failing(ids: Sequence[UUID]) -> set[UUID]:
        broken.fire()
        monkeypatch.setattr(store, "final", real)
        raise ConnectionResetError("gone")

    monkeypatch.setattr(store, "final", failing)
    waiting = asyncio.create_task(waiters.wait(task.id, 20))
    await broken.wait()
    await store.request_cancel(task.id)
    await asyncio.wait_for(waiting, 30)
