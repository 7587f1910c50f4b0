"""The short way of a POST answers as the long one does, and is as safe to stop and to hang up on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
import pytest_asyncio

from dhara.api import server, shortcut
from dhara.api.asgi import create_app
from dhara.domain.access import ENQUEUE, LEAST_RATE, PAYLOAD, READ
from dhara.domain.task import Enqueued, NewTask
from dhara.errors import IdempotencyConflict
from dhara.settings import Settings
from dhara.store.ids import new_id
from dhara.store.keys import Keys
from dhara.store.pool import Pool
from dhara.store.queues import Queues
from dhara.store.tasks import Tasks
from tests.api.running import Running, answer, hang_up, request
from tests.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

BODIES = {
    "a task": b'{"type":"echo","payload":{"n":1}}',
    "with all fields": b'{"type":"echo","queue":"mail","priority":7,"max_retries":2,"delay":60,"tags":["a"],"timeout":5}',
    "a repetition": b'{"type":"echo","payload":1,"idempotency_key":"same"}',
    "another payload under its key": b'{"type":"echo","payload":2,"idempotency_key":"same"}',
    "into a full queue": b'{"type":"echo","queue":"full"}',
    "a repetition in a full queue": b'{"type":"echo","queue":"full","idempotency_key":"there"}',
    "a queue that a key does not see": b'{"type":"echo","queue":"other"}',
    "a wrong field": b'{"type":"A","queues":1}',
    "a key twice": b'{"type":"echo","type":"echo"}',
    "not an object": b"[1]",
    "not JSON": b"{",
    "nothing": b"",
    "a character that cannot be stored": b'{"type":"echo","payload":"\\u0000"}',
}
KEYS: dict[str, tuple[str, ...]] = {
    "enqueue and read": (ENQUEUE, READ, PAYLOAD),
    "enqueue only": (ENQUEUE,),
    "read only": (READ,),
    "one queue": (ENQUEUE,),
    "slow": (ENQUEUE,),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def keys(shared_pool: Pool) -> dict[str, str]:
    store = Keys(shared_pool)
    options: dict[str, dict[str, Any]] = {"one queue": {"queues": ["default"]}, "slow": {"rate": LEAST_RATE}}
    found = {name: (await store.create(name, of, **options.get(name, {}))).text for name, of in KEYS.items()}
    there = [
        NewTask(id=new_id(), type="echo", payload="1", idempotency_key="same"),
        NewTask(id=new_id(), type="echo", queue="full", idempotency_key="there"),
    ]
    await Tasks(shared_pool).enqueue(there)
    await Queues(shared_pool).limit("full", 1)
    return found


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def exchange(connection: Connection, sent: bytes) -> tuple[int, dict[str, str], Any]:
    """The second answer to `sent`, without what differs between any two."""
    reader, writer = connection
    writer.write(sent)
    await answer(reader)
    writer.write(sent)
    status, headers, body = await answer(reader)
    own = {"date", "x-request-id", "content-length", "retry-after"} | ({"location"} if status == 201 else set())
    headers |= dict.fromkeys(own & headers.keys(), "")
    found = json.loads(body)
    for field in ("id", "request_id", "run_at", "created_at", "updated_at") if status != 200 else ("request_id",):
        found.pop(field, None)
    return status, headers, found


@pytest.mark.parametrize("who", [*KEYS, "nobody", "wrong", "masked"])
async def test_the_short_way_answers_as_the_long_one(
    shared_pool: Pool, keys: dict[str, str], who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(masked_fields=("n",) if who == "masked" else ())
    apps = [create_app(pool=shared_pool, settings=settings) for _ in range(2)]
    apps[0].shortcut = None
    servers = [await Running(app).start() for app in apps]
    long, short = [await running.open() for running in servers]
    took: list[bytes] = []
    begin = shortcut.Passage.begin

    def spy(passage: shortcut.Passage, client: Any, body: bytes, answer: shortcut.Answer) -> None:
        took.append(body)
        begin(passage, client, body, answer)

    monkeypatch.setattr(shortcut.Passage, "begin", spy)
    key = keys.get("enqueue and read" if who == "masked" else who, "wrong" if who == "wrong" else "")
    lines = [f"Authorization: Bearer {key}"] if key else []
    statuses = set()
    for name, body in BODIES.items():
        expected = await exchange(long, request(body, *lines))
        server.Protocol._heads.clear()  # else the other server knew this one's, which have no short way
        found = await exchange(short, request(body, *lines))
        assert found == expected, name
        statuses.add(found[0])
    assert took == list(BODIES.values())
    assert len(statuses) >= (2 if key and who not in ("read only", "wrong") else 1)
    for running, (_, writer) in zip(servers, (long, short), strict=True):
        await hang_up(writer)
        running.stop.set()
        await asyncio.wait_for(running.task, 30)


class Gated(Tasks):
    """Enqueues once the gate is open."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool)
        self.gate = asyncio.Event()

    async def enqueue(self, new: Sequence[NewTask]) -> list[Enqueued | IdempotencyConflict]:
        await self.gate.wait()
        return await super().enqueue(new)


async def test_what_is_under_way_is_answered_when_the_server_stops_and_done_when_its_client_hangs_up(
    shared_pool: Pool,
) -> None:
    app = create_app(pool=shared_pool, settings=Settings(api_keys=("k" * 40,)))
    running = await Running(app).start()
    sent = request(b'{"type":"under.way"}', "Authorization: Bearer " + "k" * 40)
    reader, writer = await running.open()
    idle, unused = await running.open()
    _, leaving = await running.open()
    writer.write(sent)
    assert (await answer(reader))[0] == 201
    app.parts.ingest._tasks = gated = Gated(shared_pool)
    writer.write(sent)
    leaving.write(sent)
    await eventually(lambda: app.parts.ingest.waiting == 2)
    await hang_up(leaving)
    running.stop.set()
    assert await idle.read() == b""  # it is stopping
    gated.gate.set()
    status, headers, _ = await answer(reader)
    assert (status, headers["connection"]) == (201, "close")
    await asyncio.wait_for(running.task, 30)
    assert app.parts.ingest.waiting == 0
    assert await shared_pool.fetchval("SELECT count(*) FROM dhara.tasks WHERE type = 'under.way'") == 3
    await hang_up(writer)
    await hang_up(unused)


async def test_an_idle_connection_is_hung_up_on_after_the_last_request(
    shared_pool: Pool, keys: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "KEEP_ALIVE_SECONDS", 5)
    running = await Running(create_app(pool=shared_pool, settings=Settings())).start()
    sent = request(b'{"type":"echo"}', f"Authorization: Bearer {keys['enqueue only']}")
    reader, writer = await running.open()
    loop, last = asyncio.get_running_loop(), 0.0
    for _ in range(4):
        await asyncio.sleep(0.1)
        last = loop.time()
        writer.write(sent)
        assert (await answer(reader))[0] == 201
    assert await asyncio.wait_for(reader.read(), 30) == b""
    assert loop.time() - last > 4.9
    await hang_up(writer)
    running.stop.set()
    await asyncio.wait_for(running.task, 30)
