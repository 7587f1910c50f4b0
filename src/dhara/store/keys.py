"""API keys: made, listed, rotated, revoked. Only hashes are kept."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime

import asyncpg
from msgspec import Struct

from dhara.domain.access import ApiKey, digest, new_key
from dhara.errors import ConfigError, NotFound
from dhara.store.pool import Executor
from dhara.store.sql import load

# Servers keep all of them in memory.
MOST_KEYS = 10_000


class MadeKey(Struct, frozen=True):
    """A new key, and its text: shown once, kept nowhere."""

    key: ApiKey
    text: str


class Keys:
    """The statements of `sql/keys/`."""

    def __init__(self, db: Executor, schema: str = "dhara") -> None:
        self.db = db
        self.schema = schema

    def _sql(self, name: str) -> str:
        return load("keys/" + name, self.schema)

    async def create(
        self,
        name: str,
        scopes: Sequence[str],
        queues: Sequence[str] = (),
        *,
        rate: float | None = None,
        lifetime: float | None = None,
        by: str = "library",
    ) -> MadeKey:
        """A new key, valid for `lifetime` seconds (None: for ever). The values are checked (`access.problems`).

        Raises `ConfigError` when there are too many."""
        id, text = _new()
        row = await self.db.fetchrow(
            self._sql("create"), id, name, digest(text), list(scopes), list(queues), rate, lifetime, by, MOST_KEYS
        )
        if row is None:
            raise ConfigError(f"there are {MOST_KEYS:,} API keys, revoked ones among them; delete old rows of api_keys")
        return MadeKey(_key(row), text)

    async def list(self, most: int = MOST_KEYS) -> list[ApiKey]:
        """All keys, the newest first; expired and revoked ones too."""
        return [_key(row) for row in await self.db.fetch(self._sql("list"), most)]

    async def get(self, id: str) -> ApiKey:
        """One key. Raises `NotFound`."""
        return _found(await self.db.fetchrow(self._sql("get"), id), id)

    async def rotate(self, id: str, overlap: float, by: str = "library") -> MadeKey:
        """A key in place of `id`, which stays valid for `overlap` seconds more. Raises `NotFound` also where the old one
        is valid no longer, or replaced already."""
        made, text = _new()
        row = await self.db.fetchrow(self._sql("rotate"), id, made, digest(text), overlap, by)
        return MadeKey(_found(row, id), text)

    async def revoke(self, id: str, by: str = "library") -> ApiKey:
        """End a key for good; a second time changes nothing. Raises `NotFound`."""
        return _found(await self.db.fetchrow(self._sql("revoke"), id, by), id)

    async def changed(self, since: datetime | None) -> Sequence[ApiKey]:
        """What changed at `since` or later; None: all."""
        since = since or datetime(1, 1, 2, tzinfo=UTC)
        return [_key(row) for row in await self.db.fetch(self._sql("changed"), since)]

    async def used(self, ids: Sequence[str]) -> None:
        """Write down that these keys have been used."""
        await self.db.execute(self._sql("used"), ids)


def _new() -> tuple[str, str]:
    return new_key(secrets.token_bytes, lambda data: base64.urlsafe_b64encode(data).rstrip(b"=").decode())


def _found(row: asyncpg.Record | None, id: str) -> ApiKey:
    if row is None:
        raise NotFound(f"there is no valid API key {id!r}; `dhara keys list` shows what there is")
    return _key(row)


def _key(row: asyncpg.Record) -> ApiKey:
    values = dict(row)
    return ApiKey(**values | {"scopes": tuple(values["scopes"]), "queues": tuple(values["queues"])})
