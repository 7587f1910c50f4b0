"""What /proc knows of a process."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def resident(pid: int) -> float:
    """MiB in memory that are its own or shared; 0 if it is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    return 0.0


def descriptors(pid: int) -> int:
    """Open files, sockets and pipes; 0 if it is gone."""
    with suppress(OSError):
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return 0
