"""Who is at the other end: the connection's address, or what a proxy that the settings trust says of it.

`X-Forwarded-For` and `X-Forwarded-Proto` of anybody else are ignored, and so is every other such header.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from starlette.types import Scope

from dhara.api.exchange import header_values


class Proxies:
    """The proxies that are believed, as networks: `10.0.0.0/8`, `127.0.0.1`."""

    def __init__(self, networks: Sequence[str]) -> None:
        self._networks = [ipaddress.ip_network(network) for network in networks]

    def source(self, scope: Scope) -> str:
        """The client's address; empty if there is none, as on a socket of the file system."""
        peer: str = (scope.get("client") or ("",))[0]
        if not self._networks or not self._trusted(peer):
            return peer
        hops = b",".join(header_values(scope, b"x-forwarded-for")).decode("latin-1").split(",")
        # From the right: only what a trusted proxy has appended is true.
        for hop in reversed(hops):
            address = hop.strip()
            if not _is_address(address):
                break
            peer = address
            if not self._trusted(address):
                break
        return peer

    def secure(self, scope: Scope) -> bool:
        """Whether the client speaks TLS, with this server or with a trusted proxy."""
        if scope.get("scheme") == "https":
            return True
        peer: str = (scope.get("client") or ("",))[0]
        protocols = header_values(scope, b"x-forwarded-proto")
        return bool(self._networks) and self._trusted(peer) and protocols == (b"https",)

    def _trusted(self, text: str) -> bool:
        if not _is_address(text):
            return False
        address = ipaddress.ip_address(text)
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self._networks)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
