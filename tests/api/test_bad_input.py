"""The bad-input matrix: a stable code, the field's name, no 5xx, no partial write, and the server goes on."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import pytest_asyncio

from dhara.api import tasks
from dhara.api.routes import TABLE, Route
from dhara.api.wire import Param
from dhara.store.pool import Pool
from tests.waiting import eventually

from .conftest import JSON, NOBODY, post, problem

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def client(shared_client: httpx.AsyncClient) -> httpx.AsyncClient:
    return shared_client


@pytest_asyncio.fixture(loop_scope="module")
async def unwritten(shared_pool: Pool) -> AsyncIterator[None]:
    """Nothing is written meanwhile, and the server still works afterwards."""
    before = await shared_pool.fetchval("SELECT count(*) FROM dhara.tasks")
    yield
    assert await shared_pool.fetchval("SELECT count(*) FROM dhara.tasks") == before


INVALID_JSON: dict[str, bytes] = {
    "empty": b"",
    "blank": b"  ",
    "not JSON": b"type=echo",
    "truncated": b'{"type":"echo","payload":{"a":1}',
    "trailing bytes": b'{"type":"echo"} x',
    "two values": b'{"type":"echo"}{"type":"echo"}',
    "BOM": b'\xef\xbb\xbf{"type":"echo"}',
    "UTF-16": '{"type":"echo"}'.encode("utf-16"),
    "UTF-16 without BOM": '{"type":"echo"}'.encode("utf-16-le"),
    "invalid UTF-8": b'{"type":"echo","payload":"\xff"}',
    "encoded surrogate": b'{"type":"echo","payload":"\xed\xa0\x80"}',
    "overlong NUL": b'{"type":"echo","payload":"\xc0\x80"}',
    "raw control character": b'{"type":"echo","payload":"\x00"}',
    "single quotes": b"{'type':'echo'}",
    "trailing comma": b'{"type":"echo",}',
    "comment": b'{"type":"echo"/*x*/}',
    "duplicate field": b'{"type":"echo","type":"echo"}',
    "duplicate key in the payload": b'{"type":"echo","payload":{"a":1,"a":2}}',
    "duplicate key, escaped": b'{"type":"echo","payload":{"a":1,"\\u0061":2}}',
    "duplicate key, deep": b'{"type":"echo","payload":[[{"x":{"a":1,"b":2,"a":1}}]]}',
    "NaN": b'{"type":"echo","payload":NaN}',
    "Infinity": b'{"type":"echo","payload":[Infinity]}',
    "-Infinity": b'{"type":"echo","payload":{"a":-Infinity}}',
    "1e400": b'{"type":"echo","payload":1e400}',
    "-1e400": b'{"type":"echo","payload":-1E+400}',
    "1e-99999": b'{"type":"echo","payload":1e-99999}',
    "0e99999999999": b'{"type":"echo","payload":0e99999999999}',
    "leading zero": b'{"type":"echo","payload":01}',
    "plus": b'{"type":"echo","payload":+1}',
    "bare point": b'{"type":"echo","payload":1.}',
    "hex": b'{"type":"echo","payload":0x10}',
    "other digits": '{"type":"echo","payload":\u0661}'.encode(),
    "bad escape": b'{"type":"echo","payload":"\\x41"}',
    "depth 65": b'{"type":"echo","payload":' + b"[" * 65 + b"]" * 65 + b"}",
    "depth 65, mixed": b'{"type":"echo","payload":' + b'{"a":[' * 33 + b"]}" * 33 + b"}",
    "depth 100,000": b'{"type":"echo","payload":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "depth 100,000, unclosed": b"[" * 100_000,
    "10,000 digits": b'{"type":"echo","payload":' + b"9" * 10_000 + b"}",
    "1,001 digits": b'{"type":"echo","payload":' + b"9" * 1_001 + b"}",
    "1,001 digits behind the point": b'{"type":"echo","payload":0.' + b"9" * 1_001 + b"}",
}


@pytest.mark.parametrize("body", INVALID_JSON.values(), ids=INVALID_JSON.keys())
@pytest.mark.usefixtures("unwritten")
async def test_what_is_not_strict_json_is_a_400(client: httpx.AsyncClient, body: bytes) -> None:
    found = problem(await post(client, body), 400, "invalid_json")
    assert len(found["detail"]) < 300


INVALID_STRINGS: dict[str, bytes] = {
    "NUL in a value": rb'{"type":"echo","payload":"a\u0000b"}',
    "NUL in a key": rb'{"type":"echo","payload":{"a\u0000":1}}',
    "lone high surrogate": rb'{"type":"echo","payload":["\ud800"]}',
    "lone low surrogate": rb'{"type":"echo","payload":{"a":{"b":"\uDFFF"}}}',
    "surrogates in the wrong order": rb'{"type":"echo","payload":"\udc00\ud800"}',
    "lone surrogate in a key": rb'{"type":"echo","payload":{"\uD83D":1}}',
    "NUL behind an escaped backslash": rb'{"type":"echo","payload":"\\\u0000"}',
    "in the type": rb'{"type":"\u0000"}',
    "in a field's name": rb'{"type":"echo","\ud800":1}',
}


@pytest.mark.parametrize("body", INVALID_STRINGS.values(), ids=INVALID_STRINGS.keys())
@pytest.mark.usefixtures("unwritten")
async def test_what_cannot_be_stored_is_a_422(client: httpx.AsyncClient, body: bytes) -> None:
    assert problem(await post(client, body), 422, "invalid_string")["errors"]


PAYLOADS: dict[str, bytes] = {
    "big integers": b"[9007199254740993,9223372036854775808,-123456789012345678901234567890]",
    "minus zero": b"-0",
    "1.0 and 1": b'{"a":1.0,"b":1,"c":1.00,"d":1E5}',
    "order of keys": b'{"z":1,"a":2,"m":3}',
    "blanks inside": b'{ "a" :\n\t[ 1 , 2 ] }',
    "null": b"null",
    "text": b'"x"',
    "escaped backslash before u0000": rb'"\\u0000"',
    "escaped backslash before ud800": rb'["\\ud800","\\\\udfff"]',
    "a pair of surrogates": rb'"\ud83d\ude00"',
    "escapes": rb'"\u00e9\/\b\f\n\r\t\""',
    "beyond the BMP": '"😀"'.encode(),
    "brackets in texts": b'["' + b"[{" * 200 + b'"]',
    "digits in texts": b'["' + b"9" * 2_000 + b'"]',
    "colons and quotes in texts": rb'{"a":"\":\"a\":\"","b":"a"}',
    "depth 64": b"[" * 64 + b"]" * 64,
    "1,000 digits": b"9" * 1_000,
    "small number": b"1e-300",
    "empty key": b'{"":{"":[]}}',
    "256 KiB": b'"' + b"x" * (256 * 1024 - 2) + b'"',
}


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS.keys())
async def test_payload_bytes_come_back_as_they_came(client: httpx.AsyncClient, payload: bytes) -> None:
    made = await post(client, b'{"type":"echo", "payload" :  ' + payload + b' ,"priority":1}')
    assert made.status_code == 201, made.text
    assert made.content.endswith(b'"payload":' + payload + b"}")
    read = await client.get(made.headers["location"])
    assert b'"payload":' + payload in read.content


async def test_payload_over_256_kib_is_a_413(client: httpx.AsyncClient) -> None:
    found = problem(
        await post(client, b'{"type":"echo","payload":"' + b"x" * (256 * 1024 - 1) + b'"}'), 413, "payload_too_large"
    )
    assert found["errors"][0]["field"] == "payload"


async def test_body_over_1_mib_is_a_413(client: httpx.AsyncClient) -> None:
    problem(await post(client, b'{"type":"echo"' + b" " * 1024 * 1024 + b"}"), 413, "body_too_large")


async def test_body_over_1_mib_without_a_length_is_a_413(client: httpx.AsyncClient) -> None:
    async def pieces() -> Any:
        for _ in range(20):
            yield b" " * 65_536

    answer = await client.post("/api/v1/tasks", content=pieces(), headers=JSON)
    problem(answer, 413, "body_too_large")


async def test_body_in_pieces_is_read_whole(client: httpx.AsyncClient) -> None:
    async def pieces() -> Any:
        yield b'{"type":'
        yield b'"echo"}'

    answer = await client.post("/api/v1/tasks", content=pieces(), headers=JSON)
    assert answer.status_code == 201


MEDIA: dict[str, list[tuple[str, str]]] = {
    "missing": [],
    "text": [("content-type", "text/plain")],
    "form": [("content-type", "application/x-www-form-urlencoded")],
    "double": [("content-type", "application/json"), ("content-type", "application/json")],
    "list": [("content-type", "application/json, text/plain")],
    "other charset": [("content-type", "application/json; charset=latin-1")],
    "gzip": [("content-type", "application/json"), ("content-encoding", "gzip")],
    "deflate": [("content-type", "application/json"), ("content-encoding", "identity, deflate")],
}


@pytest.mark.parametrize("headers", MEDIA.values(), ids=MEDIA.keys())
async def test_other_media_are_a_415(client: httpx.AsyncClient, headers: list[tuple[str, str]]) -> None:
    body = b'{"type":"echo"}'
    if ("content-encoding", "gzip") in headers:
        body = gzip.compress(b'{"type":"echo","payload":"' + b"x" * 10_000_000 + b'"}')
    request = client.build_request("POST", "/api/v1/tasks", content=body)
    request.headers = httpx.Headers([*headers, ("host", "127.0.0.1"), ("content-length", str(len(body)))])
    problem(await client.send(request), 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "media", ["application/json", "Application/JSON; charset=UTF-8", 'application/json;charset="utf-8"']
)
async def test_json_by_any_spelling_is_taken(client: httpx.AsyncClient, media: str) -> None:
    answer = await client.post("/api/v1/tasks", content=b'{"type":"echo"}', headers={"content-type": media})
    assert answer.status_code == 201


def _at(delta: timedelta) -> str:
    return (datetime.now(UTC) + delta).isoformat()


WRONG: dict[str, list[Any]] = {
    "type": [
        *("", "x" * 101, "😀", "\u202eabc", "../", "'; DROP TABLE tasks", "%00", "a\r\nb", "__proto__"),
        *(None, 1, True, [], {}, "A", " a", "a ", "-a"),
    ],
    "queue": ["", "x" * 101, "a b", None, 5, "ä"],
    "priority": [-1, 101, 10**9, 10**400, 1.5, 1.0, "5", True, None, []],
    "max_retries": [-1, 21, 10**9, 1.5, "5", True, None],
    "timeout": [-1, 0, 10**9, "5", True, None],
    "delay": [-1, 10**9, "5", True, None, 365 * 86_400 + 1],
    "run_at": [
        *("2026-01-31T12:00:00", "2026-01-31", "2026-01-31T24:00:00Z", "2026-02-30T12:00:00Z", "now", "", 1.7e9),
        *("2016-12-31T23:59:60Z", "0000-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "10000-01-01T00:00:00Z", None),
        *("2026-01-31T12:00:00+25:00", "٢026-01-31T12:00:00Z", "0001-01-01T00:00:00+23:59"),
        *(timedelta(minutes=-6), timedelta(days=366)),
    ],
    "expires_at": ["tomorrow", None, 5, timedelta(seconds=-1)],
    "idempotency_key": ["", "x" * 256, "x" * 10_240, "a\r\nb", "a\u007f", 5, None, []],
    "unique_key": ["", "x" * 10_240, "a\nb", 5, None],
    "concurrency_key": ["", "x" * 256, "a\nb", 5, None],
    "tags": ["a", [""], ["x" * 101], ["a\nb"], [1], ["t"] * 33, [f"t{i}" for i in range(1_000)], None, {}],
    "traceparent": ["", "00-0-0-0", 5, None],
    "unknown": [1],
    "Type": ["echo"],
    "status": ["COMPLETED"],
    "id": ["01890a5d-ac96-774b-bcce-b302099a8057"],
    "x" * 500: [1],
}
FIELDS = [(field, value) for field, values in WRONG.items() for value in values]


@pytest.mark.parametrize(("field", "value"), FIELDS, ids=[f"{f[:20]}={str(v)[:24]!a}" for f, v in FIELDS])
@pytest.mark.usefixtures("unwritten")
async def test_a_wrong_field_is_a_422_that_names_it(client: httpx.AsyncClient, field: str, value: Any) -> None:
    body = {"type": "echo"} | {field: _at(value) if isinstance(value, timedelta) else value}
    found = problem(await post(client, json.dumps(body)), 422, "invalid_task")
    assert [e["field"].partition("[")[0] for e in found["errors"]] == [field[:200]]
    assert all(e["message"] for e in found["errors"])


@pytest.mark.parametrize("body", [b"[]", b'"echo"', b"1", b"null", b"true"])
async def test_a_body_that_is_no_object_is_a_422(client: httpx.AsyncClient, body: bytes) -> None:
    problem(await post(client, body), 422, "invalid_task")


async def test_every_wrong_field_is_named_at_once(client: httpx.AsyncClient) -> None:
    found = problem(await post(client, b'{"priority":-1,"queue":"A B","zzz":1}'), 422, "invalid_task")
    assert {e["field"] for e in found["errors"]} == {"type", "priority", "queue", "zzz"}


async def test_run_at_and_delay_exclude_each_other(client: httpx.AsyncClient) -> None:
    body = json.dumps({"type": "echo", "run_at": _at(timedelta(hours=1)), "delay": 5})
    found = problem(await post(client, body), 422, "invalid_task")
    assert found["errors"][0]["field"] == "delay"


async def test_run_at_a_little_past_counts_as_now(client: httpx.AsyncClient) -> None:
    made = (await post(client, json.dumps({"type": "echo", "run_at": _at(timedelta(minutes=-4))}))).json()
    assert made["run_at"] == made["created_at"]


@pytest.mark.parametrize("name", ["q" * 100, "a.b_c:d-e", "0"])
async def test_a_long_queue_name_is_taken(client: httpx.AsyncClient, name: str) -> None:
    made = await post(client, json.dumps({"type": "echo", "queue": name}))
    assert made.status_code == 201
    assert (await client.get(f"/api/v1/queues/{name}")).json()["depth"] == 1


PATHS = [
    "/api/v1/tasks/x",
    "/api/v1/tasks/01890a5d-ac96-774b-bcce-b302099a8057",
    "/api/v1/tasks/01890A5D-AC96-774B-BCCE-B302099A8057",
    "/api/v1/tasks/01890a5dac96774bbcceb302099a8057",
    "/api/v1/tasks/{01890a5d-ac96-774b-bcce-b302099a8057}",
    "/api/v1/tasks/%2e%2e",
    "/api/v1/tasks/%00",
    "/api/v1/tasks/%ff",
    "/api/v1/tasks/",
    "/api/v1//tasks",
    "/api/v1/queues/A%20B",
    "/api/v1/queues/%00",
    "/api/v1/queues/none",
    "/api/v1/tasks/01890a5d-ac96-774b-bcce-b302099a8057/logs",
    "/api/v1/tasks/01890a5d-ac96-774b-bcce-b302099a8057/attempts",
    "/api/v1/tasks/x/wait",
    "/api/v2/tasks",
    "/docs/../docs.html",
    "/docs/docs.html",
    "/nothing",
]


@pytest.mark.parametrize("path", PATHS)
async def test_malformed_and_unknown_are_the_same_404(client: httpx.AsyncClient, path: str) -> None:
    found = problem(await client.get(path), 404, "not_found")
    del found["request_id"]
    reference = problem(await client.get("/api/v1/tasks/00000000-0000-7000-8000-000000000000"), 404, "not_found")
    del reference["request_id"]
    assert found == reference


QUERIES = [
    *(("limit", v) for v in ("-1", "0", "501", "1000000000", "x", "", "1.5", "٣", "1e2", " 5")),
    *(("offset", v) for v in ("-1", "x", "1000000001", "99999999999999999999")),
    *(("cursor", v) for v in ("x", "", "AAAA", "ä", "A" * 43 + "=", "../..")),
    *(("status", v) for v in ("pending", "", "LOST", "PENDING,DEAD", "' OR 1=1")),
    *(("type", v) for v in ("", "A B", "x" * 101, "' OR 1=1 --")),
    *(("retrying", v) for v in ("yes", "", "1")),
    *(("due", v) for v in ("now", "")),
    *(("worker", v) for v in ("x", "", "01890A5D-AC96-774B-BCCE-B302099A8057")),
    *(("created_after", v) for v in ("yesterday", "2026-01-31T12:00:00", "", "10000-01-01T00:00:00Z")),
    *(("q", v) for v in ("", "x" * 201, "a\x00b")),
    *(("tag", v) for v in ("", "x" * 101)),
    ("unknown", "1"),
    ("STATUS", "PENDING"),
]


@pytest.mark.parametrize(("name", "value"), QUERIES, ids=[f"{n}={v[:20]!a}" for n, v in QUERIES])
async def test_a_wrong_query_is_a_422_that_names_it(client: httpx.AsyncClient, name: str, value: str) -> None:
    found = problem(await client.get("/api/v1/tasks", params={name: value}), 422, "invalid_query")
    assert [e["field"] for e in found["errors"]] == [name]


NUMBERS = [
    (route, param)
    for route in TABLE
    for param in route.query
    if param.schema.get("type") in ("integer", "number") and "text/event-stream" not in route.answers.values()
]


@pytest.mark.parametrize(("route", "param"), NUMBERS, ids=[f"{r.method} {r.path} {p.name}" for r, p in NUMBERS])
async def test_every_number_in_a_query_is_bounded(client: httpx.AsyncClient, route: Route, param: Param) -> None:
    """S17: no window, page or wave can be asked for that would take long."""
    path = "/api/v1" + route.path.replace("{id}", NOBODY).replace("{name}", "q")
    for value in ("1" + "0" * 30, "-1", "1e400", "nan", "0x10", ""):
        answer = await client.request(route.method, path, params={param.name: value}, headers=JSON)
        found = problem(answer, 422, "invalid_query")
        assert [e["field"] for e in found["errors"]] == [param.name]


@pytest.mark.parametrize("path", ["/tasks?q=x", "/dead-letters?type=t"])
async def test_a_list_that_takes_long_is_ended(
    client: httpx.AsyncClient, shared_pool: Pool, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S17: and its statement with it, so that nothing piles up behind."""
    monkeypatch.setattr(tasks, "LIST_SECONDS", 0.2)
    async with shared_pool.acquire() as blocker, blocker.transaction():
        await blocker.execute("LOCK TABLE dhara.tasks IN ACCESS EXCLUSIVE MODE")
        found = problem(await client.get("/api/v1" + path), 503, "overloaded")
        assert "narrow its filters" in found["detail"]
        waiting = "SELECT count(*) = 0 FROM pg_locks WHERE NOT granted AND relation = 'dhara.tasks'::regclass"
        await eventually(lambda: blocker.fetchval(waiting))


