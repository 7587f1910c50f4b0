"""Clients on a fresh database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from dhara import AsyncClient, Client


@pytest.fixture
async def client(dsn: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(dsn, pool_max=4) as opened:
        yield opened


@pytest.fixture
def sync_client(dsn: str) -> Iterator[Client]:
    with Client(dsn, pool_max=4) as opened:
        yield opened
