"""The dashboard in this process, on a fresh database, and a browser-like client that keeps cookies."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from dhara.api.asgi import Api, create_app
from dhara.dashboard import Principal, Site
from dhara.dashboard.desk import desk_on
from dhara.dashboard.door import Door
from dhara.dashboard.keys import Keys, NoKeys, Proves
from dhara.dashboard.sessions import SignedIn
from dhara.domain.access import SCOPES, digest
from dhara.settings import Settings
from dhara.store.pool import Pool
from dhara.store.sessions import Sessions

HERE = "http://127.0.0.1:8080"
FORM = {"origin": HERE}
READER, OPERATOR, LIMITED, ADMIN = "a-reader's-key", "an-operator's-key", "a-limited-key", "an-admin's-key"


class FewKeys:
    """Four keys, each with its scopes; `revoked` are no longer known."""

    def __init__(self) -> None:
        self.revoked: set[str] = set()
        self.known = {
            READER: Principal("reader", frozenset({"read"})),
            OPERATOR: Principal("operator", frozenset({"read", "read:payload", "operate"})),
            LIMITED: Principal("mail only", frozenset({"read", "read:payload", "operate"}), ("mail*",)),
            ADMIN: Principal("admin", frozenset(SCOPES)),
        }

    async def open(self) -> bool:
        return False

    async def principal(self, key: str) -> Principal | None:
        return None if key in self.revoked else self.known.get(key)

    async def holder(self, id: str, proves: Proves) -> Principal | None:
        found = [key for key in self.known if proves(digest(key)) and key not in self.revoked]
        return self.known[found[0]] if found else None


class Wakes:
    """A notifier that writes down what it is told."""

    def __init__(self) -> None:
        self.woken: list[str] = []
        self.canceled: list[Any] = []

    def wake(self, queue: str) -> None:
        self.woken.append(queue)

    def cancel(self, worker: Any) -> None:
        self.canceled.append(worker)


def served(pool: Pool, keys: Keys, notifier: Wakes | None = None, **door: Any) -> Api:
    """API and dashboard, as the server composes them."""
    sessions = SignedIn(Sessions(pool, pool.settings.schema), **door)
    site = Site(desk_on(pool, notifier), Door(keys, sessions, **door), version="1.2.3", api=True)
    return create_app(pool=pool, settings=Settings(), site=site)


def browser(app: Any, **options: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url=HERE, follow_redirects=True, **options)


@pytest.fixture
def wakes() -> Wakes:
    return Wakes()


@pytest.fixture
def keys() -> FewKeys:
    return FewKeys()


@pytest.fixture
async def visitor(pool: Pool, wakes: Wakes) -> AsyncIterator[httpx.AsyncClient]:
    """Somebody on this machine, without keys."""
    async with browser(served(pool, NoKeys(), wakes)) as opened:
        yield opened


async def token(client: httpx.AsyncClient, path: str = "/sign-in") -> str:
    """The token of a page's forms."""
    found = re.search(r'name="token" value="([^"]+)"', (await client.get(path)).text)
    assert found
    return found[1]


async def send(client: httpx.AsyncClient, path: str, page: str = "/", **fields: Any) -> httpx.Response:
    """A form of `page`, sent as a browser would."""
    return await client.post(path, data={"token": await token(client, page), **fields}, headers=FORM)


async def sign_in(client: httpx.AsyncClient, key: str) -> httpx.Response:
    return await send(client, "/sign-in", "/sign-in", key=key)