@pytest.mark.parametrize("name", ["limit", "type", "cursor", "q"])
async def test_a_repeated_filter_is_refused(client: httpx.AsyncClient, name: str) -> None:
    good = {"limit": "5", "type": "echo", "cursor": "x", "q": "x"}[name]
    found = problem(await client.get(f"/api/v1/tasks?{name}={good}&{name}={good}"), 422, "invalid_query")
    assert name in {e["field"] for e in found["errors"]}


@pytest.mark.parametrize("path", ["/api/v1/queues?x=1", "/api/v1/stats?x=1", "/livez?x=1", "/metrics?name=x"])
async def test_routes_without_parameters_refuse_any(client: httpx.AsyncClient, path: str) -> None:
    problem(await client.get(path), 422, "invalid_query")


async def test_invalid_percent_encoding_in_a_query(client: httpx.AsyncClient) -> None:
    problem(await client.get("/api/v1/tasks?type=%ff"), 422, "invalid_query")
    problem(await client.get("/api/v1/tasks?" + "&".join(["type=a"] * 200)), 422, "invalid_query")


@pytest.mark.parametrize("value", ["%", "_", "\\", "'; DROP TABLE dhara.tasks; --", '"', "$1", "a%b_c\\d"])
async def test_sql_metacharacters_are_only_text(client: httpx.AsyncClient, value: str) -> None:
    await post(client, b'{"type":"metacharacters"}')  # whose payload, {}, holds none of them
    found = await client.get("/api/v1/tasks", params={"q": value, "type": "metacharacters"})
    assert (found.status_code, found.json()["total"]) == (200, 0)


