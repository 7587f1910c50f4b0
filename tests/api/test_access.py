"""Who may do what: every route of the table, with every scope, with every kind of wrong key; keys limited to queues;
payloads and masked fields; rates; revocation."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import statistics
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any
from uuid import UUID

import httpx
import pytest
import pytest_asyncio

from dhara.api import backpressure
from dhara.api.asgi import Api, create_app
from dhara.api.auth import ANYONE
from dhara.api.backpressure import Backpressure
from dhara.api.buckets import FAILURES, WINDOW, Buckets, Failures
from dhara.api.proxies import Proxies
from dhara.api.routes import PROBE, TABLE, Route
from dhara.domain.access import ADMIN, ENQUEUE, METRICS, OPERATE, PAYLOAD, READ, SCOPES, closure
from dhara.domain.lifecycle import State
from dhara.errors import NotFound
from dhara.settings import Settings
from dhara.store.failures import Failures as Groups
from dhara.store.keys import Keys, MadeKey
from dhara.store.pool import Pool
from dhara.store.queues import Load, Queues
from tests.factories import make_task
from tests.waiting import eventually

from .conftest import JSON, NOBODY, client_of, problem

pytestmark = pytest.mark.asyncio(loop_scope="module")

Make = Callable[..., Any]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def app(shared_pool: Pool) -> AsyncIterator[Api]:
    """A server that looks for keys, with its lifespan."""
    app = create_app(pool=shared_pool, settings=Settings(masked_fields=("card.number", "users.*.secret")))
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
def make(app: Api) -> Make:
    """Makes a key that the server knows already; answers a client with it."""

    async def make(*scopes: str, **options: Any) -> httpx.AsyncClient:
        made = await app.parts.keys.create("test", scopes, **options)
        await app.parts.ring.refresh()
        return with_key(app, made.text)

    return make


def with_key(app: Api, text: str) -> httpx.AsyncClient:
    return client_of(app, headers={"authorization": f"Bearer {text}"})


def _real(path: str) -> str:
    return re.sub(r"{(\w+)}", lambda m: {"id": NOBODY, "file": "docs.js", "key": "0" * 12}.get(m[1], "q"), path)


async def _answers(client: httpx.AsyncClient) -> dict[tuple[str, str], httpx.Response]:
    """What every route at every path answers to a request that could do no harm. Streams, which have no end, are asked for
    what they do not know; that comes after the question who asks."""

    def url(route: Route, path: str) -> str:
        return _real(path) + ("?no_such=1" if "text/event-stream" in route.answers.values() else "")

    return {
        (route.method, path): await client.request(route.method, url(route, path), content=b"x", headers=JSON)
        for route in TABLE
        for path in route.paths
    }


@pytest.mark.parametrize("scope", SCOPES)
async def test_every_route_with_every_scope(make: Make, scope: str) -> None:
    async with await make(scope) as client:
        answers = await _answers(client)
    for route in TABLE:
        for path in route.paths:
            answer = answers[route.method, path]
            if route.scope == PROBE or route.scope in closure([scope]):
                assert answer.status_code not in (401, 403), (scope, route.method, path)
            else:
                found = problem(answer, 403, "forbidden")
                assert found["detail"] == "this API key lacks the scope for that, or is limited to some queues"


async def test_scopes_hold_no_more_than_they_say() -> None:
    held = {scope: closure([scope]) for scope in SCOPES}
    assert held[ADMIN] == set(SCOPES)
    assert held[OPERATE] == {OPERATE, READ}
    assert held[PAYLOAD] == {PAYLOAD, READ}
    assert all(held[scope] == {scope} for scope in (READ, ENQUEUE, METRICS))
    assert all(route.scope in {PROBE, *SCOPES} for route in TABLE)


async def test_a_route_that_knows_no_queues_refuses_keys_for_some(make: Make) -> None:
    async with await make(ADMIN, queues=["q"]) as client:
        for (method, path), answer in (await _answers(client)).items():
            route = next(r for r in TABLE if r.method == method and path in r.paths)
            assert (answer.status_code == 403) == (not route.limited), (method, path)


WRONG: dict[str, Callable[[str], list[str]]] = {
    "none": lambda key: [],
    "empty": lambda key: ["Bearer "],
    "another secret": lambda key: [f"Bearer {key[:-1]}{'A' if key[-1] != 'A' else 'B'}"],
    "unknown id": lambda key: [f"Bearer dh_{'0' * 12}_{key[16:]}"],
    "longer": lambda key: [f"Bearer {key}x"],
    "its id alone": lambda key: [f"Bearer {key[:15]}"],
    "two": lambda key: [f"Bearer {key}"] * 2,
    "two in one": lambda key: [f"Bearer {key}, Bearer {key}"],
    "other scheme": lambda key: [f"Basic {key}"],
    "no scheme": lambda key: [key],
    "not ASCII": lambda key: [f"Bearer {key[:-1]}ä"],
    "10 KB": lambda key: ["Bearer " + "x" * 10_240],
}


@pytest.fixture
async def fresh(app: Api) -> None:
    """Nobody has tried wrong keys before."""
    app.parts.auth._failures = Failures()


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("kind", [*WRONG, "expired", "revoked"])
async def test_every_wrong_key_gets_the_same_answer_everywhere(app: Api, kind: str) -> None:
    keys = app.parts.keys
    made: MadeKey = await keys.create("test", [ADMIN], lifetime=0.001 if kind == "expired" else None)
    if kind == "revoked":
        await keys.revoke(made.key.id)
    await app.parts.ring.refresh()
    given = WRONG[kind](made.text) if kind in WRONG else [f"Bearer {made.text}"]
    headers = [(b"authorization", one.encode()) for one in given]
    seen = set()
    async with client_of(app) as client:
        for route in TABLE:
            for path in (*route.paths, "/nothing"):
                app.parts.auth._failures = Failures()
                answer = await client.request(route.method, _real(path), headers=headers)
                if path != "/nothing" and route.scope == PROBE:
                    # Up or down, which a busy machine may make it, and no more.
                    assert answer.json() == {"status": {200: "ok", 503: "unavailable"}[answer.status_code]}
                    continue
                found = problem(answer, 401, "unauthorized")
                assert answer.headers["www-authenticate"] == "Bearer"
                seen.add(json.dumps(found | {"request_id": ""}))
    assert len(seen) == 1


async def test_a_key_is_kept_as_its_hash_only(make: Make, shared_pool: Pool) -> None:
    """S3: nowhere in the whole schema, the audit log among it, whichever way the key was made."""
    async with await make(ADMIN) as client:
        made = (await client.post("/api/v1/keys", json={"name": "dumped", "scopes": ["read"]})).json()
        rotated = (await client.post(f"/api/v1/keys/{made['id']}/rotate")).json()
    tables = await shared_pool.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'dhara'")
    rows = [await shared_pool.fetch(f"SELECT t::text FROM dhara.{name} AS t") for (name,) in tables]
    dump = "".join(row[0] for table in rows for row in table)
    assert dump.count("dumped") >= 2
    for text in (client.headers["authorization"], made["key"], rotated["key"]):
        # The secret's own letters have _ among them.
        secret = text.split("_", 2)[2]
        assert len(secret) == 43
        for shown in (secret[-20:], secret[-20:].encode().hex(), base64.b64encode(secret.encode()).decode()[:50]):
            assert shown not in dump


async def test_a_revocation_made_elsewhere_is_heard(app: Api, make: Make, shared_pool: Pool) -> None:
    app.parts.ring._used_at = time.monotonic()  # it writes down uses every half a minute; not in the midst of this
    async with await make(READ) as client:
        id = client.headers["authorization"].split("_")[1]
        assert (await client.get("/api/v1/tasks")).status_code == 200
        await Keys(shared_pool).revoke(id)
        started = time.monotonic()
        while (answer := await client.get("/api/v1/tasks")).status_code == 200:
            assert time.monotonic() - started < 12
        problem(answer, 401, "unauthorized")  # not the 503 of a server that hears nothing
        assert [key.last_used_at for key in await app.parts.keys.list() if key.id == id] == [None]
        await app.parts.ring._flush()
        assert [key.last_used_at is None for key in await app.parts.keys.list() if key.id == id] == [False]


@pytest.mark.usefixtures("fresh")
async def test_a_server_that_hears_nothing_believes_no_key(app: Api, make: Make) -> None:
    async with await make(READ) as client:
        heard = app.parts.ring._heard
        try:
            app.parts.ring._heard = time.monotonic() - 60
            answer = await client.get("/docs")
            assert answer.status_code in (200, 503)  # The next look may have come in between.
            if answer.status_code == 503:
                problem(answer, 503, "unavailable")
        finally:
            app.parts.ring._heard = heard


async def test_a_rotated_key_lives_on_for_its_overlap(app: Api) -> None:
    keys = app.parts.keys
    old = await keys.create("test", [READ], ["mail*"], rate=7, lifetime=3600)
    new = await keys.rotate(old.key.id, 0)
    assert (new.key.name, new.key.scopes, new.key.queues, new.key.rate) == ("test", (READ,), ("mail*",), 7)
    assert new.key.expires_at is not None
    assert 3590 < (new.key.expires_at - new.key.created_at).total_seconds() < 3610
    await app.parts.ring.refresh()
    assert (await with_key(app, old.text).get("/docs")).status_code == 401
    assert (await with_key(app, new.text).get("/docs")).status_code == 200
    with pytest.raises(NotFound):
        await keys.rotate(old.key.id, 60)


# queues and payloads


async def test_bulk_operations_of_a_key_for_some_queues_touch_no_others(make: Make, shared_pool: Pool) -> None:
    for queue in ("bulk.a", "bulk.a", "bulk.b", "vault"):
        await make_task(shared_pool, State.DEAD, queue=queue)
    async with (
        await make(OPERATE) as whole,
        await make(OPERATE, queues=["bulk.*"]) as key,
        await make(OPERATE, queues=["vault"]) as other,
    ):
        preview = (await key.post("/api/v1/dead-letters/retry?all=true&dry_run=true")).json()
        assert (preview["count"], {task["queue"] for task in preview["sample"]}) == (3, {"bulk.a", "bulk.b"})
        done = (await key.post("/api/v1/dead-letters/retry?queue=bulk.a")).json()["operation"]
        assert (done["state"], done["done"]) == ("done", 2)
        assert (await key.post("/api/v1/dead-letters/purge?queue=vault")).json()["count"] == 0
        assert (await key.post("/api/v1/tasks/cancel?all=true")).json()["operation"]["done"] == 2
        assert (await key.post("/api/v1/dead-letters/purge?all=true")).json()["operation"]["done"] == 1
        # What is in other queues has stood still, and those who may see these alone see nothing of it.
        assert (await whole.get("/api/v1/tasks?queue=vault")).json()["tasks"][0]["status"] == "DEAD"
        path = f"/api/v1/operations/{done['id']}"
        assert [(await one.get(path)).status_code for one in (whole, key, other)] == [200, 200, 404]
        problem(await other.post(f"{path}/stop"), 404, "not_found")
        assert (await other.get("/api/v1/operations")).json() == {"operations": []}
        assert len((await key.get("/api/v1/operations")).json()["operations"]) == 4


async def test_schedules_and_groups_of_a_key_for_some_queues(make: Make, shared_pool: Pool) -> None:
    for queue, print_ in (("own.a", "own:1"), ("own.a", "both:1"), ("vault", "both:1"), ("vault", "vault:1")):
        await make_task(shared_pool, State.DEAD, queue=queue, fingerprint=print_)
    async with await make(ADMIN) as whole, await make(ADMIN, queues=["own.*"]) as key:
        for name, queue in (("own", "own.a"), ("vault", "vault")):
            plan = {"name": name, "type": "t", "queue": queue, "every": 60}
            assert (await whole.post("/api/v1/schedules", json=plan)).status_code == 201
        assert [one["name"] for one in (await key.get("/api/v1/schedules")).json()["schedules"]] == ["own"]
        foreign = {"name": "more", "type": "t", "queue": "vault", "every": 60}
        problem(await key.post("/api/v1/schedules", json=foreign), 403, "forbidden")
        problem(await key.patch("/api/v1/schedules/own", json={"queue": "vault"}), 403, "forbidden")
        assert (await key.patch("/api/v1/schedules/own", json={"queue": "own.b"})).json()["queue"] == "own.b"
        hidden = [await key.get("/api/v1/schedules/vault"), await key.patch("/api/v1/schedules/vault", json={})]
        hidden += [await key.post(f"/api/v1/schedules/vault/{verb}") for verb in ("pause", "resume", "run")]
        for answer in (*hidden, await key.delete("/api/v1/schedules/vault")):
            problem(answer, 404, "not_found")
        assert (await key.post("/api/v1/schedules/own/run")).status_code == 201
        groups = {one["fingerprint"]: one for one in (await key.get("/api/v1/dead-letters/groups")).json()["groups"]}
        assert {print_: (one["count"], one["queue"]) for print_, one in groups.items()} == {
            "own:1": (1, "own.a"),
            "both:1": (1, "own.a"),
        }
        mute = "/api/v1/dead-letters/groups/{}/mute"
        assert (await key.post(mute.format("own:1"))).json()["muted"] is True
        problem(await key.post(mute.format("both:1")), 403, "forbidden")
        problem(await key.post(mute.format("vault:1")), 404, "not_found")
        for name in ("own", "vault"):
            assert (await whole.delete(f"/api/v1/schedules/{name}")).status_code == 200


async def test_groups_within_some_queues_tell_nothing_of_others_and_are_not_hidden_by_them(shared_pool: Pool) -> None:
    groups, within = Groups(shared_pool), ("lone.*",)
    for n in range(3):
        await make_task(shared_pool, State.DEAD, queue="vault", fingerprint=f"0:{n}")
    for age, queue, print_ in ((9, "vault", "lone:1"), (5, "lone.a", "lone:1"), (5, "lone.a", "lone:1")):
        await make_task(shared_pool, State.DEAD, queue=queue, fingerprint=print_, age=age)
    for age, queue in ((9, "lone.a"), (5, "vault"), (5, "vault")):
        await make_task(shared_pool, State.DEAD, queue=queue, fingerprint="lone:2", age=age)
    await make_task(shared_pool, State.DEAD, queue="lone.a", fingerprint="lone:3", age=1)

    # Groups of others come first and are more than may be shown.
    assert [group.fingerprint for group in await groups.groups(1, queues=within)] == ["lone:3"]
    shown = {group.fingerprint: group for group in await groups.groups(queues=within)}
    assert {print_: (one.count, one.elsewhere, sum(one.trend)) for print_, one in shown.items()} == {
        "lone:1": (2, True, 2),
        "lone:2": (1, True, 1),
        "lone:3": (1, False, 1),
    }
    # A look that is cut short before a foreign task does not take the group for one's own.
    cut = await groups.group("lone:1", cap=2, queues=within)
    assert cut is not None and (cut.count, cut.count_is_estimate, cut.elsewhere) == (2, True, True)
    mostly = await groups.group("lone:2", cap=3, queues=within)
    assert mostly is not None and (mostly.count, mostly.count_is_estimate, mostly.elsewhere) == (1, False, True)


async def test_foreign_operations_do_not_crowd_out_those_of_a_key(make: Make) -> None:
    async with await make(OPERATE) as whole, await make(OPERATE, queues=["crowd", "b_*"]) as key:
        own = (await key.post("/api/v1/tasks/cancel?all=true")).json()["operation"]["id"]
        for _ in range(2):
            await whole.post("/api/v1/tasks/cancel?queue=crowd")
        assert [one["id"] for one in (await key.get("/api/v1/operations?limit=1")).json()["operations"]] == [own]
        assert len((await whole.get("/api/v1/operations?limit=2")).json()["operations"]) == 2


async def test_fires_of_a_foreign_schedule_of_the_same_name_name_no_tasks(make: Make, shared_pool: Pool) -> None:
    """Fires outlive their schedule; and a schedule may have come from another queue."""
    plan = {"name": "twice", "type": "t", "queue": "vault", "every": 60}
    async with await make(ADMIN) as whole, await make(ADMIN, queues=["own.*"]) as key:
        assert (await whole.post("/api/v1/schedules", json=plan)).status_code == 201
        task = (await whole.post("/api/v1/schedules/twice/run")).json()["task_id"]
        await whole.delete("/api/v1/schedules/twice")
        assert (await key.post("/api/v1/schedules", json=plan | {"queue": "own.a"})).status_code == 201
        own = (await key.post("/api/v1/schedules/twice/run")).json()["task_id"]
        shown = [(await one.get("/api/v1/schedules/twice")).json()["fires"] for one in (key, whole)]
        assert [[fire.get("task_id") for fire in fires] for fires in shown] == [[own, None], [own, task]]
        assert [("status" in fire) for fire in shown[0]] == [True, False]
        await shared_pool.execute("UPDATE dhara.schedules SET last_task = $1 WHERE name = 'twice'", UUID(task))
        for path in ("", "/twice"):
            assert [task in (await one.get(f"/api/v1/schedules{path}")).text for one in (key, whole)] == [False, True]
        assert task not in (await key.patch("/api/v1/schedules/twice", json={"every": 90})).text
        await whole.delete("/api/v1/schedules/twice")


async def test_a_key_for_some_queues_sees_no_others(make: Make) -> None:
    async with await make(ADMIN) as admin, await make(ADMIN, queues=["mail*", "x_y"]) as key:
        tasks = {}
        for queue in ("mail", "mail.slow", "x_y", "xzy", "bank"):
            made = await admin.post("/api/v1/tasks", json={"type": "echo", "queue": queue, "unique_key": queue})
            tasks[queue] = made.json()["id"]
        listed = (await key.get("/api/v1/tasks?limit=500")).json()
        assert {task["queue"] for task in listed["tasks"]} == {"mail", "mail.slow", "x_y"}
        assert (await key.get("/api/v1/tasks?queue=bank")).json()["tasks"] == []
        assert {queue["name"] for queue in (await key.get("/api/v1/queues")).json()["queues"]} == {
            "mail",
            "mail.slow",
            "x_y",
        }
        for path in ("", "/logs", "/attempts", "/explain", "/wait?timeout=0"):
            assert (await key.get(f"/api/v1/tasks/{tasks['mail']}{path}")).status_code in (200, 202)
            problem(await key.get(f"/api/v1/tasks/{tasks['bank']}{path}"), 404, "not_found")
        problem(await key.delete(f"/api/v1/tasks/{tasks['bank']}"), 404, "not_found")
        problem(await key.post(f"/api/v1/tasks/{tasks['bank']}/retry"), 404, "not_found")
        problem(await key.post("/api/v1/queues/bank/pause"), 404, "not_found")
        problem(await key.patch("/api/v1/queues/bank", json={"limit": 1}), 404, "not_found")
        assert (await key.patch("/api/v1/queues/x_y", json={"limit": 9})).json()["limit"] == 9
        for body in ({"queue": "bank"}, {"queue": "mail", "unique_key": "bank", "on_conflict": "replace"}):
            problem(await key.post("/api/v1/tasks", json={"type": "echo"} | body), 403, "forbidden")
            problem(await key.post("/api/v1/tasks/batch", json=[{"type": "echo"} | body]), 403, "forbidden")
        taken = {"type": "echo", "queue": "mail", "unique_key": "bank"}
        problem(await key.post("/api/v1/tasks", json=taken), 403, "forbidden")
        before = (await key.get("/api/v1/tasks")).json()["total"]
        problem(
            await key.post("/api/v1/tasks/batch", json=[taken, {"type": "echo", "queue": "mail"}]), 403, "forbidden"
        )
        assert (await key.get("/api/v1/tasks")).json()["total"] == before
        assert (await key.delete(f"/api/v1/tasks/{tasks['mail']}")).status_code == 200
        assert (await admin.get(f"/api/v1/tasks/{tasks['bank']}")).json()["status"] == "PENDING"


async def test_payloads_are_for_those_who_may_read_them(make: Make) -> None:
    task = {"type": "echo", "payload": {"card": {"number": 4111, "n": 1.0}}, "idempotency_key": "payloads"}
    shown = {"card": {"number": "***", "n": 1.0}}
    async with await make(ENQUEUE) as producer, await make(READ) as reader, await make(PAYLOAD) as auditor:
        made = await producer.post("/api/v1/tasks", json=task)
        assert made.json()["payload"] == shown
        again = await producer.post("/api/v1/tasks", json=task)
        assert (again.status_code, "payload" in again.json()) == (200, False)
        batch = (await producer.post("/api/v1/tasks/batch", json=[task, {"type": "echo"}])).json()
        assert ["payload" in one for one in batch] == [False, True]
        path = made.headers["location"]
        for shown_to, wanted in ((reader, None), (auditor, shown)):
            for below in ("", "/wait?timeout=0"):
                assert (await shown_to.get(path + below)).json().get("payload") == wanted
        assert b'"n":1.0' in (await auditor.get(path)).content
        async with await make(OPERATE) as operator:
            assert "payload" not in (await operator.delete(path)).json()


async def test_payloads_are_searched_for_those_who_may_read_them_and_give_no_masked_value_away(make: Make) -> None:
    rows = {
        "plain": '{"to": "Needle-1"}',
        "masked": '{"to": "needle-2", "card": {"number": "needle-3"}}',
        "escaped": '{"to": "needle-4", "card": {"n\\u0075mber": "needle-5"}}',
    }
    async with (
        await make(ENQUEUE) as producer,
        await make(OPERATE) as operator,
        await make(PAYLOAD, OPERATE) as auditor,
    ):
        made = {}
        for name, payload in rows.items():
            body = f'{{"type": "sought", "payload": {payload}}}'
            made[name] = (await producer.post("/api/v1/tasks", content=body, headers=JSON)).json()["id"]

        async def found(client: httpx.AsyncClient, q: str) -> tuple[list[str], int]:
            listed = (await client.get(f"/api/v1/tasks?type=sought&q={q}")).json()
            dry = (await client.post(f"/api/v1/tasks/cancel?type=sought&q={q}&dry_run=true")).json()
            assert (dry["count"], [one["id"] for one in dry["sample"]]) == (
                listed["total"],
                [one["id"] for one in listed["tasks"]],
            )
            return [one["id"] for one in listed["tasks"]], listed["total"]

        assert await found(operator, "needle") == ([], 0)
        assert await found(auditor, "needle") == ([made["plain"]], 1)
        assert await found(auditor, "needle-3") == await found(auditor, "needle-5") == ([], 0)


# rates and failures


async def test_a_key_is_held_to_its_rate(make: Make) -> None:
    async with await make(READ, rate=0.05) as slow, await make(READ) as free:
        answers = [await slow.get("/docs") for _ in range(11)]
        assert [a.status_code for a in answers[:10]] == [200] * 10
        problem(answers[10], 429, "rate_limited")
        assert 1 <= int(answers[10].headers["retry-after"]) <= 20
        assert (await free.get("/docs")).status_code == 200


async def test_buckets_fill_as_time_goes_by() -> None:
    now = [0.0]
    buckets = Buckets(lambda: now[0])
    assert [buckets.take("k", 100) for _ in range(100)] == [0.0] * 100
    assert buckets.take("k", 100) == pytest.approx(0.01)
    assert buckets.take("another", 100) == 0
    now[0] += 0.5
    assert [buckets.take("k", 100) for _ in range(51)].count(0.0) == 50
    now[0] += 1_000
    assert [buckets.take("k", 100) for _ in range(101)].count(0.0) == 100


@pytest.mark.usefixtures("fresh")
async def test_wrong_keys_are_limited_by_source_and_id(app: Api, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    async with await make(READ) as right, await make(READ) as other:
        guess = right.headers["authorization"][:-2] + "!!"
        guess = guess[:-2] + ("AA" if not right.headers["authorization"].endswith("AA") else "BB")
        async with client_of(app, headers={"authorization": guess}) as wrong:
            codes = [(await wrong.get("/docs")).status_code for _ in range(FAILURES + 2)]
        assert codes == [401] * FAILURES + [429] * 2
        id = guess.split("_")[1]
        assert [r.getMessage() for r in caplog.records].count(f"refused an API key: id {id} from 127.0.0.1") == FAILURES
        assert guess[-20:] not in caplog.text
        # Nor is the right one told from the wrong ones now; others go on.
        problem(await right.get("/docs"), 429, "rate_limited")
        assert (await other.get("/docs")).status_code == 200


async def test_failures_are_forgotten_and_bounded() -> None:
    now = [1_000.0]
    failures = Failures(lambda: now[0])
    for _ in range(FAILURES):
        assert failures.wait("a", "k") == 0
        failures.add("a", "k")
    assert failures.wait("a", "k") == WINDOW
    assert failures.wait("b", "k") == failures.wait("a", "other") == 0
    now[0] += WINDOW
    assert failures.wait("a", "k") == 0
    for i in range(20_000):
        failures.add(str(i), "k")
    assert len(failures._seen) == 10_000


FORWARDED: list[tuple[str, tuple[str, ...], list[str], str]] = [
    ("9.9.9.9", (), ["1.1.1.1"], "9.9.9.9"),
    ("9.9.9.9", ("10.0.0.0/8",), ["1.1.1.1"], "9.9.9.9"),
    ("10.0.0.1", ("10.0.0.0/8",), [], "10.0.0.1"),
    ("10.0.0.1", ("10.0.0.0/8",), ["6.6.6.6, 1.1.1.1"], "1.1.1.1"),
    ("10.0.0.1", ("10.0.0.0/8",), ["6.6.6.6", "1.1.1.1, 10.0.0.2"], "1.1.1.1"),
    ("10.0.0.1", ("10.0.0.0/8",), ["1.1.1.1, nonsense"], "10.0.0.1"),
    ("::ffff:10.0.0.1", ("10.0.0.0/8",), ["2001:db8::1"], "2001:db8::1"),
    ("", ("10.0.0.0/8",), ["1.1.1.1"], ""),
]


@pytest.mark.parametrize(("peer", "trusted", "headers", "source"), FORWARDED)
async def test_only_trusted_proxies_say_who_is_behind_them(
    peer: str, trusted: tuple[str, ...], headers: list[str], source: str
) -> None:
    scope: dict[str, Any] = {
        "client": (peer, 1) if peer else None,
        "headers": [(b"x-forwarded-for", one.encode()) for one in headers] + [(b"x-forwarded-proto", b"https")],
        "dhara.headers": None,
        "scheme": "http",
    }
    proxies = Proxies(trusted)
    assert proxies.source(scope) == source
    assert proxies.secure(scope) == bool(trusted and "10.0.0.1" in peer)


async def test_unknown_ids_and_wrong_secrets_take_as_long(app: Api, make: Make) -> None:
    """S4 as far as a busy machine can show it: the medians differ by less than a tenth of the whole."""
    text = (await make(READ)).headers["authorization"].partition(" ")[2]
    kinds = {"wrong secret": text[:-1] + ("A" if text[-1] != "A" else "B"), "unknown id": f"dh_{'0' * 12}_{text[16:]}"}
    match = app.parts.auth._match
    times: dict[str, list[int]] = {kind: [] for kind in kinds}
    for _ in range(3_000):
        for kind, key in kinds.items():
            encoded, id = key.encode(), key.split("_")[1]
            before = time.perf_counter_ns()
            match(encoded, id)
            times[kind].append(time.perf_counter_ns() - before)
    first, second = (statistics.median(times[kind]) for kind in kinds)
    assert abs(first - second) < max(first, second) * 0.25


async def test_without_any_key_everybody_may(shared_pool: Pool) -> None:
    """A server whose lifespan has not begun knows of no keys; it is what the composition root binds to loopback."""
    app = create_app(pool=shared_pool, settings=Settings())
    assert app.parts.auth.open
    assert all(ANYONE.may(scope) for scope in SCOPES)
    async with app.router.lifespan_context(app):
        # There are keys in this database.
        assert app.parts.auth.open == (not await app.parts.keys.list(1))


# queues that take no more


async def test_full_queues_are_looked_for_while_something_is_enqueued(
    shared_pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle server looks rarely, and at once when enqueues begin again."""
    looks = 0

    class Counting(Queues):
        async def loads(self, all: bool) -> Sequence[Load]:
            nonlocal looks
            found = await super().loads(all)
            looks += 1
            return found

    monkeypatch.setattr(backpressure, "INTERVAL", 0.01)
    monkeypatch.setattr(backpressure, "IDLE_INTERVAL", 600.0)
    async with Backpressure(Counting(shared_pool), 0) as pressure:
        await eventually(lambda: looks == 1)
        await asyncio.sleep(0.1)
        assert looks == 1
        pressure.take("q")
        await eventually(lambda: looks == 3)  # at once, and again a moment later, since it had been wanted
        await asyncio.sleep(0.1)
        assert looks == 3
        pressure.take_all(["q"])
        await eventually(lambda: looks > 3)


