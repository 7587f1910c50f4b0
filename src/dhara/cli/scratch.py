"""A folder for data that is thrown away: gone at the end, or, after a kill -9, at the next start."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "dhara-demo-"


@contextmanager
def scratch() -> Iterator[Path]:
    """A new folder, removed afterwards; who holds its lock lives."""
    _remove_orphans()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    folder.chmod(0o711)  # The user that the server runs as must be able to pass through to its data.
    lock = _lock(folder / "lock")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _remove_orphans() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            ours = not folder.is_symlink() and folder.stat().st_uid == os.geteuid()
            if ours and (folder / "lock").exists() and (lock := _lock(folder / "lock")) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def _lock(path: Path) -> int | None:
    """A locked descriptor; None if somebody else holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
