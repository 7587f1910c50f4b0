"""`python -m chaos.patroni --patroni /path/to/venv/bin`: two nodes under Patroni on this machine, kill -9 of the primary and its
Patroni under load, and what became of everything that was acknowledged.

Patroni is no dependency of dhara: `python3 -m venv V && V/bin/pip install 'patroni[raft,psycopg3]' 'psycopg[binary]'`, where
the user that PostgreSQL runs as may read it. `deploy/patroni/node.yml` is the configuration of each node.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from string import Template
from typing import Any

import asyncpg
import httpx

from chaos.workload import Workload
from dhara import AsyncClient
from dhara.embedded import find_binaries
from dhara.embedded.account import account_for
from dhara.embedded.copies import readable_binaries
from dhara.embedded.server import free_port
from dhara.store import migrate
from dhara.telemetry.log import configure
from tests.e2e.kit import Fleet, children
from tests.waiting import eventually

CONFIGURATION = Path(__file__).parents[1] / "deploy" / "patroni" / "node.yml"
_PASSWORD = "patroni-7c6a180b36896a0a"
_CONTROLLER = "raft:\n  data_dir: {folder}/raft\n  self_addr: 127.0.0.1:{own}\n  partner_addrs: [{partners}]\n"


class Cluster:
    """Two nodes, and a third vote."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self._folder, self._programs = folder, programs
        self._account = account_for(folder) if os.geteuid() == 0 else None
        self._binaries = readable_binaries(find_binaries(), self._account)
        self.ports, self.rests = [free_port() for _ in range(2)], [free_port() for _ in range(2)]
        self._rafts = [free_port() for _ in range(3)]
        self.processes: list[subprocess.Popen[bytes]] = []

    @property
    def dsn(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        return f"postgresql://postgres:{_PASSWORD}@{hosts}/postgres?target_session_attrs=read-write"

    def start(self) -> None:
        for n in range(3):
            folder = self._folder / f"node-{n}"
            (folder / "raft").mkdir(parents=True)
            partners = ", ".join(f"'127.0.0.1:{port}'" for port in self._rafts if port != self._rafts[n])
            if n == 2:
                text = _CONTROLLER.format(folder=folder, own=self._rafts[n], partners=partners)
            else:
                text = Template(CONFIGURATION.read_text()).safe_substitute(
                    NAME=f"node{n}", REST=self.rests[n], RAFT=self._rafts[n], PORT=self.ports[n], PARTNERS=partners,
                    FOLDER=folder, BIN=self._binaries.bindir, PASSWORD=_PASSWORD, NAMES="$NAMES",
                )  # fmt: skip
            (folder / "node.yml").write_text(text)
            self._own(folder)
            self._run("patroni_raft_controller" if n == 2 else "patroni", folder)

    def _own(self, folder: Path) -> None:
        if self._account:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, self._account.uid, self._account.gid)

    def _run(self, program: str, folder: Path) -> None:
        ids: dict[str, Any] = {"user": self._account.uid, "group": self._account.gid} if self._account else {}
        with (self._folder / f"{folder.name}.log").open("wb") as log:
            self.processes.append(
                subprocess.Popen(
                    [self._programs / program, folder / "node.yml"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    env={"LC_ALL": "C", "PATH": os.defpath, "HOME": str(folder)},
                    start_new_session=True,
                    **ids,
                )
            )

    def primary(self) -> int | None:
        """Which node answers as the primary."""
        for n, port in enumerate(self.rests):
            with suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{port}/primary", timeout=2).status_code == 200:
                    return n
        return None

    def synchronous(self) -> bool:
        """Whether a standby is one that commits wait for."""
        for port in self.rests:
            with suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{port}/synchronous", timeout=2).status_code == 200:
                    return True
        return False

    def kill(self, n: int) -> None:
        """kill -9 of Patroni and all that it started: the machine is gone. The server is no child of Patroni."""
        family = [self.processes[n].pid]
        with suppress(OSError):
            family.append(int((self._folder / f"node-{n}" / "data" / "postmaster.pid").read_text().split()[0]))
        for pid in family:
            family += children(pid)
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        for n in range(len(self.processes)):
            self.kill(n)
            self.processes[n].wait()


@contextmanager
def cluster(programs: Path) -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="dhara-patroni-"))
    folder.chmod(0o755)
    made = Cluster(folder, programs)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def trial(made: Cluster, folder: Path, rate: float) -> dict[str, Any]:
    """Load, the death of the primary, load again; what is there afterwards."""
    await eventually(
        lambda: made.primary() is not None and made.synchronous(), 120, "a primary and a synchronous standby"
    )
    db = await asyncpg.connect(made.dsn, timeout=10)
    await migrate.up(db)
    await db.execute("CREATE TABLE effects (task uuid NOT NULL, attempt int NOT NULL)")
    await db.close()
    os.environ["CHAOS_NOTES"] = str(folder)
    fleet = Fleet(made.dsn, folder)
    fleet.start("--concurrency", "16", module="chaos.handlers")
    try:
        async with AsyncClient(made.dsn, patience=2.0) as client:
            work = Workload(client, folder, random.Random(1), rate)
            running = asyncio.create_task(work.run())
            await asyncio.sleep(12.0)
            first = made.primary()
            assert first is not None
            before, died = len(work.acknowledged), time.monotonic()
            made.kill(first)
            await eventually(lambda: made.primary() == 1 - first, 90, "the standby to be promoted")
            promoted = time.monotonic()
            while len(work.acknowledged) == before or max(work.times.values()) < time.time() - 1:
                await asyncio.sleep(0.05)
            accepted = time.monotonic()
            await asyncio.sleep(12.0)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await work.finish()
        db = await asyncpg.connect(made.dsn, timeout=10)
        open_ = "SELECT count(*) FROM dhara.tasks WHERE status IN ('PENDING', 'RUNNING')"
        end = time.monotonic() + 90
        while await db.fetchval(open_) and time.monotonic() < end:
            await asyncio.sleep(0.3)
        found = await db.fetch("SELECT id FROM dhara.tasks WHERE status NOT IN ('PENDING', 'RUNNING')")
        await db.close()
        lost = set(work.acknowledged) - {row["id"] for row in found}
        return {
            "acknowledged": len(work.acknowledged), "lost": len(lost), "until promotion": round(promoted - died, 1),
            "first enqueue after it": round(accepted - promoted, 1),
        }  # fmt: skip
    finally:
        await fleet.end()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m chaos.patroni", description=__doc__)
    parser.add_argument("--patroni", type=Path, required=True, help="the folder of Patroni's programs")
    parser.add_argument("--rate", type=float, default=40.0, help="tasks a second")
    given = parser.parse_args()
    configure("error", "text")
    with cluster(given.patroni) as made, tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(trial(made, Path(folder), given.rate))
    print(", ".join(f"{name}: {value}" for name, value in found.items()))
    return 0 if not found["lost"] else 1


if __name__ == "__main__":
    sys.exit(main())
