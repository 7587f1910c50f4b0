"""search.py: filters and pages."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from dhara.domain.lifecycle import State
from dhara.domain.task import Task
from dhara.store import search as search_module
from dhara.store.pool import Pool
from dhara.store.search import Filter, Search
from tests.factories import Connection, make_task, make_worker


@pytest.fixture
def search(pool: Pool) -> Search:
    return Search(pool)


async def a_few(db: Connection) -> dict[str, Task]:
    worker = await make_worker(db)
    return {
        "plain": await make_task(db),
        "delayed": await make_task(db, due_in=60, tags=("red", "blue")),
        "retrying": await make_task(db, failures=1, queue="mail"),
        "running": await make_task(db, "RUNNING", type="email.send", worker=worker),
        "done": await make_task(db, "COMPLETED", worker=worker, idempotency_key="Order_17%"),
        "canceled": await make_task(db, "CANCELED"),
        "dead": await make_task(db, "DEAD", type="email.send", queue="mail", age=7200),
    }


async def test_every_filter(search: Search, db: Connection) -> None:
    made = await a_few(db)
    names = {task.id: name for name, task in made.items()}
    hour_ago = await db.fetchval("SELECT clock_timestamp() - interval '1 hour'")
    cases: list[tuple[dict[str, Any], set[str]]] = [
        ({}, set(made)),
        ({"status": (State.DEAD,)}, {"dead"}),
        ({"status": (State.DEAD, State.RUNNING)}, {"dead", "running"}),
        ({"type": "email.send"}, {"running", "dead"}),
        ({"queue": "mail"}, {"retrying", "dead"}),
        ({"queue": "mail", "type": "email.send"}, {"dead"}),
        ({"retrying": True}, {"retrying"}),
        ({"due": "ready"}, {"plain", "retrying"}),
        ({"due": "delayed"}, {"delayed"}),
        ({"worker": made["running"].locked_by}, {"running"}),
        ({"worker": uuid4()}, set()),
        ({"tag": "blue"}, {"delayed"}),
        ({"tag": "green"}, set()),
        ({"created_after": hour_ago}, set(made) - {"dead"}),
        ({"created_before": hour_ago}, {"dead"}),
        ({"q": str(made["done"].id).upper()}, {"done"}),
        ({"q": "MAIL.S"}, {"running", "dead"}),
        ({"q": "boom"}, {"retrying"}),
        ({"q": "order_17%"}, {"done"}),
        ({"q": "rder%7"}, set()),
        ({"q": "orderX17"}, set()),
        ({"q": "\\"}, set()),
        ({"type": "'; DROP TABLE dhara.tasks; --"}, set()),
    ]
    for filters, expected in cases:
        page = await search.page(Filter(**filters), limit=50)
        assert {names[task.id] for task in page.tasks} == expected, filters
        assert (page.total, page.total_is_estimate, page.next) == (len(expected), False, None), filters
        assert set(await search.some(Filter(**filters), 50)) == {made[name].id for name in expected}


async def test_pages_by_cursor_and_by_offset(search: Search, db: Connection) -> None:
    ids = [(await make_task(db)).id for _ in range(5)][::-1]
    first = await search.page(Filter(), limit=2)
    assert ([task.id for task in first.tasks], first.next, first.total) == (ids[:2], ids[1], 5)
    second = await search.page(Filter(), limit=2, after=first.next)
    # What is enqueued meanwhile does not shift the pages.
    await make_task(db)
    assert [task.id for task in second.tasks] == ids[2:4]
    last = await search.page(Filter(), limit=2, after=second.next)
    assert ([task.id for task in last.tasks], last.next) == (ids[4:], None)
    assert [task.id for task in (await search.page(Filter(), limit=2, offset=1)).tasks] == ids[:2]


async def test_exactly_a_page_has_no_next(search: Search, db: Connection) -> None:
    for _ in range(2):
        await make_task(db)
    assert (await search.page(Filter(), limit=2)).next is None


async def test_total_is_capped(search: Search, db: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "COUNT_CAP", 3)
    for expected in ((1, False), (2, False), (3, False), (3, True), (3, True)):
        await make_task(db)
        page = await search.page(Filter(), limit=1)
        assert (page.total, page.total_is_estimate) == expected
