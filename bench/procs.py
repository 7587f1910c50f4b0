"""Processes of a benchmark: started, found, measured, and ended whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_TICK = os.sysconf("SC_CLK_TCK")
_PATIENCE = 30.0


def environ(**settings: object) -> dict[str, str]:
    """The environment of a dhara process with these settings and no others."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DHARA_")}
    path = os.pathsep.join([str(ROOT), *filter(None, [kept.get("PYTHONPATH")])])
    return kept | {"PYTHONPATH": path} | {f"DHARA_{name.upper()}": str(value) for name, value in settings.items()}


@contextmanager
def running(arguments: Sequence[str], env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """`python ARGUMENTS`, ended by SIGTERM, or by SIGKILL if that takes too long."""
    process = subprocess.Popen([sys.executable, *arguments], env=env, cwd=ROOT, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        ended(process)


def ended(process: subprocess.Popen[bytes]) -> None:
    """End a process that may have ended already, and what it has started."""
    if process.poll() is not None:
        return
    below = family(process.pid)
    process.terminate()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        for pid in below:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def family(pid: int) -> list[int]:
    """The process and all below it."""
    found = [pid]
    for one in found:
        with suppress(OSError):
            for thread in Path(f"/proc/{one}/task").iterdir():
                found += [int(child) for child in (thread / "children").read_text().split()]
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of the process and all below it."""
    total = 0.0
    for one in family(pid):
        with suppress(OSError):
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / _TICK
    return total


def megabytes(pid: int) -> float:
    """Memory of the process and all below it; what they share is counted once."""
    total = 0.0
    for one in family(pid):
        with suppress(OSError):
            for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) / 1024
    return total
