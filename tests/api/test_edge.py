"""The edge that every request passes: methods, keys, hosts, origins, ids and headers, for every route of the table."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import pytest_asyncio

from dhara.api import health
from dhara.api.asgi import Api, create_app
from dhara.api.buckets import Failures
from dhara.api.routes import BASE, PROBE, TABLE
from dhara.settings import Settings
from dhara.store.pool import Pool

from .conftest import JSON, KEY, NOBODY, client_of, problem

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def client(shared_client: httpx.AsyncClient) -> httpx.AsyncClient:
    return shared_client


@pytest_asyncio.fixture(loop_scope="module")
async def locked_app(shared_pool: Pool) -> Api:
    """The application with API keys set."""
    return create_app(pool=shared_pool, settings=Settings(api_keys=("another-key", KEY)))


def _real(path: str) -> str:
    return path.replace("{id}", NOBODY).replace("{name}", "q").replace("{file}", "docs.js").replace("{key}", "0" * 12)


async def test_every_other_method_is_a_405_that_names_the_right_ones(client: httpx.AsyncClient) -> None:
    allowed: dict[str, set[str]] = {}
    for route in TABLE:
        for path in route.paths:
            allowed.setdefault(path, set()).add(route.method)
    for path, methods in allowed.items():
        real = _real(path)
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE"} - methods:
            answer = await client.request(method, real, headers={"x-http-method-override": next(iter(methods))})
            assert answer.status_code == 405, (method, path)
            assert set(answer.headers["allow"].split(", ")) == methods
            if method != "HEAD":
                problem(answer, 405, "method_not_allowed")


async def test_every_route_refuses_an_unknown_parameter(client: httpx.AsyncClient) -> None:
    for route in TABLE:
        for path in route.paths:
            real = _real(path)
            answer = await client.request(route.method, real + "?no_such=1", headers=JSON)
            assert problem(answer, 422, "invalid_query")["errors"][0]["field"] == "no_such"


# keys, hosts, origins


AUTHORIZATIONS: dict[str, list[tuple[str, str]]] = {
    "none": [],
    "wrong key": [("authorization", "Bearer wrong")],
    "empty key": [("authorization", "Bearer ")],
    "other scheme": [("authorization", "Basic a-key-of-these-tests")],
    "no scheme": [("authorization", "a-key-of-these-tests")],
    "two": [("authorization", "Bearer a-key-of-these-tests"), ("authorization", "Bearer a-key-of-these-tests")],
    "longer": [("authorization", "Bearer a-key-of-these-tests2")],
    "another header": [("x-api-key", "a-key-of-these-tests")],
}


@pytest.mark.parametrize("headers", AUTHORIZATIONS.values(), ids=AUTHORIZATIONS.keys())
async def test_without_a_key_only_probes_answer(
    locked_app: Api, headers: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "PATIENCE", 60.0)
    async with client_of(locked_app) as client:
        for route in TABLE:
            for path in route.paths:
                locked_app.parts.auth._failures = Failures()
                answer = await client.request(route.method, _real(path), headers=headers)
                if route.scope == PROBE:
                    assert answer.status_code == 200
                    assert answer.json() == {"status": "ok"}
                else:
                    problem(answer, 401, "unauthorized")
                    assert answer.headers["www-authenticate"] == "Bearer"
        locked_app.parts.auth._failures = Failures()
        problem(await client.get("/nothing", headers=headers), 401, "unauthorized")


async def test_there_are_no_websockets(locked_app: Api) -> None:
    """S6: whatever the path, with or without a key, one is closed before it is accepted."""
    for path in {"/nothing", *(path for route in TABLE for path in route.paths)}:
        for headers in ([], [(b"authorization", f"Bearer {KEY}".encode())]):
            sent: list[Any] = []

            async def receive() -> dict[str, Any]:
                return {"type": "websocket.connect"}

            async def send(message: Any, sent: list[Any] = sent) -> None:
                sent.append(message)

            host = (b"host", b"127.0.0.1:8080")
            scope = {"type": "websocket", "path": _real(path), "query_string": b"", "headers": [host, *headers]}
            await locked_app(scope, receive, send)
            assert [message["type"] for message in sent] == ["websocket.close"], path


@pytest.mark.parametrize("key", ["a-key-of-these-tests", "another-key"])
async def test_with_a_key_everything_answers(locked_app: Api, key: str) -> None:
    async with client_of(locked_app, headers={"authorization": f"bearer {key}"}) as client:
        for route in TABLE:
            for path in route.paths:
                # A stream has no end, so it is asked for what it does not know.
                odd = "?no_such=1" if "text/event-stream" in route.answers.values() else ""
                assert (await client.request(route.method, _real(path) + odd)).status_code != 401
        assert "checks" in (await client.get("/readyz")).json()
        assert (await client.get("/openapi.json")).json()["security"] == [{"key": []}]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:1", "localhost:8080", "LOCALHOST", "[::1]:80", "localhost."])
async def test_own_hosts_are_answered(client: httpx.AsyncClient, host: str) -> None:
    assert (await client.get("/livez", headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil", "10.0.0.1", "", "[::2]", "::1"]
)
async def test_foreign_hosts_are_a_421_on_every_route(client: httpx.AsyncClient, host: str) -> None:
    for route in TABLE:
        for path in route.paths:
            answer = await client.request(route.method, _real(path), headers={"host": host})
            problem(answer, 421, "misdirected_host")


async def test_two_hosts_are_refused(client: httpx.AsyncClient) -> None:
    problem(await client.get("/livez", headers=[("host", "localhost"), ("host", "localhost")]), 421, "misdirected_host")


CROSS = [
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"origin": "http://evil.example"},
    {"origin": "null"},
    {"origin": "http://127.0.0.1:9999"},
    {"sec-fetch-site": "cross-site", "origin": "http://127.0.0.1:8080"},
]


@pytest.mark.parametrize("headers", CROSS, ids=str)
async def test_other_origins_cannot_change_anything(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    for route in TABLE:
        if route.method != "GET":
            answer = await client.request(route.method, _real(BASE + route.path), headers=headers)
            problem(answer, 403, "cross_origin")


@pytest.mark.parametrize(
    "headers", [{"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}, {"origin": "http://127.0.0.1:8080"}]
)
async def test_the_same_origin_can(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    answer = await client.post("/api/v1/queues/q/pause", headers=headers)
    assert answer.status_code == 200


# what every answer has


async def test_every_answer_has_the_security_headers(client: httpx.AsyncClient) -> None:
    for path in ("/livez", "/docs", "/docs/docs.js", "/nothing", "/api/v1/tasks?limit=0", "/metrics"):
        headers = (await client.get(path)).headers
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("given", ["abc", "A-1._:/+=", "x" * 128])
async def test_a_sane_request_id_is_taken(client: httpx.AsyncClient, given: str) -> None:
    for path in ("/livez", "/nothing"):
        assert (await client.get(path, headers={"x-request-id": given})).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", 'a"b', "ä".encode(), "<script>"])
async def test_an_odd_request_id_is_replaced(client: httpx.AsyncClient, given: Any) -> None:
    made = {(await client.get("/livez", headers={"x-request-id": given})).headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3
    assert given not in made
