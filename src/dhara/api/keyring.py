"""The API keys as this process knows them: read from the database every few seconds, so that no request waits for it.

A revocation is heard within `INTERVAL`, and at once by the process that made it. While the database cannot be asked, what is
known stays good for `STALE` seconds; then nobody's key of the database is believed any longer.
"""

from __future__ import annotations

import logging
import time
from datetime import datetime, timedelta
from typing import Self

from msgspec import Struct

from dhara.domain.access import ApiKey, Principal
from dhara.service import Every
from dhara.store.keys import Keys

log = logging.getLogger(__name__)

INTERVAL = 3.0
STALE = 15.0
# Changes may become visible later than they were dated, so each look goes back a little; and rows may be deleted by hand.
_OVERLAP = timedelta(seconds=10)
_WHOLE_EVERY = 20
_USED_EVERY = 30.0


class Entry(Struct, frozen=True):
    """What a request is compared with. `until` is seconds of the epoch."""

    digest: bytes
    until: float
    principal: Principal


class KeyRing:
    """Looks for keys in the background; `find` never waits."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._entries: dict[str, Entry] = {}
        self._rounds = 0
        self._newest: datetime | None = None
        self._heard: float | None = None
        self._started = False
        self._used: set[str] = set()
        self._used_at = time.monotonic()
        self._looks = Every(INTERVAL, self._round, "looking for API keys")

    @property
    def empty(self) -> bool:
        """No key has ever been made, as far as is known."""
        return not self._entries and (self._heard is not None or not self._started)

    @property
    def stale(self) -> bool:
        """The database has not been heard for too long to go by what is known."""
        if not self._started:
            return False
        return self._heard is None or time.monotonic() - self._heard > STALE

    def find(self, id: str) -> Entry | None:
        """The key of that id, revoked and expired ones too (`until` tells)."""
        return self._entries.get(id)

    def use(self, id: str) -> None:
        """Have it written down, sooner or later, that this key has been used."""
        self._used.add(id)

    async def refresh(self) -> None:
        """Look now; what this process changed itself it knows at once."""
        whole = self._rounds % _WHOLE_EVERY == 0
        since = None if whole or self._newest is None else self._newest - _OVERLAP
        asked = time.monotonic()
        found = await self._keys.changed(since)
        entries = {key.id: _entry(key) for key in found}
        self._entries = entries if since is None else self._entries | entries
        self._newest = max([key.changed_at for key in found], default=self._newest)
        self._heard = asked
        self._rounds += 1

    async def _round(self) -> None:
        await self.refresh()
        if self._used and time.monotonic() - self._used_at > _USED_EVERY:
            await self._flush()

    async def _flush(self) -> None:
        used, self._used = self._used, set()
        self._used_at = time.monotonic()
        await self._keys.used(sorted(used))

    async def __aenter__(self) -> Self:
        self._started = True
        try:
            await self.refresh()
        except Exception as error:
            log.warning("the API keys cannot be read yet: %s", error)
        await self._looks.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._looks.stop()
        if self._used:
            try:
                await self._flush()
            except Exception as error:
                log.debug("when keys were last used was not written: %s", error)


def _entry(key: ApiKey) -> Entry:
    until = 0.0 if key.revoked_at else key.expires_at.timestamp() if key.expires_at else float("inf")
    return Entry(key.digest, until, key.principal())
