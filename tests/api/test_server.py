"""The real server on a real socket: framing, limits, slow clients, start and stop."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from dhara.api import server
from dhara.api.asgi import create_app
from dhara.api.server import serve
from dhara.domain.lifecycle import State
from dhara.errors import ConfigError
from dhara.settings import Settings
from dhara.store.pool import Pool
from fuzz import frames
from tests import factories
from tests.api.running import Running, answer, hang_up, request
from tests.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(shared_pool: Pool) -> AsyncIterator[Running]:
    made = await Running(create_app(pool=shared_pool, settings=Settings())).start()
    yield made
    made.stop.set()
    await asyncio.wait_for(made.task, 30)


@pytest_asyncio.fixture(loop_scope="module")
async def pool(shared_pool: Pool) -> Pool:
    return shared_pool


CLOSE = "Connection: close"


async def test_answers_have_all_headers_and_no_server(running: Running) -> None:
    found = await running.send(request(b'{"type":"echo"}', CLOSE))
    head = found.partition(b"\r\n\r\n")[0].lower()
    assert head.startswith(b"http/1.1 201 created\r\n")
    for name in (b"date", b"content-type", b"content-length", b"location", b"x-request-id", b"content-security-policy"):
        assert head.count(b"\r\n" + name + b": ") == 1
    assert head.count(b"\r\nconnection: close") == 1
    assert b"\r\nserver:" not in head


async def test_a_connection_serves_on_after_refusals(running: Running) -> None:
    reader, writer = await running.open()
    for body, status in (
        (b"", 400),
        (b"{", 400),
        (b" " * 1_100_000, 413),
        (b'{"type":"A"}', 422),
        (b'{"type":"echo"}', 201),
    ):
        writer.write(request(body))
        assert (await answer(reader))[0] == status
    await hang_up(writer)


async def test_pipelined_requests_are_answered_in_order(running: Running) -> None:
    reader, writer = await running.open()
    writer.write(b"".join(request(json.dumps({"type": "echo", "payload": n}).encode()) for n in range(10)))
    assert [json.loads((await answer(reader))[2])["payload"] for _ in range(10)] == list(range(10))
    await hang_up(writer)


def payload_of(body: bytes) -> object:
    return json.loads(body).get("payload")


async def test_a_head_that_is_known_is_answered_as_any_other(running: Running) -> None:
    one, two, three = (request(b'{"type":"echo","payload":%d}' % n) for n in (1, 2, 3))
    wrong = one.replace(b"payload", b"pailoud")
    reader, writer = await running.open()
    # Remembered; known; split, so that its end comes with the next; known, but refused; known again.
    for pieces, found in (
        ([one], [1]),
        ([two], [2]),
        ([three[:-4], three[-4:] + two], [3, 2]),
        ([wrong], [None]),
        ([one], [1]),
    ):
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.01)
        for payload in found:
            status, headers, body = await answer(reader)
            assert (status, payload_of(body)) == (422 if payload is None else 201, payload)
            assert "x-request-id" in headers
    assert one.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" in server.Protocol._heads
    await hang_up(writer)


async def test_requests_leave_no_cycles(running: Running) -> None:
    """Else their bodies would stay until the collector comes by, which under load are tens of megabytes."""
    reader, writer = await running.open()
    gc.collect()
    gc.disable()
    try:
        for n in range(20):
            body = b'{"type":"echo","payload":"%s%d"}' % (b"x" * (n % 2), n)  # heads that are known, and that are not
            writer.write(request(body))
            assert (await answer(reader))[0] == 201
        cycles = sum(type(thing) is server.Cycle for thing in gc.get_objects())
    finally:
        gc.enable()
    assert cycles <= 2
    await hang_up(writer)


async def test_two_in_one_piece_with_a_known_head_are_two(running: Running) -> None:
    one, two = (request(b'{"type":"echo","payload":%d}' % n) for n in (1, 2))
    reader, writer = await running.open()
    for sent in ([one], [one, two], [two, one, one]):
        writer.write(b"".join(sent))
        found = [payload_of((await answer(reader))[2]) for _ in sent]
        assert found == [1 if each is one else 2 for each in sent]
    await hang_up(writer)


@pytest.mark.parametrize(
    "line", ["Idempotency-Key: k", "X-Request-Id: mine", "Connection: close", "Expect: 100-continue", "Cookie: a=b"]
)
async def test_heads_that_may_mean_more_are_parsed_each_time(running: Running, line: str) -> None:
    await running.send(request(b'{"type":"echo"}', line, "Connection: close" if "Conn" not in line else "Accept: */*"))
    assert not any(line.encode() in head for head in server.Protocol._heads)


async def test_known_heads_are_bounded(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_MOST_HEADS", 5)
    server.Protocol._heads.clear()
    reader, writer = await running.open()
    for n in range(12):
        writer.write(request(b'{"type":"echo"}', f"User-Agent: {n}"))
        assert (await answer(reader))[0] == 201
    assert 0 < len(server.Protocol._heads) <= 5
    await hang_up(writer)


async def test_chunks_are_read_and_expect_is_honoured(running: Running) -> None:
    head = b"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    chunked = b'Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n7\r\n{"type"\r\n8\r\n:"echo"}\r\n0\r\n\r\n'
    assert (await running.send(head + chunked)).startswith(b"HTTP/1.1 201")
    found = await running.send(request(b'{"type":"echo"}', CLOSE, "Expect: 100-continue"))
    assert found.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201")


FRAMES: dict[str, bytes] = {
    "length and chunked": (
        b"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\n"
    ),
    "two lengths": b"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "a negative length": b"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    "a length in words": b"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Length: ten\r\n\r\n",
    "a bad chunk": b"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello",
    "a blank in a header's name": b"GET /livez HTTP/1.1\r\nHost : localhost\r\n\r\n",
    "a control character in a header": b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
    "an unknown method": b"FROB /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an unknown version": b"GET /livez HTTP/9.9\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES.keys())
async def test_bad_framing_is_a_400_and_the_end(running: Running, frame: bytes) -> None:
    found = await running.send(frame)
    assert found.startswith(b"HTTP/1.1 400 ")
    assert json.loads(found.partition(b"\r\n\r\n")[2])["code"] == "bad_request"
    assert found.count(b"HTTP/1.1 ") == 1


HEADS: dict[str, tuple[bytes, str]] = {
    "a long URL": (b"GET /livez?" + b"x" * 9_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", "url_too_long"),
    "a long URL without end": (b"GET /" + b"x" * 100_000, "url_too_long"),
    "a long header": (
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 40_000 + b"\r\n\r\n",
        "headers_too_large",
    ),
    "a header without end": (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000, "headers_too_large"),
    "a key of 1 MB": (
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + b"x" * 1_000_000 + b"\r\n\r\n",
        "headers_too_large",
    ),
    "many headers": (
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 8_000 + b"\r\n",
        "headers_too_large",
    ),
}


@pytest.mark.parametrize(("head", "code"), HEADS.values(), ids=HEADS.keys())
async def test_large_heads_are_refused(running: Running, head: bytes, code: str) -> None:
    found = await running.send(*(head[at : at + 20_000] for at in range(0, len(head), 20_000)))
    # The server hangs up while the client still sends; the answer may be lost with the connection, then it was refused too.
    if found:
        assert json.loads(found.partition(b"\r\n\r\n")[2])["code"] == code
    assert (await running.send(request(b"", CLOSE, path="/livez", method="GET"))).startswith(b"HTTP/1.1 200")


async def test_a_head_of_moderate_size_is_fine(running: Running) -> None:
    found = await running.send(request(b'{"type":"echo"}', CLOSE, "X: " + "x" * 20_000))
    assert found.startswith(b"HTTP/1.1 201")


async def test_slow_clients_are_cut_off(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "ARRIVAL_SECONDS", 0.6)
    assert await running.send() == b""
    half_a_head = await running.send(b"GET /livez HTTP/1.1\r\nHos")
    assert json.loads(half_a_head.partition(b"\r\n\r\n")[2])["code"] == "request_timeout"
    assert await running.send(request(b'{"type":"echo"}')[:-3]) == b""
    reader, writer = await running.open()
    writer.write(request())
    assert (await answer(reader))[0] == 201
    writer.write(b"GET /livez")
    assert b"request_timeout" in await asyncio.wait_for(reader.read(), 30)
    await hang_up(writer)


async def test_a_long_poll_outlives_the_time_to_arrive(
    running: Running, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "ARRIVAL_SECONDS", 0.5)
    task = await factories.make_task(pool)
    found = await running.send(request(b"", CLOSE, path=f"/api/v1/tasks/{task.id}/wait?timeout=2", method="GET"))
    assert found.startswith(b"HTTP/1.1 202")


async def test_a_hung_up_long_poll_is_forgotten(running: Running, pool: Pool) -> None:
    task = await factories.make_task(pool)
    _, writer = await running.open()
    writer.write(request(b"", path=f"/api/v1/tasks/{task.id}/wait?timeout=60", method="GET"))
    await eventually(lambda: len(running.app.parts.waiters) == 1)
    await hang_up(writer)
    await eventually(lambda: len(running.app.parts.waiters) == 0)


async def test_stopping_ends_long_polls_and_answers_what_is_under_way(pool: Pool) -> None:
    running = await Running(create_app(pool=pool, settings=Settings())).start()
    task = await factories.make_task(pool, State.RUNNING)
    reader, writer = await running.open()
    writer.write(request(b"", path=f"/api/v1/tasks/{task.id}/wait?timeout=60", method="GET"))
    await eventually(lambda: len(running.app.parts.waiters) == 1)
    running.stop.set()
    status, headers, _ = await answer(reader)
    assert (status, headers["connection"]) == (202, "close")
    await asyncio.wait_for(running.task, 30)
    await hang_up(writer)
    with pytest.raises(OSError, match=r"."):
        await running.open()


async def test_too_many_connections_are_a_503(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 2)
    crowded = await Running(create_app(pool=pool, settings=Settings())).start()
    reader, writer = await crowded.open()
    writer.write(request())
    assert (await answer(reader))[0] == 201
    found = await crowded.send(request(b'{"type":"echo"}', CLOSE))
    assert found.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nretry-after: 1\r\n" in found
    assert json.loads(found.partition(b"\r\n\r\n")[2])["code"] == "overloaded"
    await hang_up(writer)
    crowded.stop.set()
    await asyncio.wait_for(crowded.task, 30)


async def test_a_taken_port_is_one_clear_line(pool: Pool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"{port}: .*; another program has it"):
            await serve(create_app(pool=pool, settings=Settings()), host="127.0.0.1", port=port, stop=asyncio.Event())
    with pytest.raises(ConfigError, match="cannot bind"):
        await serve(create_app(pool=pool, settings=Settings()), host="no.such.invalid", port=0, stop=asyncio.Event())


async def test_mutated_frames_do_no_harm(running: Running, pool: Pool) -> None:
    """A taste of `python -m fuzz.frames`."""
    before = await pool.fetchval("SELECT count(*) FROM dhara.tasks")
    sent, verdict = await frames.run(running.port, 2_000, seed=random.randrange(10**6), seconds=5, lanes=20, quiet=0.5)
    assert sent > 50
    assert verdict.faults == []
    assert await pool.fetchval("SELECT count(*) FROM dhara.tasks") - before <= verdict.created + verdict.cut
