"""Ids for tasks that are to be enqueued: of the class in which asyncpg answers ids.

It is a `uuid.UUID`, and made, shown and sent at a tenth of that one's cost.
"""

from __future__ import annotations

import os

from asyncpg.pgproto.pgproto import UUID

from dhara.domain.ids import IdSource


class _Page:
    """Random bytes, fetched from the system by the page: a system call for every id would cost more than the id."""

    def __init__(self) -> None:
        self._bytes = b""
        self._at = 0

    def __call__(self, n: int) -> bytes:
        if n > 1_024:
            return os.urandom(n)
        if self._at + n > len(self._bytes):
            self._bytes, self._at = os.urandom(4_096), 0
        self._at += n
        return self._bytes[self._at - n : self._at]

    def forget(self) -> None:
        """Begin a new page."""
        self._at = len(self._bytes)


_page = _Page()
# A forked child must not go on with its parent's page.
os.register_at_fork(after_in_child=_page.forget)
_source = IdSource(random_bytes=_page, make=UUID)
new_id, new_ids = _source.new, _source.many
