"""Sessions: begun by signing in with an API key, known to every server on the database, kept through restarts.

A session's name is random and known to its cookie alone. The table holds its hash, and a proof of the key: an HMAC of the
key's digest under that name. So neither a stolen dump nor a cookie jar holds a key, and nobody but the cookie's holder can
be shown to hold one. Which key it is, and whether it is still valid, is asked with every request, so a revoked key closes
its sessions. What was read is good for `FRESH` seconds: one that was ended elsewhere lasts that long here.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from dhara.store.sessions import Session, Sessions

IDLE_SECONDS = 30 * 60.0
LONGEST_SECONDS = 12 * 3_600.0
FRESH = 2.0
# It is written down about once a minute that a session is used.
SEEN_EVERY = 60.0
_MOST_KNOWN = 1_000
_LONGEST_NAME = 100


class SignedIn:
    """The sessions of `store`, those of the last moments from memory."""

    def __init__(self, store: Sessions, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._known: OrderedDict[bytes, tuple[Session | None, float]] = OrderedDict()

    async def begin(self, key_id: str, key_digest: bytes) -> str:
        """A new session's name."""
        name = secrets.token_urlsafe(32)
        await self._store.begin(
            _hash(name), proof(name, key_digest), key_id, idle=IDLE_SECONDS, longest=LONGEST_SECONDS
        )
        return name

    async def find(self, name: str) -> Session | None:
        """The session of that name, if it lasts. At most one query."""
        if not 0 < len(name) <= _LONGEST_NAME:
            return None
        digest, now = _hash(name), self._clock()
        session, read = self._known.get(digest, (None, float("-inf")))
        if now - read >= FRESH:
            session = await self._store.find(digest, idle=IDLE_SECONDS, longest=LONGEST_SECONDS)
            self._keep(digest, session, now)
        return session

    async def see(self, name: str, session: Session) -> None:
        """Somebody uses it."""
        if session.idle >= SEEN_EVERY:
            digest = _hash(name)
            await self._store.see(digest)
            self._keep(digest, msgspec.structs.replace(session, idle=0.0), self._clock())

    async def end(self, name: str) -> None:
        """End it, if there is such a one."""
        digest = _hash(name)
        self._known.pop(digest, None)
        await self._store.end(digest)

    def _keep(self, digest: bytes, session: Session | None, now: float) -> None:
        self._known[digest] = session, now
        self._known.move_to_end(digest)
        if len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)


def proof(name: str, key_digest: bytes) -> bytes:
    """What shows the holder of the session's name which key it was begun with."""
    return hmac.digest(name.encode(), b"key\0" + key_digest, "sha256")


def form_token(name: str) -> str:
    """What the session's forms bear."""
    return base64.urlsafe_b64encode(hmac.digest(name.encode(), b"form", "sha256")[:24]).decode()


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
