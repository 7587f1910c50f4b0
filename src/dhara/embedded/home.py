"""The home of a server: the folder that really holds it, claimed by its lock.

Mostly that is `data_dir` itself. If root's server runs under an account that cannot reach it (a checkout below
/root), the content lives in /var/lib/dhara and `data_dir/elsewhere` points there; who removes `data_dir` means the
data, so data whose link is gone do not come back.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from dhara.embedded.account import Account, account_for, may
from dhara.embedded.folders import check_ours, make_folder
from dhara.embedded.lock import flock, lock_folder

SYSTEM_STATE = Path("/var/lib/dhara")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Home:
    """What somebody asked for (`data_dir`), where it lives (`path`), and under which account."""

    data_dir: Path
    path: Path
    account: Account | None = None

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def cluster(self) -> Path:
        """PostgreSQL's data directory."""
        return self.path / "cluster"

    @property
    def run(self) -> Path:
        """The folder of its socket."""
        return self.path / "run"

    @property
    def password(self) -> Path:
        return self.path / "password"

    @property
    def log(self) -> Path:
        return self.path / "postgres.log"


def settle(data_dir: Path) -> Home:
    """The home for `data_dir`, its folders made; only root's may lie elsewhere."""
    account = account_for(data_dir / "cluster")
    make_folder(data_dir, 0o711 if account else 0o700)
    check_ours(data_dir)
    if account is None or may(account, os.X_OK, data_dir):
        return Home(data_dir, data_dir, account)
    digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:12]
    path = SYSTEM_STATE / f"{data_dir.name}-{digest}"
    make_folder(path, 0o711)
    check_ours(path)
    _log.info("user %s cannot reach %s: its content lives in %s", account.name, data_dir, path)
    return Home(data_dir, path, account_for(path / "cluster"))


def claim(home: Home) -> int:
    """The descriptor of the lock on `home`, ours from now on."""
    lock = lock_folder(home.lock)
    if home.path != home.data_dir and not (home.data_dir / "elsewhere").is_symlink():
        _forget_removed_data(home)
        (home.data_dir / "elsewhere").symlink_to(home.path)
    return lock


def _forget_removed_data(home: Home) -> None:
    """`data_dir` was removed, and with it the link: its data must not come back. One set is kept."""
    old = home.path / "cluster.removed"
    if home.cluster.exists():
        shutil.rmtree(old, ignore_errors=True)
        home.cluster.rename(old)


def remove_folder(data_dir: Path, path: Path) -> None:
    for folder in {path, data_dir}:
        shutil.rmtree(folder, ignore_errors=True)


def remove_dead_spares(taken: Path) -> None:
    """Temporary folders beside `taken` whose process was killed before it could remove them."""
    for folder in taken.parent.glob(f"{taken.name}.spare-*"):
        link = folder / "elsewhere"
        path = link.readlink() if link.is_symlink() else folder
        with contextlib.suppress(OSError):
            if (lock := flock(path / "lock")) is not None:
                remove_folder(folder, path)
                os.close(lock)
