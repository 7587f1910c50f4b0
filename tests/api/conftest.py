"""The application in this process, on a fresh database, and a client that speaks to it without sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import UUID

import httpx
import pytest
import pytest_asyncio

from dhara.api.asgi import Api, create_app
from dhara.settings import Settings
from dhara.store.pool import DatabaseSettings, Pool
from tests.conftest import Databases

KEY = "a-key-of-these-tests"
NOBODY = "00000000-0000-7000-8000-000000000000"
JSON = {"content-type": "application/json"}


class Wakes:
    """A notifier that writes down what it is told."""

    def __init__(self) -> None:
        self.woken: list[str] = []
        self.canceled: list[UUID] = []

    def wake(self, queue: str) -> None:
        self.woken.append(queue)

    def cancel(self, worker: UUID) -> None:
        self.canceled.append(worker)


@pytest.fixture
def wakes() -> Wakes:
    return Wakes()


@pytest.fixture
def app(pool: Pool, wakes: Wakes) -> Api:
    return create_app(pool=pool, settings=Settings(), notifier=wakes, version="1.2.3")


def client_of(app: Any, **options: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080", **options)


@pytest.fixture
async def client(app: Api) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as opened:
        yield opened


@pytest.fixture(scope="module")
def shared_dsn(databases: Databases, template: str) -> Iterator[str]:
    """One database for all tests of a module whose tests write nothing, or do not mind what others wrote."""
    name = databases.create(template)
    yield databases.dsn(name)
    databases.drop(name)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_pool(shared_dsn: str) -> AsyncIterator[Pool]:
    async with Pool(DatabaseSettings(dsn=shared_dsn)) as opened:
        yield opened


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_client(shared_pool: Pool) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(create_app(pool=shared_pool, settings=Settings())) as opened:
        yield opened


async def post(client: httpx.AsyncClient, body: bytes | str, path: str = "/api/v1/tasks") -> httpx.Response:
    """A POST of exactly these bytes."""
    return await client.post(path, content=body, headers=JSON)


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem of an answer, whose shape is checked."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = answer.json()
    assert found["code"] == code
    assert found["status"] == status
    assert found["request_id"] == answer.headers["x-request-id"]
    assert {"type", "title", "detail"} <= set(found)
    return found
