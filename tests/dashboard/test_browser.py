"""The dashboard in a real browser: every page in light, dark and at 360 px; the flows of an operator; hostile texts.

One server and one browser for the module. Each page is watched for console errors, CSP violations and dialogs.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest
import pytest_asyncio
from playwright.async_api import Browser, ConsoleMessage, Dialog, Page, TimeoutError, async_playwright, expect

from dhara.api.server import serve
from dhara.domain.lifecycle import Event
from dhara.domain.plan import spec_of
from dhara.maintenance.scheduler import Scheduler
from dhara.store.audit import Audit
from dhara.store.operations import Operations
from dhara.store.pool import DatabaseSettings, Pool
from dhara.store.schedules import Schedules
from dhara.store.search import Filter
from dhara.store.tasks import Tasks
from dhara.telemetry.metrics import Traffic
from tests.conftest import Databases
from tests.dashboard.conftest import ADMIN, OPERATOR, READER, FewKeys, served
from tests.dashboard.hostile import HOSTILE
from tests.factories import claim, make_task, make_worker, new_task, settle_all, settlement
from tests.waiting import eventually

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
AXE = files("axe_playwright_python") / "axe.min.js"
WATCH = "document.addEventListener('securitypolicyviolation', e => console.error('CSP: ' + e.violatedDirective + ' ' + e.blockedURI))"

# Far from what a busy machine needs.
expect.set_options(timeout=20_000)

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(600),  # a browser, and every page three times: 35 s on a calm machine
    pytest.mark.skipif(not CHROMIUM, reason="no chromium: apt-get install chromium"),
]


class Place(NamedTuple):
    """A served dashboard with its database."""

    address: str
    pool: Pool
    keys: FewKeys
    browser: Browser
    signed_in: dict[str, Any]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(databases: Databases, template: str) -> AsyncIterator[Place]:
    name = databases.create(template)
    keys = FewKeys()
    async with (
        Pool(DatabaseSettings(dsn=databases.dsn(name))) as pool,
        _serving(served(pool, keys)) as address,
        async_playwright() as playwright,
    ):
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield Place(address, pool, keys, browser, {})
        await browser.close()
    databases.drop(name)


@asynccontextmanager
async def _serving(app: Any) -> AsyncIterator[str]:
    stop, started = asyncio.Event(), asyncio.get_running_loop().create_future()
    running = asyncio.create_task(
        serve(app, host="127.0.0.1", port=0, stop=stop, on_started=lambda *at: started.set_result(at), grace=1)
    )
    host, port = await started
    yield f"http://{host}:{port}"
    stop.set()
    await running


@asynccontextmanager
async def watched(place: Place, key: str | None = OPERATOR, **options: Any) -> AsyncIterator[Page]:
    """A fresh browser profile, signed in (by the form the first time that a key is used, then with the cookies of then);
    whatever goes wrong in it fails the test."""
    state = place.signed_in.get(key or "")
    context = await place.browser.new_context(base_url=place.address, storage_state=state, **options)
    context.set_default_timeout(20_000)
    page = await context.new_page()
    wrong: list[str] = []

    def console(message: ConsoleMessage) -> None:
        # A page that refuses is told as an error by the browser itself.
        if message.type in ("error", "warning") and "status of 4" not in message.text:
            wrong.append(message.text)

    async def dialog(shown: Dialog) -> None:
        wrong.append(f"dialog: {shown.message}")
        await shown.dismiss()

    page.on("console", console)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", dialog)
    await page.add_init_script(WATCH)
    if key and state is None:
        await enter(page, key)
        place.signed_in[key] = await context.storage_state()
    yield page
    assert not wrong
    await context.close()


async def enter(page: Page, key: str) -> None:
    await page.goto("/sign-in")
    await page.get_by_label("API key").fill(key)
    await page.get_by_role("button", name="Sign in").click()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def work(place: Place) -> dict[str, str]:
    """Something on every page; answers the paths of some tasks."""
    pool = place.pool
    worker = await make_worker(pool, types=["mail.send", "report.build"])
    error = json.dumps({"class": "ValueError", "message": "no such thing", "traceback": "Traceback …\n  File x\n"})
    dead = await make_task(pool, type="mail.send", queue="mail", payload='{"to": "a@b.c", "n": 1.50}', tags=("vip",))
    held = await claim(pool, dead.id, worker)
    fields: dict[str, Any] = {"failed": 1, "reason": "exhausted", "last_error": "ValueError: no such thing"}
    logs = json.dumps([{"at": "2026-01-01T10:00:00.000+00:00", "level": "warning", "message": "about to fail"}])
    await Tasks(pool).settle([settlement(held, Event.DEAD, error=error, logs=logs, fingerprint="f1", **fields)])
    running = await make_task(pool, "RUNNING", type="report.build", queue="reports", worker=worker)
    report = json.dumps({"percent": 40, "message": "reading orders"})
    await Tasks(pool).report([(running.id, running.lease, report, logs)])  # type: ignore[list-item]
    done = await make_task(pool, "COMPLETED", type="mail.send", queue="mail", result='{"id": 7}', worker=worker)
    await make_task(pool, type="unknown.type", queue="mail", age=900)
    await make_task(pool, type="mail.send", queue="mail", failures=1, due_in=60)
    await Schedules(pool).create(spec_of({"name": "nightly", "type": "report.build", "cron": "0 3 * * *"}), "ann")
    await Scheduler(pool).run_now("nightly", "ann")
    done_many = await Operations(pool).create("retry", Filter(type="none"), "ann", total=0, is_estimate=False)
    operation = f"/operations/{done_many.id}"
    return {
        "operation": operation,
        "dead": f"/tasks/{dead.id}",
        "running": f"/tasks/{running.id}",
        "done": f"/tasks/{done.id}",
    }


PAGES = {
    "overview": "/",
    "tasks": "/tasks",
    "no match": "/tasks?q=nothing",
    "refused query": "/tasks?worker=x",
    "dead task": "{dead}",
    "running task": "{running}",
    "done task": "{done}",
    "queues": "/queues",
    "workers": "/workers",
    "failures": "/failures",
    "dead letters": "/dead-letters",
    "schedules": "/schedules",
    "schedule": "/schedules/nightly",
    "operation": "{operation}",
    "audit": "/audit",
    "settings": "/settings",
    "missing": "/nothing",
}
_AXE_RUN = """async (rules) => {
    const options = rules ? {runOnly: rules} : {resultTypes: ["violations"]};
    const found = await axe.run(document, options);
    return found.violations.map(v => v.id + ": " + v.nodes.map(n => n.html.slice(0, 120)).join(" | "));
}"""
_OVERFLOW = """() => [...document.querySelectorAll("body *")]
    .filter(e => !e.closest(".table-wrap, nav, .code, .lines") && e.getBoundingClientRect().right > innerWidth + 1)
    .map(e => e.outerHTML.slice(0, 100)).slice(0, 5)"""


NARROW, WIDE = {"width": 360, "height": 740}, {"width": 1280, "height": 800}


async def test_every_page_is_sound(place: Place, work: dict[str, str]) -> None:
    """Each is loaded once, and looked at light, dark and narrow."""
    axe = AXE.read_text()
    wrong: dict[str, Any] = {}
    async with watched(place, ADMIN, color_scheme="light", viewport=WIDE) as page:
        for name, path in PAGES.items():
            await page.set_viewport_size(WIDE)  # type: ignore[arg-type]
            await page.emulate_media(color_scheme="light")
            await page.goto(path.format(**work))
            await page.evaluate(axe)
            found = {"light": await page.evaluate(_AXE_RUN, None)}
            # Only colours and widths can differ from that.
            await page.emulate_media(color_scheme="dark")
            found["dark"] = await page.evaluate(_AXE_RUN, ["color-contrast"])
            await page.set_viewport_size(NARROW)  # type: ignore[arg-type]
            found["narrow"] = await page.evaluate(_AXE_RUN, ["target-size", "scrollable-region-focusable"])
            if await page.evaluate("document.documentElement.scrollWidth") > NARROW["width"]:
                found["too wide"] = await page.evaluate(_OVERFLOW)
            wrong |= {f"{name}, {how}": what for how, what in found.items() if what}
    assert not wrong, json.dumps(wrong, indent=2)


async def test_find_a_dead_task_read_why_retry_it_see_it_complete_live(place: Place, work: dict[str, str]) -> None:
    pool = place.pool
    broken = await make_task(pool, "DEAD", type="flow.step", queue="flows", reason="exhausted")
    async with watched(place) as page:
        await page.goto("/")
        await page.keyboard.press("/")
        await page.wait_for_url("**/tasks**")
        await page.get_by_role("searchbox").fill("flow.step")
        await page.keyboard.press("Enter")
        await page.wait_for_url("**q=flow.step**")
        assert "type=" not in page.url, "empty filters stay out of the URL"
        await page.get_by_role("searchbox").blur()
        await page.keyboard.press("j")
        await page.keyboard.press("Enter")
        await page.wait_for_url(f"**/tasks/{broken.id}")
        await expect(page.locator("[data-code=dead]")).to_contain_text("exhausted")
        await page.get_by_role("button", name="Retry", exact=True).click()
        await expect(page.locator("h1 + .status")).to_have_text("PENDING")
        await expect(page.locator("#live-state")).to_have_attribute("data-state", "on")
        held = await claim(pool, broken.id)
        await expect(page.locator("h1 + .status")).to_have_text("RUNNING")
        await settle_all(pool, [held])
        await expect(page.locator("h1 + .status")).to_have_text("COMPLETED")
        await expect(page.locator(".timeline")).to_contain_text("REVIVED")


async def test_retry_many_after_a_preview(place: Place, work: dict[str, str]) -> None:
    for _ in range(4):
        await make_task(place.pool, "DEAD", type="bulk.step", queue="bulk")
    async with watched(place) as page:
        await page.goto("/dead-letters?type=bulk.step")
        await page.keyboard.press("j")
        await page.keyboard.press("x")
        await expect(page.locator("[data-selected]")).to_have_text("1 selected")
        await expect(page.locator("#live-state")).to_have_attribute("data-state", "paused")
        await page.get_by_label("All 4 that match").check()
        await page.get_by_role("button", name="Retry…").click()
        await expect(page.locator("h1")).to_have_text("Retry 4 tasks?")
        await expect(page.locator(".row-link")).to_have_count(4)
        await page.get_by_role("button", name="Retry 4").click()
        await expect(page.locator("h1 + .status")).to_have_text("DONE")
        await page.goto("/tasks?type=bulk.step")
        await expect(page.locator("td .status")).to_have_text(["PENDING"] * 4)


async def test_pause_a_queue_and_read_it_elsewhere(place: Place, work: dict[str, str]) -> None:
    await make_task(place.pool, queue="pausable")
    async with watched(place) as page, watched(place, READER) as other:
        await other.goto("/")
        await expect(other.locator("#queue-pausable")).to_be_visible()
        await page.goto("/queues")
        await page.get_by_role("button", name="Pause pausable").click()
        await expect(page.locator("#queue-pausable")).to_contain_text("PAUSED")
        await expect(other.locator("#queue-pausable")).to_contain_text("PAUSED")
        await page.get_by_role("button", name="Resume pausable").click()
        await expect(page.locator("#queue-pausable")).not_to_contain_text("PAUSED")


async def test_drain_a_worker_after_a_second_thought(place: Place, work: dict[str, str]) -> None:
    worker = await make_worker(place.pool, types=["drained.type"])
    async with watched(place) as page:
        await page.goto("/workers")
        card = page.locator(f"article[aria-labelledby='w-{worker}']")
        await card.get_by_text("Drain …").click()
        await expect(page.locator("#live-state")).to_have_attribute("data-state", "paused")
        await card.get_by_role("button", name="Drain it").click()
        await expect(card).to_contain_text("told to drain by operator")
        await expect(card.locator(".status")).to_have_text("DRAINING")


async def test_sign_in_with_each_scope(place: Place, work: dict[str, str]) -> None:
    async with watched(place, None) as page:
        await page.goto("/queues")
        await expect(page).to_have_title("Sign in · dhara")
        await enter(page, "wrong")
        await expect(page.get_by_role("alert")).to_be_visible()
        await page.evaluate(AXE.read_text())
        assert await page.evaluate(_AXE_RUN, None) == []
        await page.goto("/queues")
        await page.get_by_label("API key").fill(READER)
        await page.get_by_role("button", name="Sign in").click()
        await page.wait_for_url("**/queues")
        await page.goto(work["dead"])
        await expect(page.get_by_role("button", name="Retry")).to_have_count(0)
        await expect(page.get_by_text("lacks the scope read:payload")).to_be_visible()
        await page.get_by_role("button", name="Sign out").click()
        await enter(page, OPERATOR)
        await page.goto(work["dead"])
        await expect(page.get_by_role("button", name="Retry", exact=True)).to_be_visible()
        await expect(page.locator("#payload-text")).to_contain_text('"n": 1.50')


async def test_without_script_everything_can_be_read_and_done(place: Place) -> None:
    dead = await make_task(place.pool, "DEAD", type="quiet.type")
    async with watched(place, java_script_enabled=False) as page:
        await page.goto("/tasks?status=DEAD&type=quiet.type")
        await page.locator(".row-link", has_text="quiet.type").first.click()
        await page.get_by_role("button", name="Retry", exact=True).click()
        await expect(page.locator("h1 + .status")).to_have_text("PENDING")
        await page.get_by_role("link", name="Tasks").first.click()
        await page.locator("select[name=queue]").select_option("default")
        await page.get_by_role("button", name="Filter").click()
        await expect(page.locator(f"#t-{dead.id}")).to_be_visible()


async def test_refresh_waits_while_something_is_open_and_keys_help(place: Place, work: dict[str, str]) -> None:
    waiting = await make_task(place.pool, "DEAD", type="held.open")
    async with watched(place) as page:
        await page.goto(f"/tasks/{waiting.id}")
        await page.get_by_text("Retry with changes").click()
        await page.get_by_label("Queue", exact=True).fill("elsewhere")
        await expect(page.locator("#live-state")).to_have_attribute("data-state", "paused")
        await expect(page.get_by_label("Queue", exact=True)).to_have_value("elsewhere")
        await page.get_by_role("button", name="Retry with these").click()
        await expect(page.locator(".facts")).to_contain_text("elsewhere")
        await page.wait_for_load_state()  # else nobody may listen to the key yet
        await page.keyboard.press("?")
        await expect(page.get_by_role("dialog")).to_be_visible()
        await page.keyboard.press("Escape")
        for _ in range(5):  # the second key counts for 1.2 s after the first, which a busy machine may not keep
            await page.keyboard.press("g")
            await page.keyboard.press("w")
            with suppress(TimeoutError):
                await page.wait_for_url("**/workers", timeout=5_000)
                break
        assert page.url.endswith("/workers")
        await page.get_by_role("button", name="Auto").click()
        assert await page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"


CROSS = """async ([address, calls]) => {
    for (const [method, path] of calls) {
        try { await fetch(address + path, {method, mode: method === "POST" ? "no-cors" : "cors", credentials: "include"}); }
        catch {}
    }
}"""


async def _evil(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\n\r\n<link rel=icon href=data:,>")
    await writer.drain()
    writer.close()


async def test_other_sites_cannot_act(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """S11: what a browser that is signed in sends for another site, with whatever method, and by a form, changes nothing."""
    task = await make_task(place.pool, "DEAD", type="kept", queue="kept")
    before = await place.pool.fetchval("SELECT count(*) FROM dhara.audit_log")
    async with watched(place) as signed_in:
        await signed_in.goto("/queues")
        # Another site to the browser, and yet on this machine: it keeps sites from elsewhere away from it by itself.
        evil = await asyncio.start_server(_evil, "127.0.0.1", 0)
        site = f"http://localhost:{evil.sockets[0].getsockname()[1]}/"
        page = await signed_in.context.new_page()
        # Told by the server: the browser hides such answers from everybody.
        answers: list[tuple[str, int]] = []
        monkeypatch.setattr(
            Traffic, "observe", lambda one, method, route, status, took: answers.append((method, status))
        )
        await page.goto(site)
        calls = [
            ("POST", "/api/v1/queues/kept/pause"),
            ("POST", f"/api/v1/tasks/{task.id}/retry"),
            ("POST", "/queues/kept/pause"),
            *((method, "/api/v1/queues/kept") for method in ("PUT", "PATCH", "DELETE")),
            ("DELETE", f"/api/v1/tasks/{task.id}"),
        ]
        await page.evaluate(CROSS, [place.address, calls])
        # Refused by the API; by the dashboard sent to sign in, because the browser keeps the session's cookie back.
        posts = [("POST", 403), ("POST", 403), ("POST", 303)]
        await eventually(lambda: [answer for answer in answers if answer[0] == "POST"] == posts)
        # The others ask first whether they may; there is no CORS, so they are not even sent.
        assert set(answers) == {*posts, ("OPTIONS", 405), ("GET", 200)}
        form = f"<form method=post action='{place.address}/tasks/{task.id}/retry'><input name=token></form>"
        await page.evaluate("form => { document.body.innerHTML = form; }", form)
        async with page.expect_navigation():
            await page.evaluate("document.forms[0].submit()")
        await eventually(lambda: answers.count(("POST", 303)) == 2)
        await page.close()
        evil.close()
        await evil.wait_closed()
    assert (await Tasks(place.pool).get(task.id)).status == "DEAD"
    assert await place.pool.fetchval("SELECT count(*) FROM dhara.audit_log") == before


async def test_hostile_texts_stay_texts(place: Place) -> None:
    """S14: 200 strings in every field that a page shows, and in what a URL may say."""
    pool, queue = place.pool, HOSTILE[0]
    everything = json.dumps(HOSTILE)
    worker = await make_worker(pool, types=HOSTILE)
    await pool.execute("UPDATE dhara.workers SET host = $2, version = $2 WHERE id = $1", worker, "".join(HOSTILE))
    lines = json.dumps([{"at": text, "level": text, "message": text} for text in HOSTILE])
    error = json.dumps({"class": everything, "message": everything, "traceback": everything})
    many = [
        new_task(text, queue=text if n % 8 == 0 else queue, tags=(text,), idempotency_key=text)
        for n, text in enumerate(HOSTILE)
    ]
    await Tasks(pool).enqueue(many)
    big = await make_task(
        pool,
        type=HOSTILE[1],
        queue=queue,
        tags=tuple(HOSTILE),
        payload=everything,
        unique_key=everything,
        concurrency_key=everything,
        idempotency_key=everything[:2_000],
    )
    held = await claim(pool, big.id, worker)
    dead = {"failed": 1, "last_error": everything, "reason": everything, "fingerprint": everything}
    await Tasks(pool).settle([settlement(held, Event.DEAD, error=error, logs=lines, result=everything, **dead)])
    busy = await make_task(pool, "RUNNING", type=HOSTILE[2], queue=queue, worker=worker)
    await Tasks(pool).report([(busy.id, busy.lease, json.dumps({"percent": 5, "message": everything}), lines)])  # type: ignore[list-item]
    for text in HOSTILE[::40]:
        await place.pool.execute(
            "INSERT INTO dhara.queues (name, paused_at, paused_by) VALUES ($1, now(), $1) ON CONFLICT DO NOTHING", text
        )
    async with pool.acquire() as connection, connection.transaction():
        for text in HOSTILE:
            await Audit(connection).record(text, "task.cancel", text, {"before": text}, {"after": text})
    async with watched(place) as page:
        paths = ["/", "/queues", "/workers", f"/tasks/{big.id}", f"/tasks/{busy.id}", "/tasks", "/failures", "/audit"]
        paths += ["/dead-letters", "/schedules"]
        paths += ["/tasks?" + urlencode({"q": part, "tag": part[:100], "type": part}) for part in _parts(200)]
        while paths:
            await page.goto(paths.pop(0))
            older = page.locator("a[rel=next]")
            if "after=" in page.url or page.url.endswith("/tasks"):
                paths += (
                    [str(await one.get_attribute("href")) for one in await older.all()][:1] if len(paths) < 60 else []
                )
        assert await page.evaluate("window.dharaHostile") is None


def _parts(most: int) -> list[str]:
    """All strings, as few texts of at most `most` characters."""
    parts = [""]
    for text in HOSTILE:
        if len(parts[-1]) + len(text) > most:
            parts.append("")
        parts[-1] += text
    return parts
