"""The workload W (`trust.md` 2.1): tasks at a steady rate, each enqueued until it is acknowledged, under one idempotency
key. What was asked and what was acknowledged stands in files; an acknowledgement counts once it is on disk.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from chaos.handlers import digest
from dhara import AsyncClient
from dhara.errors import DharaError

# type -> its share of the whole
MIX: Mapping[str, float] = {
    "noop": 0.70, "effect": 0.10, "sleep": 0.08, "exclusive": 0.02, "flaky": 0.05, "fail": 0.02, "cpu": 0.02,
}  # fmt: skip
CANCELED = 0.01
_TICK = 0.05
_MOST_OPEN = 5.0  # seconds' worth of enqueues under way: were there many more, repeating them would be all that it does
_RETRIES = {"fail": 2, "hang": 1}
NEVER_CANCELED = ("stubborn", "hog", "storm", "poison")


class Workload:
    """Enqueues from its own client; knows everything that was promised to it."""

    def __init__(
        self, client: AsyncClient, folder: Path, rng: random.Random, rate: float, without: Collection[str] = ()
    ) -> None:
        self._client = client
        self._mix = {type: share for type, share in MIX.items() if type not in without}
        self._rng = rng
        self._rate = rate
        self._file = (folder / "acknowledged.jsonl").open("w")
        self._unsynced: list[str] = []
        self._open: set[asyncio.Task[UUID]] = set()
        self._n = 0
        self.asked: dict[str, str] = {}
        self.acknowledged: dict[UUID, str] = {}
        self.hashes: dict[UUID, str] = {}
        self.times: dict[UUID, float] = {}  # when each was acknowledged, wall time
        self.slowest = 0.0
        self.errors = 0

    async def run(self) -> None:
        """Until cancelled."""
        due, last, most = 0.0, time.monotonic(), max(100.0, _MOST_OPEN * self._rate)
        while True:
            await asyncio.sleep(_TICK)
            now = time.monotonic()
            due = min(due + (now - last) * self._rate, self._rate)
            last = now
            while due >= 1 and len(self._open) < most:
                due -= 1
                self.submit(self._rng.choices(list(self._mix), list(self._mix.values()))[0])
            self._sync()

    def submit(self, type: str, **payload: Any) -> asyncio.Task[UUID]:
        """Enqueue one more, in the background; answers its id, once it is acknowledged."""
        key = self.register(type)
        payload = payload or self._payload(type)
        task = asyncio.create_task(self._enqueue(key, type, payload))
        self._open.add(task)
        task.add_done_callback(self._open.discard)
        return task

    async def finish(self, timeout: float = 60) -> None:
        """Every task that was asked for is acknowledged, and on disk."""
        if self._open:
            await asyncio.wait(self._open, timeout=timeout)
        self._sync()
        self._file.close()

    def _payload(self, type: str) -> dict[str, Any]:
        if type in ("noop", "effect"):
            return {"n": self._n, "text": "é" * self._rng.randrange(60)}
        if type in ("sleep", "exclusive"):
            return {"seconds": round(self._rng.uniform(0.05, 0.5), 3)}
        return {"seconds": 0.2} if type == "cpu" else {}

    async def once(self, type: str, **options: Any) -> UUID:
        """Enqueue one more by a single try, for a fault that looks at its time. Raises as the client does."""
        key, payload = self.register(type), self._payload(type)
        handle = await self._client.enqueue(type, payload, idempotency_key=key, max_retries=20, **options)
        self.acknowledge(handle.id, key, type, payload)
        return handle.id

    async def plain(self, type: str) -> UUID:
        """Enqueue one more without a key, by a single try: who is not told of it cannot know of it. Raises as the client."""
        payload = self._payload(type)
        handle = await self._client.enqueue(type, payload, max_retries=20)
        self.acknowledge(handle.id, "", type, payload)
        return handle.id

    async def many(self, type: str, count: int, **options: Any) -> list[UUID]:
        """Enqueue many in one transaction."""
        keys = [self.register(type) for _ in range(count)]
        payload = self._payload(type)
        items = [{"type": type, "payload": payload, "idempotency_key": key} for key in keys]
        handles = await self._client.enqueue_many(items, max_retries=20, **options)
        for handle, key in zip(handles, keys, strict=True):
            self.acknowledge(handle.id, key, type, payload)
        return [handle.id for handle in handles]

    def register(self, type: str) -> str:
        """A key under which a fault enqueues by itself."""
        self._n += 1
        key = f"{self._n}-{uuid4().hex[:8]}"
        self.asked[key] = type
        return key

    def acknowledge(self, id: UUID, key: str, type: str, payload: Any) -> None:
        """The database has said that it has it."""
        self.times[id] = time.time()
        self._unsynced.append(json.dumps({"id": str(id), "key": key, "type": type, "hash": digest(payload)}))

    async def _enqueue(self, key: str, type: str, payload: dict[str, Any]) -> UUID:
        start = time.monotonic()
        handle = None
        while handle is None:
            try:
                retries = _RETRIES.get(type, 20)
                handle = await self._client.enqueue(type, payload, idempotency_key=key, max_retries=retries)
            except (DharaError, OSError, TimeoutError):
                self.errors += 1
                await asyncio.sleep(0.1 + self._rng.random() * 0.4)
        self.slowest = max(self.slowest, time.monotonic() - start)
        self.acknowledge(handle.id, key, type, payload)
        if type not in NEVER_CANCELED and self._rng.random() < CANCELED:
            await asyncio.sleep(self._rng.random() * 0.3)
            with suppress(DharaError, OSError, TimeoutError):
                await self._client.cancel(handle.id)
        return handle.id

    def _sync(self) -> None:
        lines, self._unsynced = self._unsynced, []
        if not lines:
            return
        self._file.write("\n".join(lines) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        for line in map(json.loads, lines):
            self.acknowledged[UUID(line["id"])] = line["type"]
            self.hashes[UUID(line["id"])] = line["hash"]
