"""Server-sent events: one poller whatever the number of streams, none without; and the figures that they carry."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from dhara.api import events, keyring
from dhara.api.asgi import Api
from dhara.api.events import Feed
from dhara.domain.forecast import Forecast, forecast
from dhara.domain.lifecycle import State
from dhara.store.pool import Pool
from dhara.store.stats import Stats
from dhara.store.tasks import Tasks
from tests import factories
from tests.waiting import eventually


class Listener:
    """A stream of `/events`, as a browser holds it: its own end of an ASGI request."""

    def __init__(self, app: Api, query: str = "", key: str = "") -> None:
        self._leave = asyncio.Event()
        self._pieces: asyncio.Queue[bytes] = asyncio.Queue()
        self.headers: dict[bytes, bytes] = {}
        scope = {
            "type": "http",
            "method": "GET",
            "path": "/api/v1/events",
            "query_string": query.encode(),
            "headers": [(b"host", b"127.0.0.1:8080")] + ([(b"authorization", f"Bearer {key}".encode())] if key else []),
        }
        self._first = True
        self.request = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if self._first:
            self._first = False
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._leave.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.headers = dict(message["headers"])
        elif message["body"]:
            await self._pieces.put(message["body"])

    async def event(self, kind: str) -> Any:
        """The data of the next event of this kind."""
        while True:
            for text in (await asyncio.wait_for(self._pieces.get(), 20)).decode().split("\n\n"):
                if text.startswith(f"event: {kind}\ndata: "):
                    return json.loads(text.partition("data: ")[2])

    async def leave(self) -> None:
        self._leave.set()
        await asyncio.wait_for(self.request, 20)


@pytest.fixture
async def quick(app: Api) -> AsyncIterator[Api]:
    app.parts.feed._interval = 0.02
    app.parts.figures._pulses._keep = 0.0
    yield app
    app.parts.feed.close()


async def test_fifty_streams_cost_one_poll(quick: Api, pool: Pool) -> None:
    feed = quick.parts.feed
    listeners = [Listener(quick) for _ in range(50)]
    first = [await listener.event("stats") for listener in listeners]
    assert all(figures["by_status"]["PENDING"] == 0 for figures in first)
    assert listeners[0].headers[b"content-type"] == b"text/event-stream"
    assert listeners[0].headers[b"cache-control"] == b"no-store"
    assert (len(feed), feed._poller is not None) == (50, True)
    await Tasks(pool).enqueue([factories.new_task(queue="mail")])
    told = [await listener.event("queues") for listener in listeners]
    assert {queues["queues"][0]["name"] for queues in told if queues["queues"]} == {"mail"}
    metrics = (await _client(quick).get("/metrics")).text
    assert "dhara_event_streams 50" in metrics
    for listener in listeners:
        await listener.leave()
    assert (len(feed), feed._poller) == (0, None)
    rounds = feed.rounds
    await asyncio.sleep(0.1)
    assert feed.rounds == rounds


async def test_a_task_is_followed_to_its_end(quick: Api, pool: Pool) -> None:
    task = await factories.make_task(pool)
    listener = Listener(quick, f"task={task.id}")
    assert (await listener.event("task"))["status"] == "PENDING"
    await Tasks(pool).request_cancel(task.id)
    assert (await listener.event("task"))["status"] == "CANCELED"
    await listener.leave()


async def test_a_stop_ends_streams_and_silence_is_broken(quick: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "BEAT", 0.05)
    listener = Listener(quick)
    seen = b""
    while b": beat" not in seen:
        seen += await asyncio.wait_for(listener._pieces.get(), 20)
    assert seen.startswith(b"retry: ")
    quick.drain()
    await asyncio.wait_for(listener.request, 20)


ENDS: dict[str, str] = {
    "revoked": "UPDATE dhara.api_keys SET revoked_at = now(), changed_at = now() WHERE name = 'test'",
    "expired": "UPDATE dhara.api_keys SET expires_at = now(), changed_at = now() WHERE name = 'test'",
    "deleted by hand": "DELETE FROM dhara.api_keys WHERE name = 'test'",
    "the first key is made": "",
}


@pytest.mark.parametrize("how", ENDS)
async def test_streams_and_long_polls_end_with_their_key(
    quick: Api, pool: Pool, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S7: nothing is told once the server has heard that the key is no longer valid."""
    assert keyring.INTERVAL + events.LOOK < 5
    monkeypatch.setattr(events, "LOOK", 0.02)
    keys, ring, text = quick.parts.keys, quick.parts.ring, ""
    if ENDS[how]:
        text = (await keys.create("test", ["read"])).text
        await keys.create("another", ["read"])
    await ring.refresh()
    task = await factories.make_task(pool)
    listener = Listener(quick, f"task={task.id}", text)
    await listener.event("task")
    async with _client(quick, {"authorization": f"Bearer {text}"} if text else {}) as client:
        poll = asyncio.create_task(client.get(f"/api/v1/tasks/{task.id}/wait?timeout=60"))
        await eventually(lambda: len(quick.parts.waiters) == 1)
        if ENDS[how]:
            await pool.execute(ENDS[how])
        else:
            await keys.create("test", ["read"])
        ring._rounds = 0  # a look at all of them
        await ring.refresh()
        while not listener._pieces.empty():
            listener._pieces.get_nowait()
        await Tasks(pool).request_cancel(task.id)
        answer = await asyncio.wait_for(poll, 30)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    await asyncio.wait_for(listener.request, 30)
    assert listener._pieces.empty() and len(quick.parts.feed) == 0


