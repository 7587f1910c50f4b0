"""Who enters the dashboard, and which forms are taken."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import httpx
import pytest

from dhara.api import keyring
from dhara.dashboard import Principal, Site, app, live
from dhara.dashboard.keys import NoKeys
from dhara.dashboard.live import Live
from dhara.dashboard.pulse import Pulse
from dhara.dashboard.sessions import FRESH
from dhara.dashboard.site import NOBODY, PAGES
from dhara.domain.access import digest
from dhara.domain.lifecycle import State
from dhara.domain.plan import spec_of
from dhara.errors import Unavailable
from dhara.store.keys import Keys
from dhara.store.operations import Operations
from dhara.store.pool import Pool
from dhara.store.schedules import Schedules
from dhara.store.search import Filter
from dhara.store.sessions import Sessions
from dhara.store.tasks import Tasks
from tests.dashboard.conftest import FORM, LIMITED, OPERATOR, READER, FewKeys, browser, send, served, sign_in, token
from tests.factories import make_task, make_worker
from tests.waiting import eventually

ID = "01890a5d-ac96-774b-bcce-b302099a8057"


def _path(path: str) -> str:
    return path.replace("{id}", ID).replace("{name}", "default").replace("{digest}", "0" * 32)


async def test_every_page_denies_by_default(pool: Pool, keys: FewKeys) -> None:
    # S6: whatever the table gains later is called here without credentials.
    async with browser(served(pool, keys)) as client:
        client.follow_redirects = False
        for page in PAGES:
            answer = await client.request(page.method, _path(page.path), headers=FORM)
            if page.scope == NOBODY:
                assert answer.status_code in (200, 303, 403, 415), page
            else:
                assert answer.status_code == 303 and answer.headers["location"].startswith("/sign-in"), page
        assert (await client.get("/live")).status_code == 401
        assert (await client.get("/tasks", headers={"hx-request": "true"})).status_code == 401


async def test_a_text_is_looked_for_in_payloads_of_those_who_may_read_them(pool: Pool, keys: FewKeys) -> None:
    task = await make_task(pool, "DEAD", payload='{"to": "canary"}')
    for key, found in ((READER, False), (OPERATOR, True)):
        async with browser(served(pool, keys)) as client:
            await sign_in(client, key)
            page = (await client.get("/tasks?q=CANARY")).text
            assert (f'id="t-{task.id}"' in page) is found
            said = "Looked for in id, type, key, error" + (", payload, " if found else ", ") + "10,000 tasks a page."
            assert said in page
            assert ("Payloads are searched for keys with read:payload only" in page) is not found


async def test_a_reader_sees_no_buttons_and_may_do_nothing(pool: Pool, keys: FewKeys) -> None:
    task = await make_task(pool, "DEAD", payload='{"secret": "canary"}')
    async with browser(served(pool, keys)) as client:
        assert "Sign out" in (await sign_in(client, READER)).text
        for path in (
            "/",
            "/tasks",
            f"/tasks/{task.id}",
            "/failures",
            "/dead-letters",
            "/queues",
            "/schedules",
            "/audit",
        ):
            text = (await client.get(path)).text
            forms = [form for form in text.split("<form")[1:] if 'method="post"' in form.partition(">")[0]]
            assert len(forms) == 1 and "/sign-out" in forms[0], path
            assert "canary" not in text
        for page in PAGES:
            if page.scope not in (NOBODY, "read"):
                answer = (
                    await send(client, _path(page.path))
                    if page.method == "POST"
                    else await client.get(_path(page.path))
                )
                assert answer.status_code == 403, page
    async with browser(served(pool, keys)) as client:
        await sign_in(client, OPERATOR)
        text = (await client.get(f"/tasks/{task.id}")).text
        assert "canary" in text and f"/tasks/{task.id}/retry" in text


async def test_a_key_for_some_queues_sees_no_others(pool: Pool, keys: FewKeys) -> None:
    own = await make_task(pool, "DEAD", type="own.type", queue="mail")
    other = await make_task(pool, "DEAD", type="other.type", queue="pay")
    await make_worker(pool, types=["own.type"])
    for queue, type in (("mail", "own.type"), ("pay", "other.type")):
        await make_task(pool, "RUNNING", type=type, queue=queue)
        await make_task(pool, type="un" + type, queue=queue, age=900)
        await Schedules(pool).create(spec_of({"name": queue, "type": type, "queue": queue, "every": 60}), "ann")
    await pool.execute("UPDATE dhara.schedules SET next_at = next_at - interval '1 hour'")
    async with browser(served(pool, keys)) as client:
        entered = await sign_in(client, LIMITED)
        assert entered.url.path == "/"
        for told in ("no live worker knows unown.type", "Schedule mail should", "of mail has waited", "1</a></dd>"):
            assert told in entered.text
        assert not re.search(r"pay\b|other\.type|\d slots|worker MODULE", entered.text)
        for page in PAGES:
            answer = await client.request(page.method, _path(page.path), headers=FORM) if page.method == "GET" else None
            if answer is not None and page.scope != NOBODY:
                assert "other.type" not in answer.text and "queue-pay" not in answer.text, page
                assert page.limited or answer.status_code == 403, page
        assert "own.type" in (await client.get("/tasks")).text
        assert "other.type" not in (await client.get("/tasks?queue=pay")).text
        assert (await client.get(f"/tasks/{own.id}")).status_code == 200
        assert (await client.get(f"/tasks/{other.id}")).status_code == 404
        for path in (f"/tasks/{other.id}/retry", f"/tasks/{other.id}/cancel", "/queues/pay/pause"):
            assert (await send(client, path, "/queues")).status_code == 404, path
        assert (await send(client, f"/tasks/{own.id}/retry", "/queues", queue="pay")).status_code == 404
        assert (await send(client, f"/tasks/{own.id}/retry", "/queues")).status_code == 200


async def test_a_key_for_some_queues_mends_in_them_only(pool: Pool, keys: FewKeys) -> None:
    """Groups, bulk operations and schedules, as far as they are of its queues."""
    own = [await make_task(pool, "DEAD", type="own", queue=queue, fingerprint="f1") for queue in ("mail", "mail.slow")]
    await make_task(pool, "DEAD", type="own", queue="pay", fingerprint="f1")
    await make_task(pool, "DEAD", type="alone", queue="mail", fingerprint="f2")
    secret = await make_task(pool, "DEAD", type="other.type", queue="pay", fingerprint="f3")
    for name, queue in (("ours", "mail"), ("theirs", "pay")):
        await Schedules(pool).create(spec_of({"name": name, "type": "t", "queue": queue, "every": 60}), "ann")
    foreign = await Operations(pool).create("retry", Filter(queue="mail"), "ann", total=0, is_estimate=False)
    async with browser(served(pool, keys)) as client:
        await sign_in(client, LIMITED)
        groups = (await client.get("/failures")).text
        assert '<p class="group-count">2</p>' in groups and "other.type" not in groups and "in pay" not in groups
        assert "Dead of one cause" in (await client.get("/dead-letters?fingerprint=f1")).text
        assert "other.type" not in (await client.get("/dead-letters?fingerprint=f3")).text
        assert (await send(client, "/failures/mute", "/failures", fingerprint="f1")).status_code == 403, (
            "it is others', too"
        )
        assert (await send(client, "/failures/mute", "/failures", fingerprint="f3")).status_code == 404
        assert "muted by mail only" in (await send(client, "/failures/mute", "/failures", fingerprint="f2")).text
        form = {"kind": "retry", "which": "matching", "fingerprint": "f1"}
        assert "Retry 2 tasks?" in (await send(client, "/bulk", "/failures", **form)).text
        begun = await send(client, "/operations", "/failures", **form)
        assert "<b>2</b> of 2 done" in begun.text and all(f"/tasks/{task.id}" in begun.text for task in own)
        await pool.execute("UPDATE dhara.tasks SET queue = 'pay' WHERE id = $1", own[1].id)
        again = (await client.get(begun.url.path)).text
        assert [f"/tasks/{task.id}" in again for task in own] == [True, False], (
            "it has gone where the key does not look"
        )
        chosen = {"kind": "purge", "which": "selected", "id": str(secret.id)}
        assert "Nothing to purge" in (await send(client, "/bulk", "/dead-letters", **chosen)).text
        await send(client, "/operations", "/dead-letters", **chosen)
        assert (await Tasks(pool).get(secret.id)).status is State.DEAD
        assert (await client.get(f"/operations/{foreign.id}")).status_code == 404
        assert (await send(client, f"/operations/{foreign.id}/stop", "/failures")).status_code == 404
        plans = (await client.get("/schedules")).text
        assert "ours" in plans and "theirs" not in plans
        await pool.execute("UPDATE dhara.schedules SET last_at = now(), last_task = $1 WHERE name = 'ours'", secret.id)
        await Schedules(pool).note("ours", None, "by_hand", secret.id)
        for path in ("/schedules", "/schedules/ours"):
            assert str(secret.id) not in (await client.get(path)).text, path
        assert (await send(client, "/schedules/ours/pause", "/schedules")).status_code == 200
        for verb in ("pause", "run", "delete"):
            assert (await send(client, f"/schedules/theirs/{verb}", "/schedules")).status_code == 404
        made = {"name": "new", "type": "t", "every": "60"}
        assert (await send(client, "/schedules", "/schedules", **made, queue="pay")).status_code == 403
        assert (await send(client, "/schedules", "/schedules", **made, queue="mail")).status_code == 200


async def test_session_ends_with_its_key_by_idling_and_by_signing_out(pool: Pool, keys: FewKeys) -> None:
    clock = [0.0]

    async def idle(minutes: float) -> None:
        clock[0] += minutes * 60
        await pool.execute(
            "UPDATE dhara.sessions SET seen_at = seen_at - $1 * interval '1 min', created_at = created_at - $1 * interval '1 min'",
            minutes,
        )

    async with browser(served(pool, keys, clock=lambda: clock[0])) as client:
        answer = await client.post("/sign-in", data={"token": await token(client), "key": OPERATOR}, headers=FORM)
        first = client.cookies["dhara-session"]
        set_cookie = answer.history[0].headers["set-cookie"]
        assert "HttpOnly" in set_cookie and "SameSite=Strict" in set_cookie and "Path=/" in set_cookie
        assert OPERATOR not in set_cookie
        # Signing in again makes a new name, and the old one is worth nothing.
        await send(client, "/sign-in", "/", key=OPERATOR)
        assert client.cookies["dhara-session"] != first
        async with browser(served(pool, keys), cookies={"dhara-session": first}) as thief:
            assert (await thief.get("/")).url.path == "/sign-in"

        await idle(29)
        assert (await client.get("/")).url.path == "/"
        # What refreshes itself keeps nobody signed in.
        await idle(29)
        assert (await client.get("/", headers={"hx-request": "true"})).status_code == 200
        await idle(2)
        assert (await client.get("/")).url.path == "/sign-in"
        # Nor does being busy, for ever.
        await sign_in(client, OPERATOR)
        for _ in range(25):
            assert (await client.get("/queues")).url.path == "/queues"
            await idle(29)
        assert (await client.get("/queues")).url.path == "/sign-in"

        await sign_in(client, OPERATOR)
        await send(client, "/sign-out")
        assert (await client.get("/")).url.path == "/sign-in"
        await sign_in(client, OPERATOR)
        keys.revoked.add(OPERATOR)
        assert (await client.get("/")).url.path == "/sign-in"


@pytest.mark.parametrize("end", ["its key is revoked", "signed out elsewhere", "idle"])
async def test_a_stream_ends_with_its_session(pool: Pool, keys: FewKeys, end: str) -> None:
    """S7, for what stays open; and a stream keeps nobody signed in."""
    assert keyring.INTERVAL + live.SILENCE <= 5 and FRESH + live.SILENCE <= 5
    clock = [0.0]
    api = served(pool, keys, clock=lambda: clock[0])
    assert isinstance(api.site, Site)
    streams, api.site.live._period = api.site.live._streams, 0.02
    async with browser(api) as client:
        await sign_in(client, OPERATOR)
        opened = asyncio.create_task(client.get("/live"))
        await eventually(lambda: len(streams) == 1)
        if end == "its key is revoked":
            keys.revoked.add(OPERATOR)
        elif end == "idle":
            await pool.execute("UPDATE dhara.sessions SET seen_at = seen_at - interval '31 min'")
        else:
            cookies = {"dhara-session": client.cookies["dhara-session"]}
            async with browser(served(pool, keys), cookies=cookies) as other:
                await send(other, "/sign-out")
        clock[0] += FRESH
        answer = await asyncio.wait_for(opened, 30)
        assert answer.text.startswith("retry") and answer.headers["content-type"].startswith("text/event-stream")
        assert (await client.get("/live")).status_code == 401
    assert not streams


async def test_while_nobody_can_tell_a_stream_tells_nothing(pool: Pool) -> None:
    told, known = Live(Pulse(pool, "dhara"), period=0.02), asyncio.Event()

    async def may() -> bool:
        if not known.is_set():
            raise Unavailable("the database does not answer")
        return True

    events = told._events(may)
    assert (await anext(events)).startswith("retry")
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.wait({waiting}, timeout=0.2)
    assert not waiting.done()
    known.set()
    assert (await asyncio.wait_for(waiting, 30)).startswith("event: tick")
    told.close()
    await events.aclose()


async def test_sessions_outlive_their_server_and_are_shared(pool: Pool, keys: FewKeys) -> None:
    async with browser(served(pool, keys)) as client:
        await sign_in(client, OPERATOR)
        cookies = {"dhara-session": client.cookies["dhara-session"]}
        form = await token(client, "/queues")
    clock = [0.0]
    other = served(pool, keys, clock=lambda: clock[0])
    async with browser(other, cookies=cookies) as client:
        assert await token(client, "/queues") == form
        # Ended at one, it is ended at all, within seconds.
        async with browser(served(pool, keys), cookies=cookies) as third:
            await send(third, "/sign-out")
        clock[0] += FRESH
        assert (await client.get("/")).url.path == "/sign-in"
    assert await pool.fetchval("SELECT count(*) FROM dhara.sessions") == 0


async def test_a_dump_of_the_sessions_opens_nothing(pool: Pool, keys: FewKeys) -> None:
    async with browser(served(pool, keys)) as client:
        await sign_in(client, OPERATOR)
        name = client.cookies["dhara-session"]
    row = await pool.fetchrow("SELECT * FROM dhara.sessions")
    assert row is not None
    for secret in (name, OPERATOR):
        assert secret not in str(row) and secret.encode() not in row["digest"] + row["proof"]
    assert digest(OPERATOR) != row["proof"]
    for taken in (row["digest"].hex(), row["proof"].hex(), "", "x" * 5_000, "é"):
        async with browser(served(pool, keys), headers={"cookie": f"dhara-session={taken}".encode()}) as thief:
            assert (await thief.get("/")).url.path == "/sign-in"


async def test_a_page_costs_at_most_one_query_for_its_session(
    pool: Pool, keys: FewKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    find = Sessions.find

    async def counted(self: Sessions, *args: Any, **options: Any) -> Any:
        nonlocal asked
        asked += 1
        return await find(self, *args, **options)

    monkeypatch.setattr(Sessions, "find", counted)
    async with browser(served(pool, keys, clock=lambda: 0.0)) as client:
        await sign_in(client, OPERATOR)
        for _ in range(3):
            await client.get("/queues")
    assert asked == 1


async def test_over_https_cookies_are_for_this_host_alone(pool: Pool, keys: FewKeys) -> None:
    async with browser(served(pool, keys)) as client:
        client.base_url = httpx.URL("https://127.0.0.1:8080")
        data = {"token": await token(client), "key": READER}
        answer = await client.post("/sign-in", data=data, headers={"origin": "https://127.0.0.1:8080"})
        set_cookie = answer.history[0].headers["set-cookie"]
        assert set_cookie.startswith("__Host-dhara-session=") and set_cookie.endswith("; Secure")


async def test_guessing_keys_is_slowed_down(pool: Pool, keys: FewKeys) -> None:
    async with browser(served(pool, keys)) as client:
        given = {"token": await token(client), "key": "wrong"}
        answers = [(await client.post("/sign-in", data=given, headers=FORM)).status_code for _ in range(11)]
        assert answers == [401] * 10 + [429]
        assert (await client.post("/sign-in", data=given | {"key": READER}, headers=FORM)).status_code == 429


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:8080", "sec-fetch-site": "cross-site"},
        {"origin": "http://127.0.0.1:8080", "sec-fetch-site": "same-site"},
    ],
)
async def test_forms_of_other_sites_are_refused(
    pool: Pool, visitor: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    await make_task(pool)
    right = {"token": await token(visitor, "/queues")}
    answer = await visitor.post("/queues/default/pause", data=right, headers=headers)
    assert answer.status_code == 403


async def test_forms_need_their_token(pool: Pool, visitor: httpx.AsyncClient) -> None:
    await make_task(pool)
    right = await token(visitor, "/queues")
    for wrong in ("", "x", right + "x", right[:-1]):
        answer = await visitor.post("/queues/default/pause", data={"token": wrong}, headers=FORM)
        assert answer.status_code == 403
    assert "Pause" in (await visitor.get("/queues")).text
    assert "Resume" in (await visitor.post("/queues/default/pause", data={"token": right}, headers=FORM)).text
    # Another browser's token is not this one's.
    async with browser(served(pool, NoKeys())) as other:
        await other.get("/queues")
        assert (await other.post("/queues/default/resume", data={"token": right}, headers=FORM)).status_code == 403


async def test_foreign_hosts_are_refused(visitor: httpx.AsyncClient) -> None:
    assert (await visitor.get("/", headers={"host": "evil.example"})).status_code == 421


async def test_mounted_without_authorize_only_this_machine_enters(pool: Pool) -> None:
    site = app(pool)
    for client, host, enters in (
        ("127.0.0.1", "localhost:8000", True),
        ("::1", "127.0.0.1", True),
        ("10.1.2.3", "localhost", False),
        ("127.0.0.1", "rebound.example", False),
    ):
        transport = httpx.ASGITransport(app=site, client=(client, 5))
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as opened:
            assert (await opened.get("/")).status_code == (200 if enters else 303), (client, host)


async def test_the_host_application_may_say_who_it_is(pool: Pool) -> None:
    async def authorize(request: object) -> Principal | None:
        name = request.headers.get("x-user")  # type: ignore[attr-defined]
        return Principal(name, frozenset({"read"})) if name else None

    site = app(pool, authorize=authorize)
    async with browser(site) as client:
        assert (await client.get("/")).status_code == 403
        page = await client.get("/", headers={"x-user": "ann"})
        assert page.status_code == 200 and "read-only" in page.text and "Sign out" not in page.text


async def test_mounted_without_authorize_the_database_s_keys_hold(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dhara.dashboard.keys.FRESH", 0.0)
    keys = Keys(pool)
    async with browser(app(pool)) as client:
        assert (await client.get("/queues")).url.path == "/queues"
        made = await keys.create("ops", ["operate"])
        # This machine's own browser, too, signs in once there is a key.
        assert (await client.get("/queues")).url.path == "/sign-in"
        for wrong in ("", "x", made.text[:-1] + ("A" if made.text[-1] != "A" else "B"), "é"):
            assert (await send(client, "/sign-in", "/sign-in", key=wrong)).status_code in (400, 401)
        await sign_in(client, made.text)
        assert (await client.get("/queues")).url.path == "/queues"
        await keys.revoke(made.key.id)
        assert (await client.get("/queues")).url.path == "/sign-in"


async def test_sessions_are_bounded_and_go_when_they_have_ended(pool: Pool) -> None:
    store = Sessions(pool)
    limits: dict[str, Any] = {"idle": 1800.0, "longest": 43_200.0}
    for n in range(7):
        await store.begin(bytes([n]) * 32, bytes(32), "", most=5, **limits)
    kept = [row[0][0] for row in await pool.fetch("SELECT digest FROM dhara.sessions ORDER BY seen_at")]
    assert kept == [2, 3, 4, 5, 6]
    await pool.execute("UPDATE dhara.sessions SET seen_at = seen_at - interval '31 min' WHERE get_byte(digest, 0) = 5")
    await pool.execute(
        "UPDATE dhara.sessions SET created_at = created_at - interval '13 h' WHERE get_byte(digest, 0) = 6"
    )
    assert [await store.find(bytes([n]) * 32, **limits) is not None for n in (4, 5, 6, 9)] == [
        True,
        False,
        False,
        False,
    ]
    await store.begin(bytes([9]) * 32, bytes(32), "", **limits)
    kept = [row[0][0] for row in await pool.fetch("SELECT digest FROM dhara.sessions ORDER BY seen_at")]
    assert kept == [2, 3, 4, 9]
