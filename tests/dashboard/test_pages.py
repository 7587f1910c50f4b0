"""What pages show and do, without a browser."""

from __future__ import annotations

import asyncio
import html
import json
import re

import httpx
import pytest

from dhara.dashboard import app
from dhara.dashboard.keys import NoKeys
from dhara.domain.lifecycle import State
from dhara.domain.schedule import Spec
from dhara.store.pool import DatabaseSettings, Pool
from dhara.store.queues import Queues
from dhara.store.schedules import Schedules
from dhara.store.stats import Stats
from dhara.store.tasks import Tasks
from tests.dashboard.conftest import Wakes, browser, send, served
from tests.factories import make_task, make_worker

PATHS = ("/", "/tasks", "/failures", "/dead-letters", "/queues", "/workers", "/schedules", "/audit")


@pytest.mark.parametrize("path", PATHS)
async def test_empty_pages_say_what_to_do(visitor: httpx.AsyncClient, path: str) -> None:
    answer = await visitor.get(path)
    assert answer.status_code == 200
    assert 'class="empty"' in answer.text


async def test_every_answer_has_the_strict_headers(visitor: httpx.AsyncClient) -> None:
    for path in (*PATHS, "/nothing", "/tasks/nothing", "/static/0/dashboard.css"):
        answer = await visitor.get(path)
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; style-src")
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
    assert (await visitor.get("/nothing")).status_code == 404
    assert (await visitor.delete("/queues")).status_code == 405


async def test_what_the_api_does_not_answer_is_the_dashboards_and_the_api_stays_its_own(
    visitor: httpx.AsyncClient,
) -> None:
    assert (await visitor.get("/api/v1/nothing")).headers["content-type"] == "application/problem+json"
    assert (await visitor.get("/livez")).json()["status"] == "ok"
    assert "text/html" in (await visitor.get("/nothing")).headers["content-type"]


async def test_static_files_are_kept_by_their_hash(visitor: httpx.AsyncClient) -> None:
    page = (await visitor.get("/")).text
    address = page.partition('rel="stylesheet" href="')[2].partition('"')[0]
    assert "immutable" in (await visitor.get(address)).headers["cache-control"]
    assert (await visitor.get("/static/000000000000/dashboard.css")).headers["cache-control"] == "no-cache"
    for wrong in ("/static/0/nothing.css", "/static/0/../templates/base.html", "/static/0/vendor/manifest.json"):
        assert (await visitor.get(wrong)).status_code == 404


async def test_filters_stand_in_the_url_and_follow_each_page(pool: Pool, visitor: httpx.AsyncClient) -> None:
    for n in range(55):
        await make_task(pool, type="mail.send", queue="mail", tags=("red",) if n % 2 else ())
    await make_task(pool, "DEAD", type="other", queue="mail")
    page = (await visitor.get("/tasks?queue=mail&type=mail.send&status=PENDING")).text
    assert "55 match" in page and page.count("data-row") == 50
    older = html.unescape(page.partition('rel="next" href="')[2].partition('"')[0])
    assert "queue=mail" in older and "type=mail.send" in older and "status=PENDING" in older
    assert (await visitor.get(older)).text.count("data-row") == 5
    assert (await visitor.get("/tasks?tag=red")).text.count("data-row") == 27
    assert "No task matches" in (await visitor.get("/tasks?q=nothing")).text


@pytest.mark.parametrize(
    "query", ["status=dead", "queue=No+Name", "worker=x", "after=x", "q=" + "x" * 300, "tag=%00", "type=%3Cscript%3E"]
)
async def test_a_query_that_makes_no_sense_is_told(visitor: httpx.AsyncClient, query: str) -> None:
    answer = await visitor.get("/tasks?" + query)
    assert answer.status_code == 200
    assert 'role="alert"' in answer.text
    assert "<script>" not in answer.text


async def test_a_dead_task_says_why_and_is_retried_with_changes(
    pool: Pool, visitor: httpx.AsyncClient, wakes: Wakes
) -> None:
    task = await make_task(pool, "DEAD", failures=1, max_retries=1, payload='{"n": 12345678901234567890.10}')
    path = f"/tasks/{task.id}"
    page = (await visitor.get(path)).text
    assert "boom" in page and "12345678901234567890.10" in page and "REVIVED" not in page
    assert (await send(visitor, path + "/retry", path, priority="101")).status_code == 422
    assert (await send(visitor, path + "/retry", path, payload="{")).status_code == 422
    changed = await send(visitor, path + "/retry", path, queue="other", priority="7", payload='{"n": 1}')
    assert "Sent back to PENDING" in changed.text and "revived by anonymous" in changed.text
    now = await Tasks(pool).get(task.id)
    assert (now.status, now.queue, now.priority, now.payload) == (State.PENDING, "other", 7, '{"n": 1}')
    assert wakes.woken == ["other"]
    again = await send(visitor, path + "/cancel", path)
    assert "Canceled." in again.text and (await Tasks(pool).get(task.id)).status is State.CANCELED
    # The button is gone; whoever sends its form anyway is told.
    assert "only DEAD tasks can be revived" in (await send(visitor, path + "/retry", "/queues")).text


