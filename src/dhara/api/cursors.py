"""Cursors: where a list goes on, signed and bound to its filter.

A cursor is the last id shown and a MAC over it and the filter, so that a tampered one, or one of another list or database,
is refused by name instead of showing a wrong page. The key is derived from what the database itself remembers of
its own making (the moment of its first migration): every API process on one database accepts the others' cursors,
across restarts, without anything to configure. It guards against mistakes, not secrets: a cursor holds no more than an id
that the caller has seen.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from uuid import UUID

import msgspec

from dhara.api.problems import Refused
from dhara.store.search import Filter
from dhara.store.stats import Stats

_MAC_BYTES = 16


class Cursors:
    """Makes and reads cursors; asks the database for the key once."""

    def __init__(self, stats: Stats) -> None:
        self._stats = stats
        self._key: bytes | None = None

    async def make(self, wanted: Filter, last: UUID) -> str:
        """A cursor that continues `wanted` after `last`."""
        return base64.urlsafe_b64encode(last.bytes + await self._mac(wanted, last)).decode()

    async def read(self, wanted: Filter, cursor: str) -> UUID:
        """The id to continue after. Raises `Refused` unless `make` made the cursor for the same filter."""
        try:
            data = base64.b64decode(cursor.encode("ascii"), altchars=b"-_", validate=True)
        except (binascii.Error, UnicodeEncodeError):
            data = b""
        if len(data) == 16 + _MAC_BYTES:
            last = UUID(bytes=data[:16])
            if hmac.compare_digest(await self._mac(wanted, last), data[16:]):
                return last
        message = "is not a cursor of this list; take next_cursor, and keep the filters as they were"
        raise Refused("invalid_query", f"cursor {message}", errors=(("cursor", message),))

    async def _mac(self, wanted: Filter, last: UUID) -> bytes:
        if self._key is None:
            origin = await self._stats.origin()
            self._key = hashlib.sha256(b"dhara cursor\0" + origin.encode()).digest()
        message = msgspec.json.encode(wanted) + last.bytes
        return hmac.digest(self._key, message, "sha256")[:_MAC_BYTES]
