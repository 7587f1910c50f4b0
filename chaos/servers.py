"""Servers that EmbeddedPostgres does not make: a primary with a synchronous standby, PgBouncer, a small disk."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psycopg

from chaos.processes import resident
from dhara.embedded import Binaries
from dhara.embedded.account import Account, account_for
from dhara.embedded.copies import readable_binaries
from dhara.embedded.server import free_port
from tests.e2e.kit import PROFILE, children

_SECRET = "chaos-5d41402abc4b2a76"


def _answers(dsn: str) -> bool:
    with psycopg.connect(dsn, connect_timeout=2):
        return True


def _until(ready: Callable[[], object], what: str, timeout: float = 120) -> None:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        with suppress(Exception):
            if ready():
                return
        time.sleep(0.02)
    raise TimeoutError(f"waited {timeout:g} s in vain for {what}")


class Node:
    """One PostgreSQL server of a pair, as an unprivileged child."""

    def __init__(self, folder: Path, binaries: Binaries, account: Account | None, port: int) -> None:
        self.folder, self.port = folder, port
        self._binaries, self._account = binaries, account
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        return f"postgresql://postgres:{_SECRET}@127.0.0.1:{self.port}/postgres"

    def _ids(self) -> dict[str, int]:
        return {"user": self._account.uid, "group": self._account.gid} if self._account else {}

    def run(self, program: str, *arguments: str) -> None:
        """One of PostgreSQL's programs, to its end."""
        command = [self._binaries.program(program), *arguments]
        environ = {"PATH": os.defpath, "LC_ALL": "C", "PGPASSWORD": _SECRET}
        done = subprocess.run(command, check=False, capture_output=True, env=environ, cwd="/", **self._ids())  # type: ignore[call-overload]
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stderr.decode(errors='replace')[-500:]}")

    def start(self) -> None:
        log = self.folder.with_suffix(".log").open("ab")
        options = {
            "port": self.port,
            "unix_socket_directories": "",
            "listen_addresses": "127.0.0.1",
            "shared_buffers": "64MB",
        }
        command = [self._binaries.program("postgres"), "-D", str(self.folder)]
        command += [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        self._popen = subprocess.Popen(  # type: ignore[call-overload]
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", env={"LC_ALL": "C"}, start_new_session=True,
            **self._ids(),
        )  # fmt: skip
        _until(lambda: self.one("SELECT true"), f"PostgreSQL on port {self.port}")

    def one(self, query: str) -> object:
        with psycopg.connect(self.dsn, autocommit=True, connect_timeout=3) as connection:
            row = connection.execute(query).fetchone()
            return row and row[0]

    def do(self, *queries: str) -> None:
        with psycopg.connect(self.dsn, autocommit=True, connect_timeout=3) as connection:
            for query in queries:
                connection.execute(query)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """kill -9 of the postmaster and all its children: nothing of it answers any more."""
        if self._popen is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._popen.pid, number)
            self._popen.wait(30)
            self._popen = None


