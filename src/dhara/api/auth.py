"""Who may call: API keys, the Host allow-list against DNS rebinding, and no requests from other origins.

Keys come from the settings (to begin with: they may do everything) and from the database (`keyring.py`). As soon as
there is one every route refuses by default; only the probes answer without one, and then only up or down. Without keys
the API is open, and the composition root binds it to loopback only. What a principal may do is decided by the scope of
the route (`routes.py`), and for keys limited to some queues by whether the route knows of limits.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import time
from collections.abc import Callable, Sequence
from math import ceil
from urllib.parse import urlsplit

from starlette.types import Scope

from dhara.api.buckets import Buckets, Failures
from dhara.api.exchange import header_values
from dhara.api.keyring import KeyRing
from dhara.api.problems import Refused, busy
from dhara.api.proxies import Proxies
from dhara.domain.access import SCOPES, Principal, digest, key_id
from dhara.settings import Settings

log = logging.getLogger(__name__)

# Whoever calls while no keys are set, and whoever has one of the settings' keys.
ANYONE = Principal("api", frozenset(SCOPES))
BOOTSTRAP = Principal("key of the settings", frozenset(SCOPES))
NO_DIGEST = bytes(32)
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
URL_BYTES = 8 * 1024
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def is_loopback(host: str) -> bool:
    """Whether `host`, as the server would bind it, is reached from this machine only."""
    if host in LOOPBACK_NAMES:
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Auth:
    """Decides on a request by its headers alone, without waiting for anything."""

    def __init__(self, settings: Settings, ring: KeyRing) -> None:
        self._digests = [digest(key) for key in settings.api_keys]
        self.ring = ring
        self._rate = settings.rate_limit or None
        self._buckets = Buckets()
        self._failures = Failures()
        self.proxies = Proxies(settings.trusted_proxies)
        own = settings.host if ":" not in settings.host else f"[{settings.host.strip('[]')}]"
        self._hosts = LOOPBACK_NAMES | {own.lower()} | {_name(host) for host in settings.allowed_hosts}
        # An address cannot be rebound, only a name can; so where the world may come in, it may come by address.
        self._seen: set[bytes] = set()
        self._addresses = not is_loopback(settings.host)

    @property
    def open(self) -> bool:
        """No keys are set and none has ever been made: whoever reaches the server may call it."""
        return not self._digests and self.ring.empty

    def identify(self, scope: Scope) -> Principal:
        """Whom a request acts for. Raises `Refused`: 401, 429 after too many wrong keys, 503 while nobody can tell."""
        if self.open:
            return ANYONE
        return self.authenticate(header_values(scope, b"authorization"), scope)

    def authenticate(self, authorizations: Sequence[bytes], scope: Scope) -> Principal:
        """Whose key the Authorization headers hold. Raises `Refused`, the same for every kind of wrong key."""
        scheme, _, key = (authorizations[0] if len(authorizations) == 1 else b"").partition(b" ")
        return self.sign_in(key.strip() if scheme.lower() == b"bearer" else b"", scope)

    def sign_in(self, key: bytes, scope: Scope) -> Principal:
        """Whose key this is. Raises `Refused` like `identify`; every refusal counts against source and id."""
        if not key:
            # Nothing was tried.
            raise unauthorized()
        id = _key_id(key)
        found = self._match(key, id)
        if found is None or (id and self._failures):
            # Whoever has tried an id too often is not told whether the next guess is right.
            self._check_failures(found is None, id, scope)
        if found is None:
            raise unauthorized()
        if found.key:
            self.ring.use(found.key)
        return found

    def find(self, key: bytes) -> Principal | None:
        """Whose key this is; None: nobody's, or nobody's any longer. Counts no failures. Raises `Refused` (503)."""
        return self._match(key, _key_id(key))

    def recognize(self, id: str, proves: Callable[[bytes], bool]) -> Principal | None:
        """Whom the key of that id stands for, if its digest `proves` right; no id: one of the settings' keys.

        Raises `Refused` (503)."""
        if not id:
            return BOOTSTRAP if any(proves(one) for one in self._digests) else None
        if self.ring.stale:
            raise _unknown()
        entry = self.ring.find(id)
        return entry.principal if entry is not None and proves(entry.digest) and time.time() < entry.until else None

    def stands(self, principal: Principal) -> bool:
        """Whether whom a request was let in for would be let in now: for answers that take their time."""
        if principal is ANYONE:
            return self.open
        if not principal.key:
            return True
        entry = self.ring.find(principal.key)
        return entry is not None and time.time() < entry.until and not self.ring.stale

    def limit(self, principal: Principal) -> None:
        """Raise `Refused` (429) where the principal sends more than its rate."""
        rate = principal.rate or self._rate
        if rate is None or principal is ANYONE:
            return
        if wait := self._buckets.take(principal.key or principal.name, rate):
            raise busy("rate_limited", f"this API key may send {rate:g} requests a second; slow down", ceil(wait))

    def _match(self, key: bytes, id: str) -> Principal | None:
        given = digest(key)
        entry = self.ring.find(id)
        # The same steps for every key, known or not.
        found = hmac.compare_digest(given, entry.digest if entry is not None else NO_DIGEST)
        set_here = [hmac.compare_digest(given, one) for one in self._digests]
        if any(set_here):
            return BOOTSTRAP
        if id and self.ring.stale:
            raise _unknown()
        return entry.principal if entry is not None and found and time.time() < entry.until else None

    def _check_failures(self, failed: bool, id: str, scope: Scope) -> None:
        source = self.proxies.source(scope)
        if wait := self._failures.wait(source, id):
            raise busy("rate_limited", "too many wrong API keys; try again later", ceil(wait))
        if failed:
            self._failures.add(source, id)
            log.warning("refused an API key: id %s from %s", id or "none", source or "a local socket")

    def check_host(self, scope: Scope) -> None:
        """Raise `Refused` unless exactly one Host header names this server."""
        hosts = header_values(scope, b"host")
        if len(hosts) == 1:
            if hosts[0] in self._seen:
                return
            name = _name(hosts[0].decode("latin-1"))
            if name in self._hosts or (self._addresses and _is_address(name)):
                if len(self._seen) < 100:
                    self._seen.add(hosts[0])
                return
        raise Refused("misdirected_host", "this server does not answer for that host; add it to DHARA_ALLOWED_HOSTS")

    def check_origin(self, scope: Scope) -> None:
        """Raise `Refused` where a browser says that another site sends this request (cross-site request forgery)."""
        if scope["method"] in SAFE_METHODS:
            return
        site, origin = _first(scope, b"sec-fetch-site"), _first(scope, b"origin")
        if site is not None:
            allowed = site in (b"same-origin", b"none")
        else:
            allowed = origin is None or _netloc(origin) == (_first(scope, b"host") or b"").decode("latin-1")
        if not allowed:
            raise Refused("cross_origin", "requests that other sites make a browser send are refused")


def check_address(auth: Auth, scope: Scope) -> None:
    """Raise `Refused` for a URL that is too long, or another server's."""
    if len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"]) > URL_BYTES:
        raise Refused("url_too_long", f"the URL is longer than {URL_BYTES:,} bytes")
    auth.check_host(scope)


def _unknown() -> Refused:
    return busy("unavailable", "the database does not answer, so no API key can be checked; try again")


def forbidden() -> Refused:
    """The principal is known, but may not do that."""
    return Refused("forbidden", "this API key lacks the scope for that, or is limited to some queues")


def unauthorized() -> Refused:
    """The same for a missing, malformed and wrong key."""
    return Refused(
        "unauthorized",
        "send one of the server's API keys as `Authorization: Bearer <key>`",
        headers=((b"www-authenticate", b"Bearer"),),
    )


def _key_id(key: bytes) -> str:
    try:
        return key_id(key.decode("ascii")) or ""
    except UnicodeDecodeError:
        return ""


def _first(scope: Scope, name: bytes) -> bytes | None:
    return next(iter(header_values(scope, name)), None)


def _name(host: str) -> str:
    """The host without its port, in lower case."""
    host = host.strip().lower()
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _netloc(origin: bytes) -> str | None:
    try:
        return urlsplit(origin.decode("latin-1")).netloc or None
    except ValueError:
        return None
