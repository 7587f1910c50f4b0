"""`Client`, from code without an event loop."""

from __future__ import annotations

import inspect
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import asyncpg
import pytest

from dhara import AsyncClient, Client, IdempotencyConflict, NotFound, State, TaskFailed, Unavailable
from dhara.client.synchronous import ClientOptions, Wanted
from tests.waiting import eventually


async def test_it_works_inside_a_running_loop_too(dsn: str) -> None:
    client = Client(dsn)
    assert client.enqueue("t").status() is State.PENDING
    client.close()


def test_everything_once(sync_client: Client) -> None:
    handle = sync_client.enqueue("t", {"n": 1}, idempotency_key="k")
    assert handle.created
    assert not sync_client.enqueue("t", {"n": 1}, idempotency_key="k").created
    with pytest.raises(IdempotencyConflict):
        sync_client.enqueue("t", {"n": 2}, idempotency_key="k")
    assert [h.created for h in sync_client.enqueue_many([{"type": "t"}, {"type": "t"}])] == [True, True]
    with pytest.raises(TimeoutError):
        handle.result(timeout=0.05)
    assert handle.cancel() is State.PENDING
    with pytest.raises(TaskFailed):
        handle.result()
    assert sync_client.wait(handle.id).status is State.CANCELED
    assert [entry.event for entry in sync_client.logs(handle.id)] == ["ENQUEUED", "CANCELED"]
    assert sync_client.attempts(handle.id) == []
    assert sync_client.list(status="PENDING", limit=1).total == 2
    assert sync_client.handle(str(handle.id)).status() is State.CANCELED
    with pytest.raises(NotFound):
        sync_client.get("nonsense")


def test_many_threads_share_one_client(sync_client: Client) -> None:
    with ThreadPoolExecutor(16) as threads:
        handles = list(threads.map(lambda n: sync_client.enqueue("t", {"n": n}), range(400)))
    assert len({handle.id for handle in handles}) == 400
    assert sync_client.list().total == 400
    assert sum(thread.name == "dhara client" for thread in threading.enumerate()) == 1


def test_close_ends_the_thread_and_a_later_call_begins_anew(dsn: str) -> None:
    client = Client(dsn)
    client.enqueue("t")
    client.close()
    client.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "dhara client"]
    assert client.enqueue("t").status() is State.PENDING
    client.close()


def test_what_cannot_connect_leaves_no_thread() -> None:
    client = Client("postgresql://u@127.0.0.1:1/x")
    with pytest.raises(Unavailable):
        client.enqueue("t")
    assert not [thread for thread in threading.enumerate() if thread.name == "dhara client"]


def test_wrong_arguments_are_refused_at_once() -> None:
    with pytest.raises(TypeError):
        Client("postgresql://x", pool_maximum=3)  # type: ignore[call-arg]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_has_connections_of_its_own(dsn: str) -> None:
    client = Client(dsn)
    client.enqueue("t", {"by": "parent"})
    child = os.fork()
    if child == 0:
        code = 1
        try:
            client.enqueue("t", {"by": "child"})
            client.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    client.enqueue("t", {"by": "parent again"})
    assert client.list().total == 3
    client.close()


async def test_connections_are_closed(dsn: str) -> None:
    client = Client(dsn)
    client.enqueue("t")
    client.close()
    connection = await asyncpg.connect(dsn)
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dhara client' AND datname = current_database()"
    )

    async def gone() -> bool:
        return await connection.fetchval(query) == 0

    await eventually(gone)
    await connection.close()


def test_it_takes_what_its_twin_takes() -> None:
    """The typed keywords of `Client` and its `list` are those of `AsyncClient`."""
    for twin, options in ((AsyncClient.__init__, ClientOptions), (AsyncClient.list, Wanted)):
        keywords = [p for p in inspect.signature(twin).parameters.values() if p.kind is p.KEYWORD_ONLY]
        assert {p.name: p.annotation for p in keywords} == {
            name: hint.__forward_arg__ for name, hint in options.__annotations__.items()
        }
