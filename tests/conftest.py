"""Real PostgreSQL for every test: server -> migrated template database -> a fresh copy per test.

The server is DHARA_DATABASE_URL's (a login that may create databases) or, without it, an embedded one that this run
starts and stops; DHARA_TEST_POSTGRES (15, 18 or a folder of binaries) picks its version. Under pytest-xdist the
controller owns the server and tells its workers the address, so that no worker's end takes it from the others.

Every process that makes databases holds an advisory lock on the token in their names as long as it lives; whoever comes
later drops the databases whose token nobody holds.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from itertools import chain, groupby
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# Tests start hundreds of processes, and without kept bytecode each would compile all that it imports: a second of a
# processor. Before anything else is imported, so that it counts for this process too; workers and processes inherit it.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
    os.environ.setdefault("PYTHONPYCACHEPREFIX", str(Path(sys.prefix) / "bytecode"))
    sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"]
    sys.dont_write_bytecode = False

import asyncpg
import hypothesis
import psycopg
import pytest
from psycopg import sql

from dhara.embedded import DEBIAN_FOLDERS, Binaries, EmbeddedPostgres, find_binaries
from dhara.maintenance.bulk import Bulk
from dhara.store import migrate
from dhara.store.pool import DatabaseSettings, Pool
from dhara.store.queues import Queues
from dhara.store.stats import Stats
from dhara.store.tasks import Tasks
from dhara.store.workers import Workers

# HYPOTHESIS_PROFILE=thorough for a night; by default the suite stays quick.
hypothesis.settings.register_profile("quick", max_examples=60, deadline=None)
hypothesis.settings.register_profile("thorough", max_examples=5_000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

_PREFIX = "dhara_test_"
_FOLDERS = "dhara-test-"
# Nothing here outlives its server, so nothing waits for a disk.
_FAST = {"fsync": "off", "full_page_writes": "off", "max_wal_size": "512MB", "max_connections": "300"}
_ROOM = 4 * 2**30
_TOGETHER = 3


# On the path of processes that tests start: what is not there where only dhara is installed.
LEAN = Path(__file__).parent / "lean"


class PrivateServer:
    """An embedded PostgreSQL in a folder of its own, both gone after `stop`."""

    def __init__(self) -> None:
        _remove_orphaned_folders()
        self.folder = Path(tempfile.mkdtemp(prefix=_FOLDERS, dir=_places()[0]))
        # The server's own user must be able to pass through to its data.
        self.folder.chmod(0o711)
        self._lock = _flock(self.folder / "lock")
        self._postgres: EmbeddedPostgres | None = None
        self.dsn = ""

    def start(self) -> None:
        self._postgres = EmbeddedPostgres(self.folder / "data", binaries=_wanted_binaries(), settings=_FAST)
        self.dsn = self._postgres.start()

    def stop(self) -> None:
        try:
            if self._postgres is not None:
                self._postgres.stop()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
            if self._lock is not None:
                os.close(self._lock)


_SERVER = pytest.StashKey[PrivateServer]()


def _places() -> list[Path]:
    """Where servers may live, the best first: in memory if there is room, since a database is a thousand files."""
    memory, disk = Path("/dev/shm"), Path(tempfile.gettempdir())
    with suppress(OSError):
        if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > _ROOM:
            return [memory, disk]
    return [disk]


def _wanted_binaries() -> Binaries:
    """DHARA_TEST_POSTGRES: a major version or a folder of binaries; without it, whatever dhara itself would take."""
    wanted = os.environ.get("DHARA_TEST_POSTGRES", "")
    if not wanted.isdecimal():
        return find_binaries(Path(wanted) if wanted else None)
    found = find_binaries()
    if found.major != int(wanted):
        found = find_binaries(DEBIAN_FOLDERS / wanted / "bin")
    return found


def _flock(path: Path) -> int | None:
    """A locked descriptor; None if somebody else holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_orphaned_folders() -> None:
    for folder in (found for place in _places() for found in place.glob(_FOLDERS + "*")):
        with suppress(OSError):
            if (folder / "lock").exists() and (lock := _flock(folder / "lock")) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def _server_dsn(config: pytest.Config) -> str:
    """The server's address; starts a private one on first need."""
    worker_input = getattr(config, "workerinput", None)
    if worker_input is not None:
        return str(worker_input["dhara_server_dsn"])
    if given := os.environ.get("DHARA_DATABASE_URL"):
        return given
    if _SERVER not in config.stash:
        server = PrivateServer()
        config.stash[_SERVER] = server
        config.add_cleanup(server.stop)
        server.start()
    return config.stash[_SERVER].dsn


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """pytest-xdist, in the controller: tell each worker where the server is."""
    node.workerinput["dhara_server_dsn"] = _server_dsn(node.config)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under pytest-xdist: the slow tests, which mostly wait, spread evenly among the others, which mostly compute."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    slow, quick = [], []
    for (_, is_slow), group in groupby(items, lambda item: (item.path, item.get_closest_marker("slow") is not None)):
        block = list(group)
        # A module of quick ones may share what is dear to make; slow ones share little.
        if is_slow:
            slow += [block[n : n + _TOGETHER] for n in range(0, len(block), _TOGETHER)]
        else:
            quick.append(block)
    placed = [((n + 0.5) / len(blocks), block) for blocks in (slow, quick) for n, block in enumerate(blocks)]
    items[:] = chain.from_iterable(block for _, block in sorted(placed, key=lambda pair: pair[0]))


