"""The data: made if there are none, checked if there are, with a password and nothing left of an earlier server.

All happens under the lock of the home. New data are made beside their final place, so `cluster` is complete or not
there; every step that runs holds the lock's descriptor too, and dies with us.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dhara.embedded.account import environment, shimmed
from dhara.embedded.binaries import BINARIES_VARIABLE, Binaries
from dhara.embedded.folders import private_folder, write_private
from dhara.embedded.home import Home
from dhara.embedded.lock import remove_stale_locks
from dhara.embedded.log import ServerLog
from dhara.errors import EmbeddedPostgresError

ROLE: Final = "dhara"
DATABASE: Final = "dhara"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Preparation:
    """The steps before a server can start on `home`, whose lock is the descriptor `lock`."""

    home: Home
    binaries: Binaries
    lock: int

    def run(self) -> str:
        """Leaves data of the right version, answers the password of the role `dhara`."""
        self._log.rotate()
        if self.home.cluster.exists():
            self._check_version()
            remove_stale_locks(self.home.cluster, self.home.run)
        private_folder(self.home.run, self.home.account)
        if not self.home.cluster.exists():
            self._initialise()
        return self._read_password()

    @property
    def _log(self) -> ServerLog:
        return ServerLog(self.home)

    def _check_version(self) -> None:
        found = (self.home.cluster / "PG_VERSION").read_text().strip()
        if found != str(self.binaries.major):
            raise EmbeddedPostgresError(
                f"{self.home.data_dir} holds data of PostgreSQL {found}, and these binaries are {self.binaries}: "
                f"set {BINARIES_VARIABLE} to the binaries of {found}, choose another folder, "
                f"move the data with pg_upgrade, or, if it may go, remove {self.home.data_dir}"
            )

    def _initialise(self) -> None:
        """initdb and the database, beside the final place: `cluster` is complete or not there."""
        _log.info("making a new database in %s", self.home.path)
        draft, password = self.home.path / "cluster.new", secrets.token_urlsafe(24)
        private_folder(draft, self.home.account)
        secret = self.home.run / "password"
        write_private(secret, password, self.home.account)
        try:
            self._step(self._initdb(draft, secret))
        finally:
            secret.unlink(missing_ok=True)
        self._single_user(draft, f"CREATE DATABASE {DATABASE}")
        self.home.password.unlink(missing_ok=True)
        write_private(self.home.password, password)
        draft.rename(self.home.cluster)

    def _initdb(self, draft: Path, secret: Path) -> list[str]:
        command = [self.binaries.program("initdb"), "-D", str(draft), "-U", ROLE, f"--pwfile={secret}"]
        command += ["--auth=scram-sha-256", "--encoding=UTF8", "--data-checksums", "--no-instructions"]
        command += ["--locale=C"]
        if self.binaries.major >= 17:
            command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        return command

    def _read_password(self) -> str:
        """The stored one; a new one if the file is gone."""
        if not self.home.password.exists():
            password = secrets.token_urlsafe(24)
            self._single_user(self.home.cluster, f"ALTER ROLE {ROLE} PASSWORD '{password}'")
            write_private(self.home.password, password)
        return self.home.password.read_text()

    def _single_user(self, cluster: Path, statement: str) -> None:
        command = [self.binaries.program("postgres"), "--single", "-D", str(cluster), "-c", "exit_on_error=on"]
        self._step([*command, "postgres"], statement + "\n")

    def _step(self, command: list[str], stdin: str = "") -> None:
        """A program that ends by itself, as the server's account, with its output in the log."""
        with self._log.open() as log:
            offset = log.seek(0, os.SEEK_END)
            done = subprocess.run(
                shimmed(command, self.home.account, signal.SIGKILL),
                check=False,
                input=stdin.encode(),
                stdout=log,
                stderr=log,
                env=environment(),
                cwd="/",
                pass_fds=(self.lock,),
                start_new_session=True,
            )
            if done.returncode:
                raise self._log.failure(f"{Path(command[0]).name} failed (exit {done.returncode})", offset)
