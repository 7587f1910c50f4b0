"""The server: `EmbeddedPostgres`, from a folder to a DSN and back to nothing.

A start claims the folder, prepares the data, launches the child and waits. Ready is what `postmaster.pid` says in its
last line, under our child's number. A port that somebody took between our choice and the server's bind costs another
try.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

from dhara.embedded.binaries import Binaries, find_binaries
from dhara.embedded.child import Child
from dhara.embedded.cluster import DATABASE, ROLE, Preparation
from dhara.embedded.command import SETTINGS, server_command, socket_dir
from dhara.embedded.copies import readable_binaries
from dhara.embedded.home import Home, claim, remove_dead_spares, remove_folder, settle
from dhara.embedded.lock import EmbeddedPostgresInUse
from dhara.embedded.log import ServerLog
from dhara.errors import EmbeddedPostgresError

START_TIMEOUT: Final = 60.0
PORT_TRIES: Final = 5

_log = logging.getLogger(__name__)


class EmbeddedPostgres:
    """One private server on `data_dir`. Starts nothing until `start`; `stop` may come any time, and twice.

    With `spare`, a folder that another live process uses is no error: this server gets a temporary one beside
    it, gone after `stop`. `binaries` default to what `find_binaries` finds, `port` to a free one.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        binaries: Binaries | None = None,
        settings: Mapping[str, str] | None = None,
        port: int | None = None,
        spare: bool = False,
    ) -> None:
        folder = Path(data_dir).absolute()
        self._home = Home(folder, folder)
        self._binaries = binaries
        self._settings = {**SETTINGS, **(settings or {})}
        self._fixed_port = port
        self._port = port or 0
        self._spare = spare
        self._temporary = False
        self._password = ""
        self._child: Child | None = None
        self._guard = threading.RLock()
        self._maker = os.getpid()

    # what callers may ask

    @property
    def data_dir(self) -> Path:
        """The folder asked for; a temporary one beside it once `spare` had to take effect."""
        return self._home.data_dir

    @property
    def home(self) -> Path:
        """The folder that holds the server; another than `data_dir` only if its account cannot reach that."""
        return self._home.path

    @property
    def binaries(self) -> Binaries:
        """Found on first use; `str()` of them says which and from where."""
        if self._binaries is None:
            self._binaries = find_binaries()
        return self._binaries

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.running

    @property
    def pid(self) -> int:
        """The number of the server's first process."""
        return self._live().pid

    @property
    def port(self) -> int:
        self._live()
        return self._port

    @property
    def dsn(self) -> str:
        """The address; the role is a superuser of this server, under an unprivileged user of the machine."""
        return f"postgresql://{ROLE}:{self._password}@127.0.0.1:{self.port}/{DATABASE}"

    @property
    def socket_dir(self) -> Path | None:
        """The folder of the Unix socket, for `psql -h`; None if its path is too long for a client to name."""
        return socket_dir(self._home)

    @property
    def log_path(self) -> Path:
        return self._home.log

    def _live(self) -> Child:
        if self._child is None or not self._child.running:
            raise EmbeddedPostgresError(f"the PostgreSQL on {self.data_dir} is not running: call start() first")
        return self._child

    # what callers may do

    def start(self) -> str:
        """Makes folder and data if there are none, starts the server, answers its DSN once it is ready."""
        with self._guard:
            if not self.running:
                try:
                    self._start()
                except OSError as error:
                    raise EmbeddedPostgresError(
                        f"cannot start PostgreSQL in {self.data_dir}: {error}; mend that, or choose another folder"
                    ) from error
            return self.dsn

    def stop(self) -> None:
        """Ends the server: politely, then firmly. Removes a temporary folder."""
        if os.getpid() != self._maker:
            return  # a fork has inherited the object, not the server
        with self._guard:
            self._stop()
            if self._temporary:
                remove_folder(self.data_dir, self.home)
            atexit.unregister(self.stop)

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> str:
        """The same server again, on the same port; `immediate` is a crash, with recovery at the start."""
        with self._guard:
            port = self._port
            self._stop(immediate=mode == "immediate")
            fixed, self._fixed_port = self._fixed_port, port
            try:
                return self.start()
            finally:
                self._fixed_port = fixed

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # the steps of a start

    def _start(self) -> None:
        self._stop()
        lock = self._claim()
        try:
            self._binaries = readable_binaries(self.binaries, self._home.account)
            self._password = Preparation(self._home, self.binaries, lock).run()
            self._launch(lock)
        except BaseException:
            self._stop()
            raise
        finally:
            os.close(lock)
        atexit.register(self.stop)

    def _claim(self) -> int:
        """Our lock on the folder, or on a temporary one beside it."""
        try:
            return self._claim_home()
        except EmbeddedPostgresInUse:
            if not self._spare or self._temporary:
                raise
        taken = self.data_dir
        remove_dead_spares(taken)
        folder = taken.with_name(f"{taken.name}.spare-{secrets.token_hex(4)}")
        self._home = Home(folder, folder)
        self._temporary = True
        _log.info("another process uses %s: this one takes %s for the time being", taken, folder)
        return self._claim_home()

    def _claim_home(self) -> int:
        self._home = settle(self.data_dir)
        return claim(self._home)

    def _launch(self, lock: int) -> None:
        """The server itself; tries another port if somebody was faster."""
        log = ServerLog(self._home)
        for last in [False] * (PORT_TRIES - 1) + [True]:
            self._port = self._fixed_port or free_port()
            command = server_command(self._home, self.binaries, self._settings, self._port)
            with log.open() as output:
                offset = output.seek(0, os.SEEK_END)
                child = self._child = Child(command, output, lock, self._home.account)
            if self._await_ready(child):
                _log.info("%s serves 127.0.0.1:%d, process %d", self.binaries, self._port, child.pid)
                return
            if self._fixed_port or last or "Address already in use" not in log.tail(offset):
                raise log.failure("PostgreSQL does not start", offset)

    def _await_ready(self, child: Child) -> bool:
        """True once the server takes connections, False if it ended instead or takes too long."""
        deadline = time.monotonic() + START_TIMEOUT
        while not child.wait(0.01) and time.monotonic() < deadline:
            if self._says_ready(child.pid):
                return True
        return False

    def _says_ready(self, pid: int) -> bool:
        try:
            lines = (self._home.cluster / "postmaster.pid").read_text().split("\n")
        except OSError:
            return False
        return lines[0] == str(pid) and len(lines) > 7 and lines[7].strip() == "ready"

    def _stop(self, *, immediate: bool = False) -> None:
        if self._child is not None:
            self._child.stop(immediate=immediate)
            self._child = None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