class Pair:
    """A primary and its synchronous standby. After a failover a new standby takes the place of the dead."""

    def __init__(self, folder: Path, binaries: Binaries) -> None:
        self._folder = folder / "pair"
        self._folder.mkdir()
        self._account = account_for(self._folder) if os.geteuid() == 0 else None
        if self._account:
            os.chown(self._folder, self._account.uid, self._account.gid)
        self._binaries = readable_binaries(binaries, self._account)
        self._ports = (free_port(), free_port())
        self._made = 0
        self.primary = self._node(self._ports[0])
        self.standby: Node | None = None

    @property
    def dsn(self) -> str:
        """Both hosts; a client takes the one that can be written to."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self._ports)
        return f"postgresql://postgres:{_SECRET}@{hosts}/postgres?target_session_attrs=read-write"

    def _node(self, port: int) -> Node:
        self._made += 1
        return Node(self._folder / f"node-{self._made}", self._binaries, self._account, port)

    def start(self) -> None:
        password = self._folder / "password"
        password.write_text(_SECRET)
        password.chmod(0o644)
        self.primary.run(
            "initdb", "-D", str(self.primary.folder), "-U", "postgres", "--auth=scram-sha-256", f"--pwfile={password}"
        )
        self.primary.start()
        self.follow()

    def follow(self) -> None:
        """A new standby of the primary; commits wait for it from now on."""
        port = self._ports[0] if self.primary.port == self._ports[1] else self._ports[1]
        node = self._node(port)
        node.run("pg_basebackup", "-d", self.primary.dsn, "-D", str(node.folder), "-R", "-c", "fast")
        # A copy of the primary's wish would make the standby wait for a standby of its own once it is promoted.
        with (node.folder / "postgresql.auto.conf").open("a") as file:
            file.write("synchronous_standby_names = ''\n")
        node.start()
        self.primary.do("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
        _until(
            lambda: self.primary.one("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"),
            "the standby to be synchronous",
        )
        self.standby = node

    def fall_behind(self) -> float:
        """Commits wait for the standby no more, and it hears of none; since when, wall time."""
        assert self.standby is not None
        self.primary.do("ALTER SYSTEM SET synchronous_standby_names = ''", "SELECT pg_reload_conf()")
        _until(
            lambda: self.primary.one("SELECT current_setting('synchronous_standby_names') = ''"),
            "the primary not to wait",
        )
        since = time.time()
        self.standby.do("ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()")
        _until(
            lambda: self.primary.one("SELECT count(*) = 0 FROM pg_stat_replication"),
            "the standby to hear of nothing more",
        )
        return since

    def kill_primary(self) -> None:
        self.primary.kill()

    def promote(self) -> None:
        assert self.standby is not None
        dead, self.primary, self.standby = self.primary, self.standby, None
        self.primary.run("pg_ctl", "promote", "-D", str(self.primary.folder), "-w")
        shutil.rmtree(dead.folder, ignore_errors=True)

    def stop(self) -> None:
        for node in (self.standby, self.primary):
            if node is not None:
                node.kill(signal.SIGQUIT)


class Web:
    """One `dhara server` on a free port of 127.0.0.1."""

    def __init__(self, dsn: str, folder: Path, **settings: str) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("DHARA_")}
        self.port = free_port()
        wanted = {"database_url": dsn, "host": "127.0.0.1", "port": str(self.port), "queue_limit": "2000", **settings}
        environment |= PROFILE | {f"DHARA_{name.upper()}": value for name, value in wanted.items()}
        path = os.pathsep.join(os.path.abspath(p) for p in sys.path if p)
        self.log = folder / "server.log"
        with self.log.open("wb") as output:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "dhara", "server", "--no-worker"], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env=environment | {"PYTHONPATH": path}, cwd=folder, start_new_session=True,
            )  # fmt: skip

    async def until_ready(self) -> str:
        """Its address, once it answers."""
        url = f"http://127.0.0.1:{self.port}"
        await asyncio.to_thread(_until, lambda: httpx.get(f"{url}/livez").status_code == 200, f"the server at {url}")
        return url

    @property
    def memory(self) -> float:
        """Resident, MiB, with its children."""
        return sum(resident(pid) for pid in [self.popen.pid, *children(self.popen.pid)])

    async def end(self) -> None:
        self.popen.terminate()
        await asyncio.to_thread(self.popen.wait, 30)


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    """A small disk of its own (tmpfs)."""
    folder.mkdir(mode=0o755)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


@contextmanager
def pooler(folder: Path, dsn: str) -> Iterator[str]:
    """PgBouncer in transaction mode before `dsn`; yields the way through it."""
    parts = urlsplit(dsn)
    port = free_port()
    folder.mkdir()
    (folder / "users").write_text(f'"{parts.username}" "{parts.password}"\n')
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n* = host={parts.hostname} port={parts.port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n"
        f"auth_type = scram-sha-256\nauth_file = {folder}/users\npool_mode = transaction\ndefault_pool_size = 20\n"
        # As docs/how-to/deploy.md says: by default it waits for 15 s once a login at the server has failed.
        f"server_login_retry = 1\n"
        "max_client_conn = 400\nignore_startup_parameters = extra_float_digits\nunix_socket_dir =\n"
    )
    account = account_for(folder) if os.geteuid() == 0 else None
    ids = {"user": account.uid, "group": account.gid} if account else {}
    if account:
        for path in (folder, *folder.iterdir()):
            os.chown(path, account.uid, account.gid)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["pgbouncer", str(folder / "pgbouncer.ini")], stdout=log, stderr=log, **ids)  # type: ignore[call-overload]
    try:
        login = parts.netloc.rpartition("@")[0]
        through = parts._replace(netloc=f"{login}@127.0.0.1:{port}").geturl()
        _until(lambda: _answers(through), "PgBouncer")
        yield through
    finally:
        process.terminate()
        process.wait(10)