async def test_a_full_queue_takes_no_more(shared_pool: Pool) -> None:
    app = create_app(pool=shared_pool, settings=Settings(queue_limit=4))
    pressure, queues = app.parts.pressure, app.parts.queues
    body = {"type": "echo", "queue": "full"}
    async with client_of(app) as client:
        problem(await client.post("/api/v1/tasks/batch", json=[body] * 5), 413, "batch_too_large")
        assert (await client.post("/api/v1/tasks/batch", json=[body] * 3)).status_code == 201
        for _ in range(2):
            # Whether this process counted itself, or read what is there.
            problem(await client.post("/api/v1/tasks/batch", json=[body] * 2), 429, "queue_full")
            await pressure.refresh()
        assert (await client.post("/api/v1/tasks", json=body)).status_code == 201
        refused = await client.post("/api/v1/tasks", json=body)
        problem(refused, 429, "queue_full")
        assert refused.headers["retry-after"] == "2"
        assert (await queues.get("full")).depth == 4
        await queues.limit("full", 5)
        await pressure.refresh()
        assert (await client.post("/api/v1/tasks", json=body)).status_code == 201
        await queues.limit("full", 0)
        await pressure.refresh()
        problem(await client.post("/api/v1/tasks", json=body), 429, "queue_full")
        # What it held has gone.
        await queues.limit("full", None)
        for task in (await client.get("/api/v1/tasks?queue=full")).json()["tasks"]:
            await client.delete(f"/api/v1/tasks/{task['id']}")
        await pressure.refresh()
        assert (await client.post("/api/v1/tasks", json=body)).status_code == 201
