"""Who may do what: scopes, the principal that a request acts for, and API keys as texts.

A key is `dh_<id>_<secret>`: the id is public and names the row, the secret is 32 random bytes. Only the SHA-256 of the
whole text is kept; a slow hash would protect guessable secrets, and 256 random bits are none.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TypeGuard

from msgspec import Struct

from dhara.domain import limits

READ, PAYLOAD, ENQUEUE, OPERATE, METRICS, ADMIN = "read", "read:payload", "enqueue", "operate", "metrics", "admin"
# What each scope lets its holder do.
SCOPES: dict[str, str] = {
    READ: "see tasks, queues, workers and figures, without payloads and results",
    PAYLOAD: "see payloads, results and progress too; includes read",
    ENQUEUE: "enqueue tasks",
    OPERATE: "cancel, retry, pause and resume; includes read",
    METRICS: "scrape /metrics",
    ADMIN: "manage API keys; includes everything",
}
_INCLUDED: dict[str, frozenset[str]] = {
    PAYLOAD: frozenset({READ}),
    OPERATE: frozenset({READ}),
    ADMIN: frozenset(SCOPES),
}
MOST_PATTERNS = 50
LEAST_RATE, MOST_RATE = 0.001, 1_000_000
QUEUE_PATTERN = re.compile(r"[a-z0-9*][a-z0-9._:*-]{0,99}")
_KEY = re.compile(r"dh_([a-z0-9]{12})_[A-Za-z0-9_-]{43}")
_ID_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def closure(scopes: Iterable[str]) -> frozenset[str]:
    """`scopes` with all that they include."""
    given = frozenset(scopes)
    return given.union(*(_INCLUDED.get(scope, frozenset()) for scope in given))


@lru_cache(maxsize=1_000)
def _matcher(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(pattern).replace(r"\*", ".*") for pattern in patterns))


class Principal(Struct, frozen=True):
    """Whom a request acts for. `scopes` are closed; `queues` are patterns with `*`, none: every queue; `rate` is
    requests a second, None: unlimited; `key` is the id of the API key, empty for one of the settings."""

    name: str
    scopes: frozenset[str]
    queues: tuple[str, ...] = ()
    rate: float | None = None
    key: str = ""

    def may(self, scope: str) -> bool:
        return scope in self.scopes

    def sees(self, queue: str) -> bool:
        """Whether tasks of `queue` exist for this principal."""
        return not self.queues or _matcher(self.queues).fullmatch(queue) is not None


class ApiKey(Struct, frozen=True, kw_only=True):
    """A key as it is kept. Times are aware; `replaced_by` is the id of the key that a rotation made."""

    id: str
    name: str
    digest: bytes
    scopes: tuple[str, ...]
    queues: tuple[str, ...]
    created_at: datetime
    changed_at: datetime
    rate: float | None = None
    created_by: str | None = None
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    revoked_by: str | None = None
    replaced_by: str | None = None
    last_used_at: datetime | None = None

    def valid(self, now: datetime) -> bool:
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def principal(self) -> Principal:
        return Principal(self.name, closure(self.scopes), self.queues, self.rate, self.id)


def digest(text: str | bytes) -> bytes:
    """What is kept of a key, and compared."""
    return hashlib.sha256(text if isinstance(text, bytes) else text.encode()).digest()


def key_id(text: str) -> str | None:
    """The id in a key's text; None if it is not written like one of these keys."""
    found = _KEY.fullmatch(text)
    return found[1] if found else None


def new_key(random_bytes: Callable[[int], bytes], encode: Callable[[bytes], str]) -> tuple[str, str]:
    """The id and the text of a new key; `encode` is URL-safe base64 without padding."""
    id = "".join(_ID_LETTERS[byte % len(_ID_LETTERS)] for byte in random_bytes(12))
    return id, f"dh_{id}_{encode(random_bytes(32))}"


def problems(
    name: object, scopes: object, queues: object = (), rate: object = None, lifetime: object = None
) -> list[tuple[str, str]]:
    """What is wrong with the wish for a key: (field, what would be right) pairs. `lifetime` is seconds."""
    found = []
    if not isinstance(name, str) or not 1 <= len(name) <= 100 or not name.isprintable() or not name.strip():
        found.append(("name", "text of 1 to 100 characters, no control characters"))
    if not _texts(scopes) or not scopes or not set(scopes) <= set(SCOPES):
        found.append(("scopes", "at least one of " + ", ".join(SCOPES)))
    if not _texts(queues) or len(queues) > MOST_PATTERNS or not all(QUEUE_PATTERN.fullmatch(q) for q in queues):
        found.append(("queues", f"at most {MOST_PATTERNS} names of queues, * standing for any characters"))
    if rate is not None and not _within(rate, LEAST_RATE, MOST_RATE):
        found.append(("rate", f"requests a second, from {LEAST_RATE:g} to {MOST_RATE:,}"))
    if lifetime is not None and not _within(lifetime, 1, limits.RETENTION_SECONDS[1]):
        found.append(("expires_in", f"seconds, from 1 to {limits.RETENTION_SECONDS[1]:,}"))
    return found


def _texts(value: object) -> TypeGuard[Sequence[str]]:
    return isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)


def _within(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
