"""The account that the server runs under: whom to be, how to become it, what it may do.

PostgreSQL refuses to run as root, so root drops to the data's owner, to `postgres` or to `nobody`; anybody else
stays who they are. Becoming it is the work of a shim, a small Python program without dhara: code of ours between
fork and exec (`preexec_fn`) is not safe where there are threads. What the account may read is asked as that account,
so that every rule of the system counts, and not only the bits that `stat` shows.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dhara.errors import EmbeddedPostgresError

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


@dataclass(frozen=True, slots=True)
class Account:
    """An unprivileged user; only root has need of one."""

    name: str
    uid: int
    gid: int


def account_for(cluster: Path) -> Account | None:
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


def _named(entry: pwd.struct_passwd) -> Account:
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def shimmed(command: Iterable[str], account: Account | None, death: int) -> list[str]:
    if not sys.executable:
        raise EmbeddedPostgresError("the path of the Python interpreter is unknown (sys.executable is empty)")
    uid, gid = (account.uid, account.gid) if account else (-1, -1)
    python = [sys.executable, "-I", "-S", "-c", _SHIM]
    return [*python, str(os.getpid()), str(int(death)), str(uid), str(gid), *command]


def environment() -> dict[str, str]:
    """What the server may know of ours: no PG*, no secrets; messages in English, as we read them."""
    kept = {k: v for k, v in os.environ.items() if k in _KEPT_VARIABLES or k.startswith("FAKETIME")}
    return {"PATH": os.defpath, **kept, "LC_ALL": "C"}


def may(account: Account | None, mode: int, *paths: Path) -> bool:
    """`os.access`, asked as `account`, so that all rules there are count. Ourselves we trust."""
    if account is None:
        return True
    command = shimmed(["--access", str(mode), *map(str, paths)], account, 0)
    done = subprocess.run(command, check=False, env=environment(), stdin=subprocess.DEVNULL, cwd="/")
    return done.returncode == 0