def with_database(dsn: str, name: str) -> str:
    """`dsn`, pointing to another database of the same server."""
    return urlsplit(dsn)._replace(path=f"/{name}").geturl()


class Databases:
    """Makes and drops databases on one server, through one connection that lives as long as this process' tests."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._admin = psycopg.connect(server, autocommit=True)
        self._token = secrets.token_hex(4)
        self._admin.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [_PREFIX + self._token])
        self._made = 0
        # Measured: in memory 14 ms against 20, on a disk that must be waited for 310 against 200.
        row = self._admin.execute("SHOW fsync").fetchone()
        self._strategy = "FILE_COPY" if row == ("off",) else "WAL_LOG"

    def create(self, template: str | None = None) -> str:
        """A new database, empty or a copy of `template`; answers its name."""
        self._made += 1
        name = f"{_PREFIX}{self._token}_{self._made}"
        source = sql.Identifier(template or "template0")
        self._admin.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY {}").format(
                sql.Identifier(name), source, sql.SQL(self._strategy)
            )
        )
        return name

    def drop(self, name: str) -> None:
        statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
        for _ in range(5):
            with suppress(psycopg.errors.ObjectInUse):  # it waits for the sessions that it ends, but for 5 s only
                self._admin.execute(statement)
                return
        self._admin.execute(statement)

    def dsn(self, name: str) -> str:
        return with_database(self._server, name)

    def drop_orphans(self) -> None:
        """Databases of runs that are gone: nobody holds the lock on their token."""
        rows = self._admin.execute("SELECT datname FROM pg_database WHERE datname LIKE %s", [_PREFIX + "%"]).fetchall()
        tokens = {name.removeprefix(_PREFIX).partition("_")[0] for (name,) in rows} - {self._token}
        for token in tokens:
            key = _PREFIX + token
            row = self._admin.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", [key]).fetchone()
            if row is None or not row[0]:
                continue
            for (name,) in rows:
                if name.startswith(key + "_"):
                    self.drop(name)
            self._admin.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", [key])

    def close(self) -> None:
        self._admin.close()


@pytest.fixture(scope="session", autouse=True)
def lean_processes() -> None:
    """Processes start as they do for users. Not before tests run: plug-ins of pytest need what is hidden."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(LEAN), os.environ.get("PYTHONPATH")]))


@pytest.fixture(scope="session")
def server_dsn(request: pytest.FixtureRequest) -> str:
    """The server of this run, as a login that may create databases."""
    return _server_dsn(request.config)


@pytest.fixture(scope="session")
def databases(server_dsn: str) -> Iterator[Databases]:
    """Maker of databases."""
    made = Databases(server_dsn)
    made.drop_orphans()
    yield made
    made.close()


@pytest.fixture(scope="session")
def template(databases: Databases) -> Iterator[str]:
    """The name of a migrated database that every test's own is copied from."""
    name = databases.create()
    asyncio.run(_migrate(databases.dsn(name)))
    yield name
    databases.drop(name)


async def _migrate(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await migrate.up(connection)
    finally:
        await connection.close()


@pytest.fixture
def dsn(databases: Databases, template: str) -> Iterator[str]:
    """A fresh, migrated database."""
    name = databases.create(template)
    yield databases.dsn(name)
    databases.drop(name)


@pytest.fixture
def empty_dsn(databases: Databases) -> Iterator[str]:
    """A fresh database without dhara's schema."""
    name = databases.create()
    yield databases.dsn(name)
    databases.drop(name)


@pytest.fixture
async def pool(dsn: str) -> AsyncIterator[Pool]:
    """An open pool on the fresh database."""
    async with Pool(DatabaseSettings(dsn=dsn, connect_timeout=30)) as opened:
        yield opened


@pytest.fixture
async def db(dsn: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """One connection to the fresh database."""
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()


@pytest.fixture
def tasks(pool: Pool) -> Tasks:
    return Tasks(pool)


@pytest.fixture
def queues(pool: Pool) -> Queues:
    return Queues(pool)


@pytest.fixture
def workers(pool: Pool) -> Workers:
    return Workers(pool)


@pytest.fixture
def stats(pool: Pool) -> Stats:
    return Stats(pool)


@pytest.fixture(autouse=True)
def patient_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request drives the operation that it begins for half a second, which a busy machine needs for one of its steps."""
    monkeypatch.setattr(Bulk.drive_one, "__defaults__", (60.0,))