async def test_a_slow_reader_gets_the_latest_only(app: Api) -> None:
    feed: Feed = app.parts.feed
    one = feed.subscribe()
    for n in range(1_000):
        feed._publish("stats", n)
    assert await one.take(1) == b"event: stats\ndata: 999\n\n"
    assert await one.take(0.01) == b""
    feed.unsubscribe(one)


async def test_too_many_streams_are_refused(
    app: Api, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MOST_STREAMS", 0)
    answer = await client.get("/api/v1/events")
    assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
    query = "&".join(f"task=01890a5d-ac96-774b-bcce-b3020{n:07}" for n in range(21))
    assert (await client.get(f"/api/v1/events?{query}")).status_code == 422


def _client(app: Api, headers: dict[str, str] | None = None) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080", headers=headers)


async def test_rates_come_from_samples_that_maintenance_takes(client: httpx.AsyncClient, pool: Pool) -> None:
    stats = Stats(pool)
    await stats.sample()
    await stats.sample()  # the minute is noted already
    assert await pool.fetchval("SELECT count(*) FROM dhara.rates WHERE queue = '*'") <= 2
    await pool.execute("UPDATE dhara.rates SET minute = minute - interval '2 min', at = at - interval '100 s'")
    for state in (State.COMPLETED, State.COMPLETED, State.DEAD, State.PENDING):
        await factories.make_task(pool, state, queue="q")
    await stats.sample()
    await stats.fold_counters()
    await pool.execute("UPDATE dhara.rates SET at = at - interval '20 s' WHERE at > now() - interval '60 s'")
    found = (await client.get("/api/v1/stats/history")).json()
    assert found["depth"] == [1, 1]
    assert found["enqueued"][0] == pytest.approx(4 / 80, rel=0.3)
    assert (found["completed"][1], found["dead"][1], len(found["at"])) == (0, 0, 2)
    of_queue = (await client.get("/api/v1/stats/history?queue=q&minutes=5")).json()
    assert (of_queue["depth"], of_queue["dead"]) == ([1], [0])
    shown = (await client.get("/api/v1/stats")).json()
    assert shown["history"]["depth"] == [1, 1]
    assert shown["rates"]["completed"] == pytest.approx(2 / 100, rel=0.3)
    queue = (await client.get("/api/v1/queues/q")).json()
    assert queue["forecast"] == {"kind": "stalled"}
    await stats.prune_rates(60)
    assert await pool.fetchval("SELECT count(*) FROM dhara.rates WHERE minute < now() - interval '90 s'") == 0


@pytest.mark.parametrize(
    "ready, change, out, wanted",
    [
        (0, 5.0, 1.0, Forecast("empty")),
        (9, None, None, Forecast("unknown")),
        (9, 2.5, 1.0, Forecast("grows", rate=2.5)),
        (100, -4.0, 9.0, Forecast("drains", rate=4.0, seconds=25.0)),
        (9, 0.001, 3.0, Forecast("steady", rate=3.0)),
        (9, 0.0, 0.0, Forecast("stalled")),
    ],
)
def test_forecasts(ready: int, change: float | None, out: float | None, wanted: Forecast) -> None:
    assert forecast(ready, change, out) == wanted


async def test_without_a_database_the_stream_stays(quick: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken() -> Any:
        raise OSError("gone")

    whole = quick.parts.figures.pulse
    monkeypatch.setattr(quick.parts.figures, "pulse", broken)
    listener = Listener(quick)
    await eventually(lambda: _true(quick.parts.feed.rounds > 2))
    monkeypatch.setattr(quick.parts.figures, "pulse", whole)
    assert await listener.event("stats")
    await listener.leave()


async def _true(value: bool) -> bool:
    return value
