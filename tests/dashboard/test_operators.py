"""Failures by group, many tasks at once, schedules, audit: what these pages show and do."""

from __future__ import annotations

import re

import httpx

from dhara.domain.lifecycle import State
from dhara.store.audit import Audit
from dhara.store.operations import Operations
from dhara.store.pool import Pool
from dhara.store.schedules import Schedules
from dhara.store.tasks import Tasks
from dhara.store.workers import Workers
from tests.dashboard.conftest import ADMIN, OPERATOR, FewKeys, Wakes, browser, send, served, sign_in
from tests.factories import make_task, make_worker


async def test_selected_rows_are_previewed_then_retried(pool: Pool, visitor: httpx.AsyncClient, wakes: Wakes) -> None:
    dead = [await make_task(pool, "DEAD", type="mail.send", queue="mail") for _ in range(3)]
    done = await make_task(pool, "COMPLETED", type="mail.send")
    chosen = [str(task.id) for task in (*dead[:2], done)]
    preview = await send(visitor, "/bulk", "/tasks", kind="retry", which="selected", id=chosen)
    assert "Retry 2 tasks?" in preview.text, "what is not DEAD does not count"
    assert (await Tasks(pool).get(dead[0].id)).status is State.DEAD, "a preview changes nothing"
    begun = await send(visitor, "/operations", "/tasks", kind="retry", which="selected", id=chosen)
    assert begun.url.path.startswith("/operations/") and "DONE" in begun.text and "<b>2</b> of 2 done" in begun.text
    states = [(await Tasks(pool).get(task.id)).status for task in (*dead, done)]
    assert states == [State.PENDING, State.PENDING, State.DEAD, State.COMPLETED]
    assert wakes.woken == ["mail"]
    fates = begun.text.partition('id="changed"')[2]
    assert all(f"/tasks/{task.id}" in fates for task in dead[:2]) and str(dead[2].id) not in fates
    assert "PENDING</span> <b>2</b>" in fates


async def test_everything_that_matches_is_what_the_filter_says(pool: Pool, visitor: httpx.AsyncClient) -> None:
    kept = await make_task(pool, "DEAD", type="other", queue="mail")
    for n in range(12):
        await make_task(pool, "DEAD", type="mail.send", queue="mail", tags=("a",) if n < 8 else ())
    form = {"kind": "purge", "which": "matching", "type": "mail.send", "queue": "mail", "tag": "a"}
    preview = (await send(visitor, "/bulk", "/dead-letters", **form)).text
    assert "Purge 8 tasks?" in preview and "cannot be undone" in preview and preview.count("row-link") == 8
    # The confirmation carries the whole filter on.
    fields = dict(
        re.findall(r'name="(\w+)" value="([^"]*)"', preview.partition('class="confirm')[2].partition("</form")[0])
    )
    assert {name: fields[name] for name in form} == form
    await send(visitor, "/operations", "/dead-letters", **form)
    assert "5 match" in (await visitor.get("/dead-letters")).text
    assert (await Tasks(pool).get(kept.id)).status is State.DEAD


async def test_a_careful_retry_releases_a_few_and_can_be_stopped(pool: Pool, visitor: httpx.AsyncClient) -> None:
    for _ in range(5):
        await make_task(pool, "DEAD", type="t", fingerprint="same")
    form = {"kind": "retry", "which": "matching", "fingerprint": "same", "canary": "on", "first": "2"}
    assert (await send(visitor, "/operations", "/failures", **form, max_failed="x")).status_code == 422
    begun = await send(visitor, "/operations", "/failures", **form, max_failed="20")
    assert "RUNNING" in begun.text and "Watching 2" in begun.text
    stopped = await send(visitor, f"{begun.url.path}/stop", begun.url.path)
    assert "STOPPED" in stopped.text and "stopped by anonymous" in stopped.text
    (operation,) = await Operations(pool).recent()
    assert (operation.state, operation.done) == ("stopped", 2)
    assert "3 match" in (await visitor.get("/dead-letters")).text


async def test_bulk_forms_that_mean_nothing_are_refused(pool: Pool, visitor: httpx.AsyncClient) -> None:
    await make_task(pool, "DEAD")
    for form in (
        {"kind": "retry", "which": "selected"},
        {"kind": "explode", "which": "matching"},
        {"kind": "retry", "which": "selected", "id": "x"},
        {"kind": "retry", "which": "matching", "queue": "No Name"},
    ):
        assert (await send(visitor, "/bulk", "/tasks", **form)).status_code == 422, form
        assert (await send(visitor, "/operations", "/tasks", **form)).status_code == 422, form
    assert await Operations(pool).recent() == []
    assert (await visitor.get("/operations/01890a5d-ac96-774b-bcce-b302099a8057")).status_code == 404


async def test_failures_stand_in_groups_and_can_be_muted(pool: Pool, visitor: httpx.AsyncClient) -> None:
    for _ in range(3):
        await make_task(pool, "DEAD", type="mail.send", failures=1, max_retries=1, fingerprint="f1")
    page = (await visitor.get("/failures")).text
    assert "mail.send" in page and '<p class="group-count">3</p>' in page and "Muted" not in page
    muted = (await send(visitor, "/failures/mute", "/failures", fingerprint="f1")).text
    assert "muted by anonymous" in muted
    assert "Unmute" not in (await send(visitor, "/failures/unmute", "/failures", fingerprint="f1")).text
    assert (await send(visitor, "/failures/mute", "/failures", fingerprint="none")).status_code == 404
    group = (await visitor.get("/dead-letters?fingerprint=f1")).text
    assert "3 match" in group and "Dead of one cause" in group and '<p class="group-count">3</p>' in group


