"""Who may call: API keys, the Host allow-list against DNS rebinding, and no requests from other origins.

With keys set every route refuses by default; only the probes answer without one, and then only up or down. Without
keys the API is open, and the composition root binds it to loopback only.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.types import Scope

from dhara.api.exchange import header_values
from dhara.api.problems import Refused
from dhara.settings import Settings

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
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
    """Decides on a request by its headers alone."""

    def __init__(self, settings: Settings) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in settings.api_keys]
        own = settings.host if ":" not in settings.host else f"[{settings.host.strip('[]')}]"
        self._hosts = LOOPBACK_NAMES | {own.lower()} | {_name(host) for host in settings.allowed_hosts}
        # An address cannot be rebound, only a name can; so where the world may come in, it may come by address.
        self._seen: set[bytes] = set()
        self._addresses = not is_loopback(settings.host)

    @property
    def open(self) -> bool:
        """No keys are set: whoever reaches the server may call it."""
        return not self._digests

    def knows(self, authorizations: Sequence[bytes]) -> bool:
        """Whether the request's Authorization headers hold one of the keys; costs the same for every wrong one."""
        if self.open:
            return True
        scheme, _, key = (authorizations[0] if len(authorizations) == 1 else b"").partition(b" ")
        given = hashlib.sha256(key.strip()).digest()
        found = [hmac.compare_digest(given, digest) for digest in self._digests]
        return any(found) and scheme.lower() == b"bearer"

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


def unauthorized() -> Refused:
    """The same for a missing, malformed and wrong key."""
    return Refused(
        "unauthorized",
        "send one of the server's API keys as `Authorization: Bearer <key>`",
        headers=((b"www-authenticate", b"Bearer"),),
    )


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
