"""The documentation as the tests see it: pages, their fenced blocks, and a page made into a script that follows it.

A page is followed as a reader would: files are written, commands are typed, in order, in one shell. Every `sh`, `python`
and `sql` block of a page that is followed runs; one that cannot says so above it:

    <!-- not run: why -->

A `python` block whose first line is `# name.py` becomes that file. A `text` block is what the commands print, with `…`
for what differs each time.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

from msgspec import Struct

from tests.conftest import LEAN

ROOT = Path(__file__).resolve().parents[2]
RUN = ("sh", "python", "sql")
DSN, ADDRESS = "postgresql://localhost/mydb", "127.0.0.1:8080"

_FENCE = re.compile(r"(?ms)(?:^<!-- not run: ([^\n]+) -->\n)?^```(\w*)\n(.*?)^```$")
_FILE = re.compile(r"# ([\w/]+\.py)\n")

_HELPERS = """
set -euo pipefail
trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT
serves() { until command curl -sf "http://{address}/livez" >/dev/null; do sleep 0.05; done; }
"""

_SQL = """
import os, pathlib, sys
import psycopg
with psycopg.connect(os.environ["DHARA_DATABASE_URL"], autocommit=True) as connection:
    cursor = connection.execute(pathlib.Path(sys.argv[1]).read_text())
    while True:
        if cursor.description:
            for row in cursor.fetchall():
                print(*row, sep=" | ")
        if not cursor.nextset():
            break
"""


class Block(Struct, frozen=True):
    """A fenced block. `skipped`: why it is not run."""

    line: int
    language: str
    text: str
    skipped: str | None


class Page(Struct, frozen=True):
    """A Markdown file; `name` is its path from the root of the repository."""

    name: str
    text: str

    @property
    def blocks(self) -> list[Block]:
        return [
            Block(self.text[: found.start()].count("\n") + 1, found[2], found[3], found[1])
            for found in _FENCE.finditer(self.text)
        ]

    @property
    def prose(self) -> str:
        """The page without its blocks and comments."""
        return re.sub(r"(?s)<!--.*?-->", "", _FENCE.sub("", self.text))


def pages() -> list[Page]:
    """Every page of the documentation."""
    files = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    return [Page(str(file.relative_to(ROOT)), file.read_text()) for file in sorted(files)]


def followed() -> list[Page]:
    """The pages whose blocks are run."""
    places = ("README.md", "docs/tutorials/", "docs/how-to/", "docs/reference/sql.md")
    return [page for page in pages() if page.name.startswith(places) and any(b.language in RUN for b in page.blocks)]


class Walk(Struct):
    """What following a page printed."""

    code: int
    printed: str
    complained: str


def follow(page: Page, folder: Path, dsn: str, seconds: float = 100) -> Walk:
    """Follow `page` in `folder` with the database `dsn`; kills whatever is left after `seconds`."""
    address = f"127.0.0.1:{_free_port()}"
    script = folder / ".walk.sh"
    script.write_text(_script(page, folder, dsn, address))
    walker = subprocess.Popen(
        ["bash", str(script)],
        cwd=folder,
        env=_environ(folder, dsn, address),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed, complained = walker.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(walker.pid, signal.SIGKILL)
        printed, complained = walker.communicate()
    return Walk(walker.returncode, printed, complained)


def _script(page: Page, folder: Path, dsn: str, address: str) -> str:
    (folder / ".sql.py").write_text(_SQL)
    lines = [_HELPERS.replace("{address}", address)]
    for block in page.blocks:
        if block.language not in RUN or block.skipped is not None:
            continue
        text = block.text.replace(DSN, dsn).replace(ADDRESS, address)
        named = _FILE.match(text)
        if block.language == "python":
            file = folder / (named[1] if named else f"block_{block.line}.py")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            lines += [] if named else [f"python {file.name}"]
        elif block.language == "sql":
            (folder / f".block_{block.line}.sql").write_text(text)
            lines.append(f"python .sql.py .block_{block.line}.sql")
        else:
            # A reader sees when the server is there; the script asks.
            lines.append(re.sub(r"(?m)^(dhara server.*&)$", r"\1\nserves", text))
    return "\n".join(lines)


def _environ(folder: Path, dsn: str, address: str) -> dict[str, str]:
    tools = folder / ".tools"
    tools.mkdir()
    for name, arguments in (("python", ""), ("dhara", "-m dhara")):
        tool = tools / name
        tool.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments} "$@"\n')
        tool.chmod(0o755)
    own = {name: value for name, value in os.environ.items() if not name.startswith(("DHARA_", "PYTEST_"))}
    return own | {
        "PATH": f"{tools}{os.pathsep}{own['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(LEAN), str(ROOT / "src"), str(ROOT)]),
        "DHARA_DATABASE_URL": dsn,
        "DHARA_PORT": address.rpartition(":")[2],
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def missing(page: Page, printed: str) -> list[str]:
    """The lines of the page's `text` blocks that were not printed."""
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    gone = []
    for block in page.blocks:
        if block.language != "text" or block.skipped is not None:
            continue
        for line in filter(str.strip, block.text.splitlines()):
            pattern = ".*".join(re.escape(" ".join(part.split())) for part in line.split("…"))
            if not any(re.fullmatch(pattern.replace(r"\ .*", ".*").replace(r".*\ ", ".*"), seen) for seen in lines):
                gone.append(line)
    return gone
