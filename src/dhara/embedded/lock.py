"""Who holds the folder.

The server and its backends inherit the lock's descriptor; we close ours. Who gets the lock has therefore proof that
no process of that server lives, whatever numbers `postmaster.pid` holds: they may be zombies' or recycled. A server
that somebody started by hand does not hold the lock; its working directory gives it away.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from pathlib import Path
from typing import Final

from dhara.embedded.child import QUIT_TIMEOUT, STOP_TIMEOUT
from dhara.errors import EmbeddedPostgresError

ORPHAN_TIMEOUT: Final = 10.0


class EmbeddedPostgresInUse(EmbeddedPostgresError):
    """Another live process runs a server on that folder."""


def flock(path: Path, timeout: float = 0.0) -> int | None:
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


def identity(pid: int) -> str:
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


def lock_folder(path: Path) -> int:
    """The lock at `path`, with our name in it. Waits for a server whose owner died; it is on its way out."""
    deadline = time.monotonic() + ORPHAN_TIMEOUT
    while (descriptor := flock(path, 0.05)) is None:
        _refuse_live_owner(path)
        if time.monotonic() > deadline:
            descriptor = _evict(path)
            break
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, identity(os.getpid()).encode(), 0)
    return descriptor


def _refuse_live_owner(path: Path) -> None:
    """Raises if the lock's holder lives. We may be it: then a dead server of ours leaves backends behind."""
    owner = path.read_text().strip()
    pid = int(owner.split()[0]) if owner else 0
    if not pid or identity(pid) != owner or (pid == os.getpid() and not _postmaster(path.parent / "cluster")):
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
            if (descriptor := flock(path, patience)) is not None:
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
    return pid if pid > 1 and works_in(pid, cluster) else 0


def works_in(pid: int, cluster: Path) -> bool:
    """Is `pid` alive and a PostgreSQL of `cluster`? Its processes all work in their data directory."""
    if not identity(pid):
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


def remove_stale_locks(cluster: Path, run: Path) -> None:
    """Removes what PostgreSQL could misread: pid files of a server proven to be gone (we hold the lock)."""
    pids = [int(entry.name) for entry in Path("/proc").glob("[0-9]*")] if sys.platform == "linux" else []
    rivals = [pid for pid in pids if works_in(pid, cluster) and _resembles_postgres(pid, cluster)]
    if rivals or (sys.platform != "linux" and _postmaster(cluster)):
        raise EmbeddedPostgresInUse(
            f"a PostgreSQL that dhara did not start works on {cluster} (process {min(rivals, default=0)}): "
            "stop it, or choose another folder"
        )
    for leftover in [cluster / "postmaster.pid", *run.glob(".s.PGSQL.*")]:
        leftover.unlink(missing_ok=True)
