"""Worker processes beside a server: a child `dhara worker`, started again when it dies (not when somebody has drained
it), drained when the server stops.

The child leads its own session, so that a terminal's Ctrl-C reaches it once, through here. Should the server die
itself, the kernel tells the child (`--parent`), which drains and ends. Secrets travel in the environment, never on the
command line.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from dhara.service import Service
from dhara.settings import Settings

log = logging.getLogger(__name__)

# Trying again would not help: schema, configuration.
FATAL = (3, 78)
_FIRST_PAUSE, _LONGEST_PAUSE, _HEALTHY = 0.5, 10.0, 30.0
# What a worker needs beyond its grace: to release what still runs, to sign off.
_SLACK = 15.0


class Crew(Service):
    """Keeps one `dhara worker` child running. `fatal` resolves to its exit code if it can never run."""

    def __init__(self, arguments: Sequence[str], environ: Mapping[str, str], settings: Settings) -> None:
        super().__init__()
        self._arguments = list(arguments)
        self._environ = dict(environ)
        self._patience = settings.shutdown_timeout + _SLACK
        self._child: asyncio.subprocess.Process | None = None
        self.fatal: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            started = time.monotonic()
            self._child = await self._spawn()
            code = await self._child.wait()
            if code == 0:
                log.warning("the worker beside this server was told to drain, and has; restart the server for another")
                return
            if code in FATAL:
                if not self.fatal.done():
                    self.fatal.set_result(code)
                return
            if time.monotonic() - started > _HEALTHY:
                pause = _FIRST_PAUSE
            log.error("the worker beside this server ended with code %d; starting it again in %g s", code, pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def stop(self) -> None:
        """Drain the worker, wait until it has ended; kill it if it does not."""
        await super().stop()
        child, self._child = self._child, None
        if child is None or child.returncode is not None:
            return
        self._signal(child, signal.SIGTERM)
        try:
            await asyncio.wait_for(child.wait(), self._patience)
        except TimeoutError:
            log.error("the worker beside this server did not end in time; killing it")
            self._signal(child, signal.SIGKILL)
            await child.wait()
        except asyncio.CancelledError:
            self._signal(child, signal.SIGTERM)  # The second one: release now.
            with suppress(TimeoutError):
                await asyncio.wait_for(child.wait(), _SLACK)
            raise

    async def _spawn(self) -> asyncio.subprocess.Process:
        command = [sys.executable, "-m", "dhara", "worker", *self._arguments, "--parent", str(os.getpid())]
        path = os.pathsep.join(part for part in sys.path if part)
        return await asyncio.create_subprocess_exec(
            *command,
            env=self._environ | {"PYTHONPATH": path},
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )

    @staticmethod
    def _signal(child: asyncio.subprocess.Process, number: int) -> None:
        with suppress(ProcessLookupError):
            child.send_signal(number)
