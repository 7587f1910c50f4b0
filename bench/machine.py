"""The PostgreSQL of a run, and what must be known of it and of the machine to compare figures.

DHARA_DATABASE_URL's server, or one of its own with durability on, in a temporary folder on a disk;
DHARA_BENCH_POSTGRES=15 takes Debian's of that version instead of the newest.
"""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg

from dhara import __version__
from dhara.embedded import DEBIAN_FOLDERS, EmbeddedPostgres, find_binaries

# What anybody would set on a machine like this; everything that makes commits durable stays as it is.
_SETTINGS = {"shared_buffers": "512MB", "max_wal_size": "8GB", "checkpoint_timeout": "15min"}
_SHOWN = (
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_level",
    "shared_buffers",
    "max_wal_size",
    "checkpoint_timeout",
    "autovacuum",
)


@contextmanager
def server(**settings: str) -> Iterator[str]:
    """The address of the server of this run; `settings` are further ones of a server of its own."""
    if given := os.environ.get("DHARA_DATABASE_URL"):
        yield given
        return
    version = os.environ.get("DHARA_BENCH_POSTGRES")
    binaries = find_binaries()
    if version and binaries.major != int(version):
        binaries = find_binaries(DEBIAN_FOLDERS / version / "bin")
    with tempfile.TemporaryDirectory(prefix="dhara-bench-", dir=os.environ.get("DHARA_BENCH_FOLDER")) as folder:
        Path(folder).chmod(0o711)  # The server's own user must be able to pass through to its data.
        with EmbeddedPostgres(Path(folder) / "data", binaries=binaries, settings=_SETTINGS | settings) as postgres:
            yield postgres.dsn


async def described(db: asyncpg.Connection[asyncpg.Record]) -> dict[str, object]:
    """Versions and settings that the figures depend on."""
    settings = {name: await db.fetchval("SELECT current_setting($1)", name) for name in _SHOWN}
    return {
        "dhara": __version__,
        "python": platform.python_version(),
        "postgresql": (await db.fetchval("SHOW server_version")).split()[0],
        "major": await db.fetchval("SELECT current_setting('server_version_num')::int / 10000"),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "settings": settings,
    }
