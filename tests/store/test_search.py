"""search.py: filters and pages."""

from __future__ import annotations

import base64
import json
import random
import time
from typing import Any
from uuid import UUID, uuid4

import pytest

from dhara.domain.ids import IdSource
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
        "delayed": await make_task(db, due_in=60, tags=("red", "blue"), payload='{"to": "Ann_1@example.org"}'),
        "retrying": await make_task(db, failures=1, queue="mail"),
        "running": await make_task(db, "RUNNING", type="email.send", worker=worker, payload=_long("ann_1")),
        "done": await make_task(db, "COMPLETED", worker=worker, idempotency_key="Order_17%"),
        "canceled": await make_task(db, "CANCELED"),
        "dead": await make_task(db, "DEAD", type="email.send", queue="mail", age=7200),
    }


def _long(text: str) -> str:
    """A payload that is too long to be searched, whatever the database's compression makes of it."""
    noise = base64.b64encode(random.Random(7).randbytes(2 * search_module.PAYLOAD_SEARCHED)).decode()
    return json.dumps([text, noise])


async def followed(search: Search, wanted: Filter) -> list[UUID]:
    """The ids of all pages, in their order."""
    ids: list[UUID] = []
    after: UUID | None = None
    while True:
        page = await search.page(wanted, limit=2, after=after)
        ids += [task.id for task in page.tasks]
        if page.next is None:
            return ids
        after = page.next


@pytest.mark.parametrize("walk", [search_module.WALK, 2])
async def test_every_filter(search: Search, db: Connection, monkeypatch: pytest.MonkeyPatch, walk: int) -> None:
    """Also where one walk looks at two tasks only: then its pages are short, and following them finds all."""
    made = await a_few(db)
    names = {task.id: name for name, task in made.items()}
    bounded = walk == 2
    if bounded:
        for name, value in (("WALK", walk), ("WALK_TEXT", walk), ("FEW", 1)):
            monkeypatch.setattr(search_module, name, value)
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
        ({"q": "ann_1@"}, set()),
        ({"q": "ann_1", "in_payload": True}, {"delayed"}),  # and not where it stands in a long one
        ({"q": "annX1", "in_payload": True}, set()),
        ({"q": "boom", "in_payload": True}, {"retrying"}),
        ({"q": "ann_1@", "in_payload": True, "veiled": ('"t_"', "\\u")}, {"delayed"}),
        ({"q": "ann_1@", "in_payload": True, "veiled": ("\\u", '"to"')}, set()),
        (
            {"q": "t", "in_payload": True, "veiled": ('"to"',), "queue": "default"},
            set(made) - {"retrying", "running", "dead"},
        ),
        ({"type": "'; DROP TABLE dhara.tasks; --"}, set()),
    ]
    for filters, expected in cases:
        if bounded:
            if {"created_after", "created_before"} & set(filters):
                continue  # these tasks' ids do not bear the times that they are moved to
            assert [names[id] for id in await followed(search, Filter(**filters))] == [
                n for n in reversed(made) if n in expected
            ]
            continue
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
    for expected in ((1, False), (2, False), (3, False), (4, True), (5, True)):
        await make_task(db)
        page = await search.page(Filter(), limit=1)
        assert (page.total, page.total_is_estimate) == expected


async def test_a_walk_goes_straight_to_the_time_that_is_asked_for(
    search: Search, db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_module, "WALK", 3)
    now_ms = time.time_ns() // 1_000_000
    hours = [IdSource(lambda n=n: now_ms - n * 3_600_000).new() for n in range(8)]  # type: ignore[misc]
    for n, id in enumerate(hours):
        await make_task(db, "COMPLETED", id=id, age=n * 3_600)
    moment = await db.fetchval("SELECT clock_timestamp() - interval '4.5 hours'")
    page = await search.page(Filter(created_before=moment), limit=2)
    assert [task.id for task in page.tasks] == hours[5:7], "in one walk of three"
    window = Filter(
        created_before=moment, created_after=await db.fetchval("SELECT clock_timestamp() - interval '5.5 hours'")
    )
    page = await search.page(window, limit=2)
    assert ([task.id for task in page.tasks], page.total, page.total_is_estimate, page.next) == (
        [hours[5]],
        1,
        False,
        None,
    )


async def test_what_is_estimated_says_so(search: Search, db: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(8):
        await make_task(db, "COMPLETED", queue="mail", type="even" if n % 2 == 0 else "odd")
    assert (await search.count(Filter(type="even"))) == (4, False)
    monkeypatch.setattr(search_module, "WALK", 4)
    assert (await search.count(Filter(type="even"))) == (4, True), "half of the four newest of eight"
    assert (await search.count(Filter(status=(State.COMPLETED,), queue="mail"))) == (8, True), "by the flows"
    assert (await search.count(Filter(queue="nowhere"))) == (0, True)


async def test_what_is_done_is_found_behind_a_backlog(
    search: Search, db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long that is: who was never claimed has no history. And behind others, while there is time."""
    monkeypatch.setattr(search_module, "WALK", 2)
    done = await make_task(db, "COMPLETED")
    for _ in range(5):
        await make_task(db)
    wanted = Filter(status=(State.COMPLETED,), type="t")
    for seconds in (60.0, 0.0):
        monkeypatch.setattr(search_module, "WALKING", seconds)
        page = await search.page(wanted, limit=2)
        # Without time it is the next page that finds it.
        assert [task.id for task in page.tasks] == ([done.id] if seconds else []), seconds
        assert (page.next is None) is bool(seconds)
    assert await followed(search, wanted) == [done.id]
    monkeypatch.setattr(search_module, "WALKING", 60.0)
    for _ in range(5):
        await make_task(db, "DEAD")
    page = await search.page(wanted, limit=2)
    assert ([task.id for task in page.tasks], page.next) == ([done.id], None)


async def test_facets(search: Search, db: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    await a_few(db)
    found = await search.facets(Filter())
    assert (found.types, found.queues, found.newest) == ({"t": 5, "email.send": 2}, {"default": 5, "mail": 2}, None)
    found = await search.facets(Filter(type="email.send"))
    assert (found.types, found.queues) == ({"t": 5, "email.send": 2}, {"default": 1, "mail": 1})
    found = await search.facets(Filter(status=(State.DEAD,), queue="default"))
    assert (found.types, found.queues, found.newest) == ({}, {"mail": 1}, None)
    monkeypatch.setattr(search_module, "FACETED", 3)
    found = await search.facets(Filter())
    assert (sum(found.types.values()), found.newest) == (3, 3)
    found = await search.facets(Filter(status=(State.COMPLETED,)))
    assert (found.types, found.newest) == ({"t": 1}, 3), "it is one of the three newest that have a history"