async def test_a_url_over_8_kib_is_a_414(client: httpx.AsyncClient) -> None:
    problem(await client.get("/api/v1/tasks?q=" + "x" * 8_192), 414, "url_too_long")


@pytest.mark.parametrize("key", ["x" * 1_000, "x" * 256])
async def test_a_long_key_in_the_header_is_a_422(client: httpx.AsyncClient, key: str) -> None:
    answer = await client.post("/api/v1/tasks", content=b'{"type":"echo"}', headers=JSON | {"idempotency-key": key})
    problem(answer, 422, "invalid_task")


@pytest.mark.parametrize("keys", [[b"a", b"b"], [b"a", b"a"], [b"\xff"], [b""], [b"a\rb"]])
async def test_bad_key_headers_are_a_422(client: httpx.AsyncClient, keys: list[bytes]) -> None:
    headers = [(b"content-type", b"application/json"), *((b"idempotency-key", key) for key in keys)]
    problem(await client.post("/api/v1/tasks", content=b'{"type":"echo"}', headers=headers), 422, "invalid_task")


BATCHES: dict[str, tuple[bytes, str]] = {
    "none": (b'{"tasks":[]}', "invalid_batch"),
    "no list": (b'{"tasks":{}}', "invalid_batch"),
    "absent": (b"{}", "invalid_batch"),
    "a text": (b'"x"', "invalid_batch"),
    "1,001": (json.dumps({"tasks": [{"type": "t"}] * 1_001}).encode(), "invalid_batch"),
    "unknown field": (b'{"tasks":[{"type":"t"}],"atomic":true}', "invalid_batch"),
    "NUL": (rb'{"tasks":[{"type":"t","payload":"\u0000"}]}', "invalid_string"),
}