async def test_cancel_of_a_running_task_asks_its_worker(pool: Pool, visitor: httpx.AsyncClient, wakes: Wakes) -> None:
    worker = await make_worker(pool)
    task = await make_task(pool, "RUNNING", worker=worker)
    page = await send(visitor, f"/tasks/{task.id}/cancel", f"/tasks/{task.id}")
    assert "asked to stop" in page.text and wakes.canceled == [worker]


async def test_a_queues_limit_and_that_it_is_full(pool: Pool) -> None:
    await make_task(pool, queue="mail")
    for most, shown in ((2, [">limit 2<"]), (1, [">limit 1<", "FULL"]), (None, [])):
        await Queues(pool).limit("mail", most, "test")
        async with browser(served(pool, NoKeys())) as visitor:  # a new one, whose figures are new
            text = (await visitor.get("/queues")).text
        assert [word for word in (">limit 2<", ">limit 1<", "FULL") if word in text] == shown


async def test_a_queues_own_objective(pool: Pool, visitor: httpx.AsyncClient) -> None:
    await make_worker(pool, types=["t"])
    await make_task(pool, type="t", queue="mail", age=120)
    assert "has waited for" not in (await visitor.get("/")).text
    for wanted, late in (("90s", True), ("3m", False), ("", False)):
        page = (await send(visitor, "/queues/mail/objective", "/queues", objective=wanted)).text
        assert "Ready tasks of mail should wait for" in page
        assert ("The oldest ready task of mail has waited for 2 m" in (await visitor.get("/")).text) is late
    assert (await Queues(pool).get("mail")).wait_objective is None
    for wrong in ("soon", "0.1s", "9999d"):
        assert (await send(visitor, "/queues/mail/objective", "/queues", objective=wrong)).status_code == 422


async def test_pause_and_resume(pool: Pool, visitor: httpx.AsyncClient, wakes: Wakes) -> None:
    await make_task(pool, queue="mail")
    assert "PAUSED" in (await send(visitor, "/queues/mail/pause", "/queues")).text
    assert "mail is paused" in (await visitor.get("/")).text
    assert "PAUSED" not in (await send(visitor, "/queues/mail/resume", "/queues")).text
    assert wakes.woken == ["mail"]


async def test_overview_tells_what_needs_attention(pool: Pool, visitor: httpx.AsyncClient) -> None:
    await make_task(pool, type="unknown", age=1000)
    page = (await visitor.get("/")).text
    assert "No worker is alive" in page and "has waited for 16 m" in page
    await make_worker(pool, types=["t"])
    await asyncio.sleep(1.05)  # figures are kept for a second
    assert await Schedules(pool).create(Spec(name="n", type="t", every=60.0), "ada") is not None
    await pool.execute("UPDATE dhara.schedules SET next_at = next_at - interval '1 hour'")
    page = (await visitor.get("/")).text
    assert "no live worker knows unknown" in page and "Schedule n should have fired" in page


async def test_a_task_s_trace_is_a_link_where_traces_are_shown(pool: Pool) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    task = await make_task(pool, traceparent=f"00-{trace}-b7ad6b7169203331-01")
    for template, shown in (
        ("", f'"mono">{trace}'),
        ("https://t.example/{trace_id}", f'href="https://t.example/{trace}"'),
    ):
        async with browser(app(pool, trace_url=template)) as client:
            assert shown in (await client.get(f"/tasks/{task.id}")).text
    with pytest.raises(ValueError, match="trace_id"):
        app(pool, trace_url="javascript:alert({trace_id})")


async def test_mounted_it_keeps_to_what_its_application_says(pool: Pool) -> None:
    await make_worker(pool, types=["t"])
    task = await make_task(pool, type="t", queue="mail", age=120, payload='{"card": {"number": "4111"}, "to": "ada"}')
    strict = app(pool, masked_fields=["card.number"], wait_objective=60)
    as_in_the_environment = app(pool, masked_fields="card, no.such")
    for site, seen, late in ((app(pool), True, False), (strict, False, True), (as_in_the_environment, False, False)):
        async with browser(site) as client:
            page = (await client.get(f"/tasks/{task.id}")).text
            assert ("4111" in page) is seen and "ada" in page
            assert ("The oldest ready task of mail" in (await client.get("/")).text) is late
    with pytest.raises(ValueError, match=r"card\.number"):
        app(pool, masked_fields=["card..number"])
    with pytest.raises(ValueError, match="30s"):
        app(pool, wait_objective="30s")  # type: ignore[arg-type]


