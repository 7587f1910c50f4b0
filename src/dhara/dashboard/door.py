"""Who enters, and the two locks on every form.

Visitors sign in with an API key (`sessions.py`), or the host application says who they are. A form is taken only from a
page of the same origin (what the browser itself says) that bears the session's token.
Without keys the dashboard is open on loopback; the composition root refuses other addresses.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from starlette.requests import Request

from dhara.dashboard.keys import Keys
from dhara.dashboard.sessions import SignedIn, form_token, proof
from dhara.dashboard.visit import Refusal
from dhara.domain.access import SCOPES, Principal, digest

ANYONE = Principal("anonymous", frozenset(SCOPES))
MOST_SOURCES = 10_000
MOST_FAILURES, FAILURE_WINDOW = 10, 60.0
SESSION, TOKEN = "dhara-session", "dhara-form"
SAFE = frozenset({"GET", "HEAD"})


Authorize = Callable[[Request], Awaitable[Principal | None]]


class Door:
    """Says who a request is from. `authorize` replaces keys and sessions by the host application's own sign-in."""

    def __init__(
        self,
        keys: Keys,
        sessions: SignedIn,
        *,
        authorize: Authorize | None = None,
        loopback_only: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = keys
        self._sessions = sessions
        self._authorize = authorize
        self._loopback_only = loopback_only
        self._clock = clock
        self._failures: dict[str, deque[float]] = {}

    @property
    def signs_in(self) -> bool:
        """Whether people sign in here, rather than with the host application."""
        return self._authorize is None

    async def visitor(self, request: Request, *, present: bool = True) -> tuple[Principal | None, str]:
        """Who it is, and the token that this visitor's forms bear; None: nobody who may enter. Not `present`: the visitor's
        browser asks by itself, which keeps no session alive."""
        cookie = request.cookies.get(_named(TOKEN, request), "")
        if self._authorize is not None:
            return await self._authorize(request), cookie
        name = request.cookies.get(_named(SESSION, request), "")
        if name and (session := await self._sessions.find(name)) is not None:
            # Nor is a page that refreshes itself anybody's presence.
            if present and "hx-request" not in request.headers:
                await self._sessions.see(name, session)
            holder = await self._keys.holder(
                session.key_id, lambda kept: hmac.compare_digest(proof(name, kept), session.proof)
            )
            return holder, form_token(name)
        if await self._keys.open() and (not self._loopback_only or _from_loopback(request)):
            return ANYONE, cookie
        return None, cookie

    async def sign_in(self, request: Request, key: str) -> str | None:
        """A new session's cookie for a key that is known; the old session ends. None: it is not known.

        Raises `Refusal` after too many failures from one address.
        """
        source = request.client.host if request.client else ""
        failures = self._failures.setdefault(source, deque(maxlen=MOST_FAILURES))
        now = self._clock()
        if len(failures) == MOST_FAILURES and now - failures[0] < FAILURE_WINDOW:
            raise Refusal(429, "Too many attempts", "Too many wrong keys came from your address; wait a minute.")
        principal = await self._keys.principal(key)
        if principal is None:
            failures.append(now)
            self._forget_sources()
            return None
        await self.sign_out(request)
        return await self._sessions.begin(principal.key, digest(key))

    async def sign_out(self, request: Request) -> None:
        """End the request's session, if it has one."""
        if name := request.cookies.get(_named(SESSION, request), ""):
            await self._sessions.end(name)

    def check_form(self, request: Request, expected: str, given: str) -> None:
        """Raise `Refusal` unless a form comes from a page of this origin and bears the token."""
        site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
        same = site == "same-origin" if site is not None else _host_of(origin) == request.headers.get("host")
        if not same:
            raise Refusal(403, "Refused", "Forms that other sites make a browser send are refused.")
        if not expected or not hmac.compare_digest(expected.encode(), given.encode()):
            raise Refusal(403, "This page is out of date", "Go back, reload it, and try again: its form has expired.")

    def _forget_sources(self) -> None:
        if len(self._failures) > MOST_SOURCES:
            self._failures.pop(next(iter(self._failures)))


def cookie(request: Request, name: str, value: str, *, seconds: int | None = None) -> str:
    """A Set-Cookie line: for this host alone, out of scripts' reach, never sent along from other sites."""
    parts = [f"{_named(name, request)}={value}", "Path=/", "HttpOnly", "SameSite=Strict"]
    if seconds is not None:
        parts.append(f"Max-Age={seconds}")
    if _is_secure(request):
        parts.append("Secure")
    return "; ".join(parts)


def new_token() -> str:
    """The token of a visitor without a session, kept in a cookie."""
    return secrets.token_urlsafe(24)


def _named(name: str, request: Request) -> str:
    # The prefix makes browsers insist on Secure and Path=/; over plain http they would throw the cookie away.
    return f"__Host-{name}" if _is_secure(request) else name


def _is_secure(request: Request) -> bool:
    return request.url.scheme == "https"


def _from_loopback(request: Request) -> bool:
    """From this machine, and for it by name: a rebound DNS name must not pass."""
    client = request.client.host if request.client else ""
    return _is_loopback(client) and _is_loopback(request.url.hostname or "")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host_of(origin: str | None) -> str | None:
    try:
        return urlsplit(origin or "").netloc or None
    except ValueError:
        return None