@pytest.mark.parametrize(("body", "code"), BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.usefixtures("unwritten")
async def test_bad_batches_are_a_422(client: httpx.AsyncClient, body: bytes, code: str) -> None:
    problem(await post(client, body, "/api/v1/tasks/batch"), 422, code)


@pytest.mark.parametrize(
    "bad", [{"type": "A"}, {"type": "t", "zzz": 1}, 5, None, {"type": "t", "payload": "x" * 300_000}]
)
@pytest.mark.usefixtures("unwritten")
async def test_one_bad_of_many_is_named_by_its_index(client: httpx.AsyncClient, bad: Any) -> None:
    tasks = [{"type": "t"}] * 499 + [bad] + [{"type": "t"}] * 500
    found = problem(await post(client, json.dumps({"tasks": tasks}), "/api/v1/tasks/batch"), 422, "invalid_batch")
    assert found["index"] == 499
    assert found["errors"][0]["field"].startswith("[499].")


@pytest.mark.usefixtures("unwritten")
async def test_the_same_key_twice_inside_a_batch(client: httpx.AsyncClient) -> None:
    tasks = [{"type": "t", "idempotency_key": k} for k in ("a", "b", "a")]
    found = problem(await post(client, json.dumps({"tasks": tasks}), "/api/v1/tasks/batch"), 422, "invalid_batch")
    assert found["index"] == 2


RETRIES: dict[str, bytes] = {
    "unknown field": b'{"type":"other"}',
    "queue": b'{"queue":"A B"}',
    "priority": b'{"priority":101}',
    "run_at": b'{"run_at":"soon"}',
    "null": b'{"queue":null}',
    "not an object": b"[]",
}


@pytest.mark.parametrize("body", RETRIES.values(), ids=RETRIES.keys())
async def test_bad_retries_are_a_422(client: httpx.AsyncClient, body: bytes) -> None:
    made = (await post(client, b'{"type":"echo"}')).json()
    problem(await post(client, body, f"/api/v1/tasks/{made['id']}/retry"), 422, "invalid_task")


KEYS: dict[str, list[Any]] = {
    "name": ["", " ", "x" * 101, "a\r\nb", None, 5],
    "scopes": [[], ["root"], "read", ["read", 1], None, {}],
    "queues": ["mail", ["A"], ["a b"], ["x" * 101], ["a"] * 51, None, [""]],
    "rate": [0, -1, 10**9, "5", True, None],
    "expires_in": [0, -1, 10**12, "1h", True, None],
    "id": ["x"],
    "digest": ["x"],
}
KEY_FIELDS = [(field, value) for field, values in KEYS.items() for value in values]


@pytest.mark.parametrize(("field", "value"), KEY_FIELDS, ids=[f"{f}={str(v)[:20]!a}" for f, v in KEY_FIELDS])
async def test_a_wrong_field_of_a_key_is_a_422_that_names_it(client: httpx.AsyncClient, field: str, value: Any) -> None:
    body = json.dumps({"name": "k", "scopes": ["read"]} | {field: value})
    found = problem(await post(client, body, "/api/v1/keys"), 422, "invalid_key")
    assert {e["field"] for e in found["errors"]} == {field}


async def test_a_problem_echoes_no_surrogate_and_is_bounded(client: httpx.AsyncClient) -> None:
    body = "{" + ",".join(f'"k{i}":1' for i in range(5_000)) + "}"
    answer = await post(client, body)
    problem(answer, 422, "invalid_task")
    assert len(answer.content) < 40_000
