"""API keys, as the door asks about them: where there are none, and where the dashboard is mounted in another application."""

from __future__ import annotations

import hmac
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

from dhara.domain.access import ApiKey, Principal, digest, key_id
from dhara.errors import NotFound
from dhara.store import keys

FRESH = 2.0
_MOST_KNOWN = 1_000
# Tells whether a key of that digest is the one that a session was begun with.
Proves = Callable[[bytes], bool]


class Keys(Protocol):
    """What the door asks about API keys."""

    async def open(self) -> bool:
        """No key is set: whoever reaches the server may use it."""

    async def principal(self, key: str) -> Principal | None:
        """Whom this key stands for; None: nobody (any longer)."""

    async def holder(self, id: str, proves: Proves) -> Principal | None:
        """Whom the key of that id stands for, if its digest `proves` right; no id: one of the settings' keys."""


class NoKeys:
    """There are none."""

    async def open(self) -> bool:
        return True

    async def principal(self, key: str) -> Principal | None:
        return None

    async def holder(self, id: str, proves: Proves) -> Principal | None:
        return None


class StoredKeys:
    """The keys of the database, asked for one by one and remembered for `FRESH` seconds."""

    def __init__(self, store: keys.Keys, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._open, self._open_at = True, float("-inf")
        self._known: OrderedDict[str, tuple[ApiKey | None, float]] = OrderedDict()

    async def open(self) -> bool:
        """None has ever been made."""
        now = self._clock()
        if now - self._open_at >= FRESH:
            self._open, self._open_at = not await self._store.list(1), now
        return self._open

    async def principal(self, key: str) -> Principal | None:
        return await self.holder(key_id(key) or "", lambda kept: hmac.compare_digest(kept, digest(key)))

    async def holder(self, id: str, proves: Proves) -> Principal | None:
        found = await self._find(id) if id else None
        if found is None or not proves(found.digest) or not found.valid(datetime.now(UTC)):
            return None
        return found.principal()

    async def _find(self, id: str) -> ApiKey | None:
        found, at = self._known.get(id, (None, float("-inf")))
        now = self._clock()
        if now - at >= FRESH:
            try:
                found = await self._store.get(id)
            except NotFound:
                found = None
            self._known[id] = found, now
            if len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)
        return found
