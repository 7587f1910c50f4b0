"""Sessions of the dashboard: who is signed in, known to every server on the database."""

from __future__ import annotations

from msgspec import Struct

from dhara.store.pool import Executor
from dhara.store.sql import load


class Session(Struct, frozen=True):
    """A session that lasts. `idle`: seconds since it was last used; `proof` and `key_id`: see the table's comments."""

    key_id: str
    proof: bytes
    idle: float


class Sessions:
    """The statements of `sql/sessions/`. Times are seconds; a digest is that of the session's name."""

    def __init__(self, db: Executor, schema: str = "dhara") -> None:
        self.db = db
        self.schema = schema

    def _sql(self, name: str) -> str:
        return load("sessions/" + name, self.schema)

    async def begin(
        self, digest: bytes, proof: bytes, key_id: str, *, idle: float, longest: float, most: int = 10_000
    ) -> None:
        """A new session; those that have ended go, and the idlest beyond `most`."""
        await self.db.execute(self._sql("begin"), digest, proof, key_id, idle, longest, most)

    async def find(self, digest: bytes, *, idle: float, longest: float) -> Session | None:
        """The session, if there is one, was used within `idle` and began within `longest`."""
        row = await self.db.fetchrow(self._sql("find"), digest, idle, longest)
        return None if row is None else Session(*row)

    async def see(self, digest: bytes) -> None:
        """The session is being used."""
        await self.db.execute(self._sql("see"), digest)

    async def end(self, digest: bytes) -> None:
        """End the session; nothing if there is none."""
        await self.db.execute(self._sql("end"), digest)
