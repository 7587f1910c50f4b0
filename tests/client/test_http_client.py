"""`AsyncClient` and `Client` on the HTTP API: the same answers and exceptions as on PostgreSQL, and safe repetition."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import msgspec
import pytest

from dhara import (
    AsyncClient,
    Client,
    ConfigError,
    IdempotencyConflict,
    InvalidBatch,
    InvalidTask,
    NotFound,
    SchemaError,
    State,
    TaskFailed,
    Unavailable,
    WrongState,
)
from dhara.api.asgi import create_app
from dhara.api.server import serve
from dhara.client import http
from dhara.client.calls import build
from dhara.client.http import HttpBackend
from dhara.settings import Settings
from dhara.store.pool import Pool
from tests.factories import claim, make_task, settle_all

URL = "http://127.0.0.1:8080"


class Line(httpx.AsyncBaseTransport):
    """The way to the application; `faults` befall the next requests: before they arrive, or after they were answered."""

    def __init__(self, app: Any) -> None:
        self.app = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        self.faults: list[Callable[[httpx.Request, httpx.Response | None], httpx.Response | None]] = []
        self.requests: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        fault = self.faults.pop(0) if self.faults else None
        if fault is not None and (early := fault(request, None)) is not None:
            return early
        response = await self.app.handle_async_request(request)
        if fault is not None:
            await response.aread()
            fault(request, response)
        return response


def refused(request: httpx.Request, response: httpx.Response | None) -> None:
    raise httpx.ConnectError("refused", request=request)


def lost(request: httpx.Request, response: httpx.Response | None) -> None:
    """The answer is lost, though all was done."""
    if response is not None:
        raise httpx.ReadError("reset by peer", request=request)


def says(status: int, code: str = "", **headers: str) -> Callable[..., httpx.Response]:
    body = msgspec.json.encode({"code": code, "detail": "said so", "status": status})
    return lambda request, response: httpx.Response(status, content=body, headers=headers, request=request)


@pytest.fixture
def line(pool: Pool) -> Line:
    return Line(create_app(pool=pool, settings=Settings()))


async def over(line: Line, **options: Any) -> AsyncClient:
    client = AsyncClient(URL)
    client._backend = HttpBackend(URL, transport=line, **({"patience": 30.0} | options))
    return await client.open()


@pytest.fixture
async def remote(line: Line) -> AsyncIterator[AsyncClient]:
    client = await over(line)
    line.requests.clear()
    yield client
    await client.close()


async def test_an_enqueued_task_is_what_was_asked_for(remote: AsyncClient) -> None:
    at = datetime.now(UTC) + timedelta(hours=1)
    options: Any = {
        "queue": "mail",
        "priority": 50,
        "max_retries": 2,
        "run_at": at,
        "idempotency_key": "k1",
        "timeout": 30,
        "expires_at": at + timedelta(days=1),
        "tags": ["a", "b"],
        "concurrency_key": "c",
        "unique_key": "u",
        "unique_for": timedelta(hours=2),
        "on_conflict": "reschedule",
        "retention": 60,
        "traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01",
    }
    handle = await remote.enqueue("email.send", msgspec.Raw(b'{"to":  "a@b.c", "n": 1.0}'), **options)
    assert handle.created
    task = await remote.get(handle.id)
    assert task.payload == '{"to":  "a@b.c", "n": 1.0}'
    assert (task.type, task.queue, task.priority, task.max_retries) == ("email.send", "mail", 50, 2)
    assert (task.run_at, task.timeout, task.expires_at) == (at, 30.0, at + timedelta(days=1))
    assert (task.tags, task.concurrency_key, task.unique_key, task.retention) == (("a", "b"), "c", "u", 60.0)
    assert (task.idempotency_key, task.traceparent) == ("k1", options["traceparent"])


async def test_both_clients_see_the_same_task(remote: AsyncClient, client: AsyncClient, pool: Pool) -> None:
    for state in State:
        made = await make_task(pool, state, failures=1, tags=("x",), result='{"n": 1e2}')
        local, far = await client.get(made.id), await remote.get(made.id)
        # Leases do not leave the server, nor who ran a task that runs no longer.
        locked_by = local.locked_by if state is State.RUNNING else None
        assert far == msgspec.structs.replace(local, lease=None, locked_by=locked_by)
        assert await remote.logs(made.id) == await client.logs(made.id)
        assert await remote.attempts(made.id) == await client.attempts(made.id)
    assert await remote.attempts(uuid4()) == []


async def test_lists_and_their_continuation(remote: AsyncClient, client: AsyncClient) -> None:
    await client.enqueue_many([{"type": "t", "payload": n} for n in range(5)], tags=["a"])
    await client.enqueue("other")
    first = await remote.list(type="t", tag="a", status="PENDING", due="ready", limit=3)
    assert (len(first.tasks), first.total, first.total_is_estimate) == (3, 5, False)
    assert first.next == first.tasks[-1].id
    second = await remote.list(type="t", tag="a", status="PENDING", due="ready", limit=3, after=first.next)
    assert second.next is None
    seen = [task.id for task in [*first.tasks, *second.tasks]]
    assert seen == [task.id for task in (await client.list(type="t")).tasks]
    assert [task.type for task in (await remote.list(offset=5)).tasks] == ["t"]
    with pytest.raises(ValueError, match="only a list that this client has begun"):
        await remote.list(after=uuid4())


async def test_refusals_become_the_same_exceptions(remote: AsyncClient, pool: Pool) -> None:
    standing = await remote.enqueue("t", {"n": 1}, idempotency_key="k")
    again = await remote.enqueue("t", {"n": 1}, idempotency_key="k")
    assert (again.id, again.created) == (standing.id, False)
    with pytest.raises(IdempotencyConflict) as conflict:
        await remote.enqueue("t", {"n": 2}, idempotency_key="k")
    assert conflict.value.existing == standing.id
    with pytest.raises(NotFound):
        await remote.get(uuid4())
    with pytest.raises(WrongState) as wrong:
        await remote.retry(standing.id)
    assert wrong.value.state == "PENDING"
    # Past the client's own checks, to see what it makes of the server's.
    backend = remote._backend
    with pytest.raises(InvalidTask) as invalid:
        await backend.enqueue(msgspec.structs.replace(build("t", None, {}), type="no type", priority=1_000))
    assert [field for field, _ in invalid.value.problems] == ["type", "priority"]
    with pytest.raises(InvalidBatch) as batch:
        await backend.enqueue_many(
            [build("t", None, {}), msgspec.structs.replace(build("t", None, {}), priority=1_000)]
        )
    assert (batch.value.index, batch.value.problems[0][0]) == (1, "[1].priority")


async def test_cancel_and_revive(remote: AsyncClient, pool: Pool) -> None:
    handle = await remote.enqueue("t")
    assert [await remote.cancel(handle.id, "by hand") for _ in range(2)] == [State.PENDING, State.CANCELED]
    assert (await remote.get(handle.id)).reason == "by hand"
    running = await make_task(pool, State.RUNNING)
    assert await remote.cancel(running.id) is State.RUNNING
    done = await make_task(pool, State.COMPLETED)
    assert await remote.cancel(done.id) is State.COMPLETED
    with pytest.raises(NotFound):
        await remote.cancel(uuid4())
    dead = await make_task(pool, State.DEAD)
    revived = await remote.retry(dead.id, queue="mail", priority=7, payload=msgspec.Raw(b"[1,  2]"))
    assert (revived.status, revived.queue, revived.priority, revived.payload) == (
        State.PENDING,
        "mail",
        7,
        "[1,  2]",
    )


async def test_results(remote: AsyncClient, pool: Pool) -> None:
    handles = [await remote.enqueue("t", {"n": n}) for n in range(20)]
    waiting = asyncio.gather(*(handle.result(timeout=20) for handle in handles))
    await settle_all(pool, [await claim(pool, handle.id) for handle in handles])
    assert await waiting == [None] * 20
    dead = await make_task(pool, State.DEAD, reason="permanent")
    with pytest.raises(TaskFailed, match="permanent"):
        await remote.handle(dead.id).result()
    with pytest.raises(TimeoutError, match="still PENDING"):
        await (await remote.enqueue("t")).result(timeout=0.1)
    with pytest.raises(TimeoutError, match="was its transaction committed"):
        await remote.handle(uuid4()).result(timeout=0.1)


async def test_waiting_is_one_request_not_many(remote: AsyncClient, line: Line, pool: Pool) -> None:
    handle = await remote.enqueue("t")
    line.requests.clear()
    waiting = asyncio.create_task(handle.result(timeout=20))
    held = await claim(pool, handle.id)
    await asyncio.sleep(0.5)
    await settle_all(pool, [held])
    await waiting
    assert [request.url.path.rpartition("/")[2] for request in line.requests] == ["wait"]


async def test_closing_cancels_those_who_wait(line: Line) -> None:
    client = await over(line)
    handle = await client.enqueue("t")
    waiting = asyncio.create_task(handle.result(timeout=60))
    await asyncio.sleep(0.05)
    await client.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting


@pytest.mark.parametrize("fault", [refused, lost, says(503, "unavailable"), says(502), says(429)])
async def test_an_enqueue_is_repeated_and_makes_one_task(
    fault: Any, remote: AsyncClient, line: Line, pool: Pool
) -> None:
    line.faults = [fault, fault]
    handle = await remote.enqueue("t", {"n": 1})
    assert (handle.created, len(line.requests)) == (True, 3)
    assert len({request.content for request in line.requests}) == 1
    assert await pool.fetchval("SELECT count(*) FROM dhara.tasks") == 1
    line.faults = [fault]
    assert all(handle.created for handle in await remote.enqueue_many([{"type": "u", "payload": n} for n in range(3)]))
    assert await pool.fetchval("SELECT count(*) FROM dhara.tasks WHERE type = 'u'") == 3


async def test_the_users_own_key_tells_a_replay(remote: AsyncClient, line: Line) -> None:
    """Whether the first answer was lost or somebody else enqueued it cannot be told apart: it stood already."""
    line.faults = [lost]
    assert not (await remote.enqueue("t", idempotency_key="k")).created
    assert (await remote.enqueue("t", unique_key="u")).created
    assert not (await remote.enqueue("t", unique_key="u")).created


async def test_a_revival_is_not_repeated_blindly(remote: AsyncClient, line: Line, pool: Pool) -> None:
    dead = await make_task(pool, State.DEAD)
    for fault in (says(503, "unavailable"), says(502)):
        line.faults, line.requests = [fault], []
        with pytest.raises(Unavailable):
            await remote.retry(dead.id)
        assert len(line.requests) == 1
    line.faults, line.requests = [refused, says(503, "overloaded"), lost], []
    with pytest.raises(Unavailable):
        await remote.retry(dead.id)
    assert len(line.requests) == 3
    assert (await remote.get(dead.id)).generation == 2


async def test_a_cancellation_is_repeated(remote: AsyncClient, line: Line) -> None:
    handle = await remote.enqueue("t")
    line.faults = [lost, says(503)]
    assert await handle.cancel() is State.CANCELED


async def test_retry_after_is_heeded(remote: AsyncClient, line: Line) -> None:
    line.faults = [says(503, "overloaded", **{"retry-after": "1"})]
    loop = asyncio.get_running_loop()
    start = loop.time()
    await remote.enqueue("t")
    assert loop.time() - start >= 1


async def test_patience_has_an_end(line: Line) -> None:
    client = await over(line, patience=0.3)
    line.faults = [refused] * 100
    with pytest.raises(Unavailable, match="no answer"):
        await client.get(uuid4())
    assert 2 <= len(line.requests) <= 10
    # Nor does it wait for what comes later than its end.
    line.requests, line.faults = [], [says(503, **{"retry-after": "60"})]
    with pytest.raises(Unavailable, match="said so"):
        await client.get(uuid4())
    assert len(line.requests) == 1
    await client.close()


async def test_batches_are_cut_by_number_and_size(
    remote: AsyncClient, line: Line, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    handles = await remote.enqueue_many([{"type": "t", "payload": n} for n in range(2_500)])
    assert len({handle.id for handle in handles}) == 2_500
    assert len(line.requests) == 3
    line.requests.clear()
    await remote.enqueue_many([{"type": "big", "payload": "x" * 200_000} for _ in range(40)])
    assert len(line.requests) == 3
    # A batch is all or none; those before it stand, and the index counts over all.
    monkeypatch.setattr(http, "BATCH_BYTES", 4_000)
    await remote.enqueue("t", {"n": 1}, idempotency_key="k")
    items: list[dict[str, Any]] = [{"type": "v", "payload": n} for n in range(6)]
    items[4] = {"type": "t", "payload": {"n": 2}, "idempotency_key": "k"}
    with pytest.raises(IdempotencyConflict) as caught:
        await remote.enqueue_many(items)
    assert caught.value.index == 4
    assert await pool.fetchval("SELECT count(*) FROM dhara.tasks WHERE type = 'v'") == 3


async def test_tokens(pool: Pool) -> None:
    line = Line(create_app(pool=pool, settings=Settings(api_keys=("a-key-of-these-tests",))))
    for token in (None, "another"):
        client = await over(line, token=token)
        with pytest.raises(ConfigError, match="check the token"):
            await client.enqueue("t")
        await client.close()
    client = await over(line, token="a-key-of-these-tests")
    assert (await client.enqueue("t")).created
    await client.close()


async def test_a_key_that_may_not_see_results_says_so(pool: Pool) -> None:
    app = create_app(pool=pool, settings=Settings())
    key = await app.parts.keys.create("producer", ["enqueue", "read"])
    await app.parts.ring.refresh()
    client = await over(Line(app), token=key.text)
    done = await make_task(pool, State.COMPLETED)
    assert (await client.wait(done.id, timeout=5)).status is State.COMPLETED
    with pytest.raises(ConfigError, match="read:payload"):
        await client.handle(done.id).result(5)
    assert (await client.enqueue("t", {"n": 1})).created
    await client.close()


async def test_a_transaction_cannot_be_shared_with_a_server(remote: AsyncClient, pool: Pool) -> None:
    async with pool.acquire() as connection:
        with pytest.raises(TypeError, match="needs a client on PostgreSQL"):
            await remote.enqueue_tx(connection, "t")
    with pytest.raises(TypeError, match="needs a client on PostgreSQL"):
        Client(URL).enqueue_tx(None, "t")


async def test_what_cannot_be_right_is_refused_in_one_line(line: Line) -> None:
    for wrong in ("http://", "https://host?x=1", "http://host:99999"):
        with pytest.raises(ConfigError):
            AsyncClient(wrong)
    with pytest.raises(ConfigError, match="token"):
        AsyncClient("postgresql://h/d", token="k")
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
        await AsyncClient("http://u:secret@127.0.0.1:1", patience=0.1).open()
    with pytest.raises(Unavailable, match="not open"):
        await AsyncClient(URL).enqueue("t")
    client = await over(line)
    line.faults = [says(404), says(301), says(503, "schema_error")]
    for kind in (ConfigError, ConfigError, SchemaError):
        with pytest.raises(kind):
            await client.enqueue("t")
    await client.close()


async def test_readiness(remote: AsyncClient, line: Line, pool: Pool) -> None:
    await remote.check()
    line.faults = [says(503)]
    with pytest.raises(Unavailable, match="not ready"):
        await remote.check()


def test_without_httpx_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(ConfigError, match=r"pip install 'dhara\[client\]'"):
        AsyncClient(URL)


@pytest.fixture
async def url(pool: Pool) -> AsyncIterator[str]:
    """A server on a socket."""
    stop, started = asyncio.Event(), asyncio.get_running_loop().create_future()
    app = create_app(pool=pool, settings=Settings())
    serving = asyncio.create_task(
        serve(app, host="127.0.0.1", port=0, stop=stop, on_started=lambda host, port: started.set_result(port), grace=1)
    )
    yield f"http://127.0.0.1:{await asyncio.wait_for(started, 30)}"
    stop.set()
    await serving


async def test_over_real_sockets_from_code_without_a_loop(url: str, pool: Pool) -> None:
    def sync() -> None:
        with Client(url) as client:
            handle = client.enqueue("t", {"n": 1}, tags=["a"])
            assert (handle.created, handle.status()) == (True, State.PENDING)
            assert [one.created for one in client.enqueue_many([{"type": "t"}] * 3)] == [True] * 3
            assert client.list(tag="a").total == 1
            assert handle.cancel() is State.PENDING
            with pytest.raises(TaskFailed):
                handle.result(timeout=5)

    await asyncio.to_thread(sync)


async def test_more_long_polls_than_may_go_at_once_take_turns(
    url: str, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "MOST_POLLS", 10)
    monkeypatch.setattr(http, "TURN", 0.2)
    async with AsyncClient(url) as client:
        handles = await asyncio.gather(*(client.enqueue("t", n) for n in range(50)))
        waiting = asyncio.gather(*(handle.result(timeout=60) for handle in handles))
        await settle_all(pool, [await claim(pool, handle.id) for handle in handles])
        assert await waiting == [None] * 50