async def test_types_stand_above_the_list_with_their_figures(pool: Pool, visitor: httpx.AsyncClient) -> None:
    for type in ("mail.send", "mail.send", "report"):
        await make_task(pool, "DEAD", type=type, queue="q")
    for path in ("/tasks?status=DEAD", "/dead-letters", "/tasks"):
        page = (await visitor.get(path)).text
        assert 'mail.send <span class="n">2</span>' in page and ">q (3)</option>" in page
    page = (await visitor.get("/tasks?type=mail.send")).text
    assert 'report <span class="n">1</span>' in page and ">q (2)</option>" in page


async def test_mounted_under_a_prefix_every_link_stays_there(pool: Pool, dsn: str) -> None:
    from starlette.applications import Starlette
    from starlette.routing import Mount

    task = await make_task(pool, "DEAD")
    site = app(dsn)
    try:
        async with browser(Starlette(routes=[Mount("/ops/dhara", site)])) as client:
            for path in (*PATHS, f"/tasks/{task.id}", "/nothing"):
                page = (await client.get("/ops/dhara" + path)).text
                for attribute in ("href=", "action=", "src=", "hx-get="):
                    for found in page.split(attribute + '"')[1:]:
                        address = found.partition('"')[0]
                        assert address.startswith(("/ops/dhara/", "#")), (path, address)
            retried = await client.post(
                f"/ops/dhara/tasks/{task.id}/retry",
                data={"token": await _token(client, f"/ops/dhara/tasks/{task.id}")},
                headers={"origin": "http://127.0.0.1:8080"},
            )
            assert retried.url.path == f"/ops/dhara/tasks/{task.id}" and "Sent back" in retried.text
    finally:
        await site.aclose()


async def _token(client: httpx.AsyncClient, path: str) -> str:
    return (await client.get(path)).text.partition('name="token" value="')[2].partition('"')[0]


async def test_without_its_database_a_page_says_so_and_tries_again() -> None:
    settings = DatabaseSettings(dsn="postgresql://nobody@127.0.0.1:1/none", connect_timeout=0.5)
    async with browser(app(Pool(settings))) as client:
        answer = await client.get("/")
    assert answer.status_code == 503 and "data-retry" in answer.text


async def test_ticks_say_when_something_has_changed(pool: Pool) -> None:
    from dhara.dashboard.live import Live
    from dhara.dashboard.pulse import Pulse

    async def may() -> bool:
        return True

    live = Live(Pulse(pool, "dhara"), period=0.05)
    events = live._events(may)
    assert (await anext(events)).startswith("retry")
    first = await asyncio.wait_for(anext(events), 10)
    await make_task(pool)
    while (await asyncio.wait_for(anext(events), 10)) == first:
        pass
    live.close()
    assert len([event async for event in events]) <= 2, "the stream has not ended"
    assert live.stream(may).status_code == 503


def test_json_is_shown_as_it_is() -> None:
    from dhara.dashboard.words import pretty

    text = '{"a": [1e400, -0, 1.0, {}, []], "b<": "</script>\\u00e4\\u202e", "c": {"d": null}}'
    shown = pretty(text)
    assert "<script" not in shown and "&lt;/script&gt;ä\\u202e" in shown
    plain = html.unescape(re.sub("<[^>]+>", "", str(shown)))
    assert json.loads(plain.replace("1e400", "1")) == json.loads(text.replace("1e400", "1"))
    assert "\n" in plain and "1e400" in plain
    assert "ö 🚀" in pretty('"\\u00f6 \\ud83d\\ude80"') and "\\ud83d" in pretty('"\\ud83d"')
    for broken in ("{{{", "]]]]", '"', "a" * 100_000, "[" * 50_000):
        pretty(broken)


async def test_the_first_look_has_rates_from_what_maintenance_noted(pool: Pool) -> None:
    from dhara.dashboard.pulse import Pulse

    await Stats(pool).sample()
    await pool.execute("UPDATE dhara.rates SET at = at - interval '10 s'")
    for _ in range(20):
        await make_task(pool, queue="mail")
    rates = (await Pulse(pool, "dhara").snapshot()).rates
    assert rates is not None
    assert 1 < rates.enqueued <= 2.1
    assert 1 < rates.queues["mail"][0] <= 2.1, "it is new since"
