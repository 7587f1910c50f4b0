"""What is asked of the operating system: is that process running, and may mine outlive its parent?"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress

_PR_SET_PDEATHSIG = 1
_M_ARENA_MAX = -8


def runs(pid: int) -> bool:
    """True if the process is there and neither stopped (SIGSTOP, a debugger) nor a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            state = file.read().rpartition(")")[2].split()[0]
        return state not in "TtZX"
    except FileNotFoundError:
        if os.path.isdir("/proc/self"):
            return False
    except OSError:
        return False
    try:  # no /proc: macOS
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def ending(code: int) -> str:
    """How a process ended, for people: `signal SIGSEGV`, `exit code 3`. `code` is negative for a signal."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:  # real-time signals have no names
        return f"signal {-code}"


def memory() -> int:
    """Bytes of memory that this process occupies now; 0 where it cannot be told."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def share_heap() -> None:
    """All threads to come share one heap beside the main one (glibc; elsewhere nothing). By itself each gets its own, up to eight
    a processor, which keeps what its largest moment took, though under the GIL they allocate in turn. `MALLOC_ARENA_MAX` wins."""
    if "MALLOC_ARENA_MAX" not in os.environ:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


def die_with_parent(parent: int, with_signal: int = signal.SIGKILL) -> None:
    """Ask the kernel to end this process when `parent` ends (Linux only; elsewhere pipes tell)."""
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, with_signal)
    if os.getppid() != parent:  # it ended before we could ask
        os._exit(1)
