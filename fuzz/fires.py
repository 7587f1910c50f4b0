"""F49: the process that fires schedules is killed, or stopped and continued, at the very moment that they are due.

    python -m fuzz.fires [--fires 1000] [--seed 1]

Three processes of maintenance share a schema of their own in the database of DHARA_DATABASE_URL. Some schedules fire every
second. At each of these seconds, give or take 50 ms, the leader of the moment gets SIGKILL (another process starts in its place),
or SIGSTOP, so that it wakes later with what it has read before. Afterwards each fire time must have exactly one task.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
from collections import Counter
from contextlib import suppress
from datetime import datetime, timedelta
from uuid import UUID

import msgspec
from msgspec import Struct

from dhara.domain.schedule import Spec, fire_id
from dhara.maintenance import Maintenance
from dhara.maintenance.settings import MaintenanceSettings
from dhara.store import migrate
from dhara.store.pool import DatabaseSettings, Pool
from dhara.store.schedules import Schedules

NEAR = 0.05
# Seconds until which the first fault is waited for: while no process leads there is none to hit.
_LONGEST = 60.0
STOPPED = 1.0
# Leadership is held for three rounds, so that the next leader comes within the second.
ROUND = 0.15
PROCESSES = 3
# No sooner than this after the last fault is there a leader again, who can be hit.
SETTLED = 0.8
PATIENCE = 60.0


class Verdict(Struct, frozen=True):
    """What became of it. `faults`: how often each kind hit a leader; `missing` and `twice`: fire times without a task, and with
    several; `strange`: tasks that belong to no fire time."""

    fires: int
    faults: dict[str, int]
    missing: int
    twice: int
    strange: int


class _Firer:
    """One process of maintenance."""

    def __init__(self, database: DatabaseSettings) -> None:
        self._database = database
        self.process: asyncio.subprocess.Process | None = None
        self.holder = UUID(int=0)

    async def start(self) -> None:
        """Start it; it is ready when this returns."""
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "fuzz.fires",
            "--child",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(msgspec.json.encode(self._database) + b"\n")
        self.holder = UUID((await self.process.stdout.readline()).decode().strip())

    def signal(self, number: int) -> None:
        assert self.process is not None
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    async def end(self) -> None:
        self.signal(signal.SIGKILL)
        assert self.process is not None
        await self.process.wait()


async def run(dsn: str, fires: int, *, schedules: int = 10, processes: int = PROCESSES, seed: int = 1) -> Verdict:
    """Let at least `fires` fire times pass under faults, and judge. The database may be shared: the schema is its own."""
    database = DatabaseSettings(dsn=dsn, schema=f"dhara_fires_{os.getpid()}", pool_max=4)
    async with Pool(database) as pool:
        async with pool.acquire() as connection:
            await migrate.up(connection, database.schema)
        firers = [_Firer(database) for _ in range(processes)]
        try:
            await asyncio.gather(*(firer.start() for firer in firers))
            store = Schedules(pool, database.schema)
            for n in range(schedules):
                spec = Spec(name=f"s{n}", type="t", every=1.0, missed="catch_up", catch_up_most=1_000)
                await store.create(spec, "f49")
            # All on the same second, so that all are hit.
            await pool.execute(
                f"UPDATE \"{database.schema}\".schedules SET anchor = a.at, next_at = a.at + interval '1 s'"
                f' FROM (SELECT max(anchor) AS at FROM "{database.schema}".schedules) AS a'
            )
            faults = await _nemesis(pool, firers, fires // schedules + 2, random.Random(seed))
            return await _judge(pool, database.schema, faults)
        finally:
            for firer in firers:
                if firer.process is not None:
                    await firer.end()
            await pool.execute(f'DROP SCHEMA "{database.schema}" CASCADE')


async def _nemesis(pool: Pool, firers: list[_Firer], seconds: int, rng: random.Random) -> Counter[str]:
    """Hit the leader at the fire time of some schedule, for so many seconds."""
    faults: Counter[str] = Counter()
    schema = pool.settings.schema
    starts: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()
    hit_at = 0.0
    while (now := await _clock(pool)) < seconds or (not faults and now < _LONGEST):
        # In two steps: a machine's clocks need not agree on how long a second is.
        due = 1.0 - await _clock(pool) % 1.0
        await asyncio.sleep(max(0.0, due - 4 * NEAR))
        due = 1.0 - await _clock(pool) % 1.0
        await asyncio.sleep(max(0.0, (due if due < 0.5 else 0.0) + rng.uniform(-NEAR, NEAR)))
        leader = await pool.fetchval(f'SELECT holder FROM "{schema}".leaders WHERE until > clock_timestamp()')
        found = next((firer for firer in firers if firer.holder == leader), None)
        if found is None or loop.time() - hit_at < SETTLED:
            continue
        hit_at = loop.time()
        if rng.random() < 0.7:
            faults["SIGKILL"] += 1
            await found.end()
            starts.add(asyncio.create_task(found.start()))
        else:
            faults["SIGSTOP"] += 1
            found.signal(signal.SIGSTOP)
            loop.call_later(STOPPED, found.signal, signal.SIGCONT)
    await asyncio.gather(*starts)
    await asyncio.sleep(STOPPED + 1.5)  # whoever was stopped wakes, and fires what it had in mind
    # And on a busy machine, until what was missed while there was no leader has been caught up.
    store, patience = Schedules(pool, schema), loop.time() + PATIENCE
    while any(one.due_in < -1 for one in await store.due()) and loop.time() < patience:
        await asyncio.sleep(0.1)
    return faults


async def _clock(pool: Pool) -> float:
    """Seconds since the schedules were made, by the database; all are due at each whole one."""
    query = (
        f'SELECT EXTRACT(EPOCH FROM clock_timestamp() - min(anchor))::float8 FROM "{pool.settings.schema}".schedules'
    )
    seconds: float = await pool.fetchval(query)
    return seconds


async def _judge(pool: Pool, schema: str, faults: Counter[str]) -> Verdict:
    # Fires go on meanwhile: all of it as it stood in one moment.
    async with pool.acquire() as connection, connection.transaction(isolation="repeatable_read"):
        rows = await connection.fetch(f'SELECT name, anchor, last_at FROM "{schema}".schedules')
        tasks = await connection.fetch(f'SELECT id, idempotency_key FROM "{schema}".tasks')
        noted = await connection.fetchval(
            f"SELECT count(*) FROM \"{schema}\".schedule_fires WHERE outcome = 'enqueued'"
        )
    wanted = {fire_id(name, at) for name, anchor, last in rows for at in _times(anchor, last)}
    ids = {row[0] for row in tasks}
    return Verdict(
        fires=len(wanted),
        faults=dict(faults),
        missing=len(wanted - ids) + abs(noted - len(wanted)),
        twice=len(tasks) - len({row[1] for row in tasks}),
        strange=len(ids - wanted),
    )


def _times(anchor: datetime, last: datetime | None) -> list[datetime]:
    """What `every` second from `anchor` means, up to the last fire."""
    found = []
    at = anchor + timedelta(seconds=1)
    while last is not None and at <= last:
        found.append(at)
        at += timedelta(seconds=1)
    return found


async def _child() -> None:
    database = msgspec.json.decode(sys.stdin.buffer.readline(), type=DatabaseSettings)
    async with Pool(database) as pool:
        maintenance = Maintenance(pool, MaintenanceSettings(schema=database.schema, reaper_interval=ROUND))
        await maintenance.start()
        print(maintenance.id, flush=True)
        await asyncio.Event().wait()


def main(fires: int, seed: int) -> int:
    verdict = asyncio.run(run(os.environ["DHARA_DATABASE_URL"], fires, seed=seed))
    print(
        f"{verdict.fires:,} fire times, faults at the leader: {verdict.faults};"
        f" without a task: {verdict.missing}, with several: {verdict.twice}, tasks of no fire time: {verdict.strange}"
    )
    return 1 if verdict.missing or verdict.twice or verdict.strange or verdict.fires < fires else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fires", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        asyncio.run(_child())
    else:
        sys.exit(main(arguments.fires, arguments.seed))
