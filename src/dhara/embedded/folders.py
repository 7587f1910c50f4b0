"""Folders and files: where the data goes by default, and how what is private is made.

Nothing that was there before is taken over, opened up or emptied: permissions of folders that exist are never
changed, and a folder with somebody else's content is refused.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from dhara.embedded.account import Account
from dhara.errors import EmbeddedPostgresError


def default_data_dir(major: int, *, env: Mapping[str, str] = os.environ) -> Path:
    """$XDG_DATA_HOME/dhara/pg18, or below ~/.local/share."""
    base = env.get("XDG_DATA_HOME", "")
    root = Path(base) if base.startswith("/") else Path.home() / ".local" / "share"
    return root / "dhara" / f"pg{major}"


def make_folder(path: Path, mode: int) -> None:
    """Makes `path` and its missing parents, all with `mode`; leaves alone what is there."""
    for folder in [*reversed(path.parents), path]:
        try:
            folder.mkdir(0o700)
        except FileExistsError:
            continue
        except OSError as error:
            raise EmbeddedPostgresError(f"cannot make {folder}: {error.strerror}; choose another folder") from error
        folder.chmod(mode)


def check_ours(folder: Path) -> None:
    """Refuses to make itself at home where something else lives."""
    if folder.stat().st_uid != os.geteuid():
        raise EmbeddedPostgresError(f"{folder} belongs to another user: choose another folder")
    if not (folder / "lock").exists() and not (folder / "elsewhere").is_symlink() and any(folder.iterdir()):
        raise EmbeddedPostgresError(f"{folder} is not empty and was not made by dhara: choose a new or an empty folder")


def write_private(path: Path, text: str, account: Account | None = None) -> None:
    """A file that only its owner can read, new or not at all."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        if account:
            os.fchown(descriptor, account.uid, account.gid)
        file.write(text)


def private_folder(path: Path, account: Account | None) -> None:
    """An empty folder of `account`'s own; what was there goes."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(0o700)
    if account:
        os.chown(path, account.uid, account.gid)
