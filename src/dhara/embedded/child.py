"""The server as our child: in the foreground, in a session of its own (Ctrl-C is for us, not for it).

The shim asks the kernel for SIGINT at our death, and the kernel means the death of the *thread* that made the
child. So the child is made, awaited and reaped by a thread that lives exactly as long.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
from typing import IO, Final

from dhara.embedded.account import Account, environment, shimmed
from dhara.errors import EmbeddedPostgresError

STOP_TIMEOUT: Final = 15.0
QUIT_TIMEOUT: Final = 10.0

_log = logging.getLogger(__name__)


class Child:
    """A process made, awaited and reaped by a thread of its own: the one the death signal is tied to."""

    def __init__(self, command: list[str], log: IO[bytes], lock: int, account: Account | None) -> None:
        self._command = shimmed(command, account, signal.SIGINT)
        self._log = log
        self._lock = lock
        self._started = threading.Event()
        self._exited = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: BaseException | None = None
        threading.Thread(target=self._keep, name="dhara-postgres", daemon=True).start()
        self._started.wait()
        if self._failure is not None:
            raise EmbeddedPostgresError(f"cannot start {command[0]}: {self._failure}") from self._failure

    def _keep(self) -> None:
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env=environment(),
                cwd="/",
                pass_fds=(self._lock,),
                start_new_session=True,
            )
        except OSError as error:
            self._failure = error
            return
        finally:
            self._started.set()
        self._process.wait()
        self._exited.set()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return not self._exited.is_set()

    def wait(self, timeout: float) -> bool:
        """True once it has ended."""
        return self._exited.wait(timeout)

    def signal(self, number: signal.Signals) -> None:
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def stop(self, *, immediate: bool = False) -> None:
        """Ends it politely, then firmly; `immediate` leaves politeness out."""
        steps = [
            (signal.SIGINT, STOP_TIMEOUT),
            (signal.SIGQUIT, QUIT_TIMEOUT),
            (signal.SIGKILL, QUIT_TIMEOUT),
        ]
        for number, patience in steps[1 if immediate else 0 :]:
            self.signal(number)
            if self.wait(patience):
                break
            _log.warning("PostgreSQL (process %d) has not answered %s", self.pid, number.name)
