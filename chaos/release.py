"""The release before this one, from the history of this repository: its workers are run against today's schema (F35)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
_MIGRATIONS = "src/dhara/store/migrations"


def _git(*words: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *words], check=True, capture_output=True, text=True).stdout


def _migrations(commit: str) -> dict[str, str]:
    """Name -> content's hash, of the steps up."""
    lines = [line.split() for line in _git("ls-tree", commit, f"{_MIGRATIONS}/").splitlines()]
    return {line[3].rpartition("/")[2]: line[2] for line in lines if line[3].endswith(".up.sql")}


def before() -> str:
    """The last commit whose migrations are a beginning of today's, unchanged. Raises `LookupError`."""
    today, newer = _migrations("HEAD"), "HEAD"
    for commit in _git("log", "--format=%H", "--", _MIGRATIONS).split():
        found = _migrations(commit)
        if found and len(found) < len(today) and found.items() <= today.items():
            return _git("rev-parse", "--short", f"{newer}^").strip()
        newer = commit
    raise LookupError("no commit of this repository has a part of today's migrations, unchanged; name one by --older")


class Release:
    """The sources of `commit` in a folder of their own."""

    def __init__(self, folder: Path, commit: str | None) -> None:
        self.commit = commit or before()
        self.steps = len(_migrations(self.commit))
        folder.mkdir()
        archive = subprocess.run(
            ["git", "-C", str(ROOT), "archive", self.commit, "src"], check=True, capture_output=True
        )
        subprocess.run(["tar", "-x", "-C", str(folder)], check=True, input=archive.stdout)
        self._sources = str(folder / "src")

    @contextmanager
    def first(self) -> Iterator[None]:
        """What is started within runs its code, not today's."""
        sys.path.insert(0, self._sources)
        try:
            yield
        finally:
            sys.path.remove(self._sources)

    def migrate(self, dsn: str) -> None:
        """Make the schema as this release knows it."""
        migrate(dsn, self._sources)


def migrate(dsn: str, sources: str = "") -> int:
    """`dhara migrate up`, of those sources or of today's; its exit code."""
    path = os.pathsep.join([sources, str(ROOT / "src")] if sources else [str(ROOT / "src")])
    environment = os.environ | {"DHARA_DATABASE_URL": dsn, "PYTHONPATH": path}
    return subprocess.run([sys.executable, "-m", "dhara", "migrate", "up"], check=True, env=environment).returncode