async def test_schedules_are_made_paused_run_and_deleted(pool: Pool, visitor: httpx.AsyncClient, wakes: Wakes) -> None:
    form = {"name": "nightly", "type": "report", "queue": "reports", "cron": "0 3 * * *", "timezone": "Europe/Berlin"}
    assert (await send(visitor, "/schedules", "/schedules", **form | {"cron": "0 3 * *"})).status_code == 422
    assert (await send(visitor, "/schedules", "/schedules", **form, payload="{")).status_code == 422
    made = await send(visitor, "/schedules", "/schedules", **form, payload='{"n": 1}')
    assert (
        made.url.path == "/schedules/nightly" and made.text.count("02:00:00 UTC") + made.text.count("01:00:00 UTC") == 5
    )
    assert (await send(visitor, "/schedules", "/schedules", **form)).status_code == 409
    assert "PAUSED" in (await send(visitor, "/schedules/nightly/pause", "/schedules")).text
    assert "Nothing while it is paused" in (await visitor.get("/schedules/nightly")).text
    assert "PAUSED" not in (await send(visitor, "/schedules/nightly/resume", "/schedules")).text
    ran = await send(visitor, "/schedules/nightly/run", "/schedules")
    assert ran.url.path.startswith("/tasks/") and wakes.woken == ["reports"]
    assert "by hand" in (await visitor.get("/schedules/nightly")).text
    assert "nightly is deleted" in (await send(visitor, "/schedules/nightly/delete", "/schedules/nightly")).text
    assert await Schedules(pool).all() == []
    assert (await visitor.get("/schedules/nightly")).status_code == 404
    every = await send(visitor, "/schedules", "/schedules", name="often", type="t", every="20")
    assert "every 20 s" in every.text


async def test_a_worker_is_drained(pool: Pool, visitor: httpx.AsyncClient, wakes: Wakes) -> None:
    worker = await make_worker(pool)
    page = await send(visitor, f"/workers/{worker}/drain", "/workers")
    assert "host · pid 4711 drains" in page.text and "told to drain by anonymous" in page.text
    assert "DRAINING" in page.text and "Drain it" not in page.text
    assert wakes.canceled == [worker]
    await Workers(pool).stop(worker)
    assert (await send(visitor, f"/workers/{worker}/drain", "/schedules")).status_code == 409


async def test_what_was_done_is_on_record_under_its_name(pool: Pool, visitor: httpx.AsyncClient) -> None:
    task = await make_task(pool, "DEAD", queue="mail")
    await send(visitor, f"/tasks/{task.id}/retry", f"/tasks/{task.id}")
    await send(visitor, f"/tasks/{task.id}/cancel", f"/tasks/{task.id}")
    await send(visitor, "/queues/mail/pause", "/queues")
    done = [(action.actor, action.action, action.target) for action in await Audit(pool).list()]
    assert done == [
        ("anonymous", "queue.pause", "mail"),
        ("anonymous", "task.cancel", str(task.id)),
        ("anonymous", "task.retry", str(task.id)),
    ]
    assert "takes 500 PENDING tasks" in (await send(visitor, "/queues/mail/limit", "/queues", limit="500")).text
    assert "limit 500" in (await visitor.get("/queues")).text
    for wrong in ("-1", "x", "9" * 30):
        assert (await send(visitor, "/queues/mail/limit", "/queues", limit=wrong)).status_code == 422
    assert "mail has no limit" in (await send(visitor, "/queues/mail/limit", "/queues", limit="")).text
    page = (await visitor.get("/audit")).text
    assert re.search(r"limit</span> <span[^>]*>500</span> → nothing", page)
    assert page.count("task.retry") == 1 and f"/tasks/{task.id}" in page
    assert "task.retry" not in (await visitor.get("/audit?action=queue")).text
    assert "Nothing on record" in (await visitor.get("/audit?actor=somebody")).text


async def test_keys_are_made_shown_once_rotated_and_revoked(pool: Pool, keys: FewKeys) -> None:
    async with browser(served(pool, keys)) as client:
        await sign_in(client, OPERATOR)
        assert (await client.get("/settings")).status_code == 403
        await send(client, "/sign-in", "/", key=ADMIN)
        assert "No API keys" in (await client.get("/settings")).text
        made = await send(
            client, "/settings/keys", "/settings", name="ci", scope=["read", "operate"], queues="mail, pay-*"
        )
        text = made.text.partition('id="made">')[2].partition("<")[0]
        assert re.fullmatch(r"dh_[a-z0-9]{12}_[\w-]{43}", text)
        again = (await client.get("/settings")).text
        assert text not in again and "mail, pay-*" in again
        id = text.split("_")[1]
        assert 'id="made"' in (await send(client, "/settings/keys/rotate", "/settings", id=id)).text
        assert "is revoked" in (await send(client, "/settings/keys/revoke", "/settings", id=id)).text
        for wrong in ({"name": "", "scope": "read"}, {"name": "x"}, {"name": "x", "scope": "read", "days": "x"}):
            assert (await send(client, "/settings/keys", "/settings", **wrong)).status_code == 422
        assert [action.actor for action in await Audit(pool).list(action="key")] == ["admin"] * 3
