"""The server's log: where its output goes, and what it says when a step fails."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import IO, Final

from dhara.embedded.home import Home
from dhara.errors import EmbeddedPostgresError

LOG_LIMIT: Final = 16 * 2**20
LINES_SHOWN: Final = 8


@dataclass(frozen=True, slots=True)
class ServerLog:
    """postgres.log of a home."""

    home: Home

    def rotate(self) -> None:
        """Makes room once it holds more than LOG_LIMIT bytes; one old log is kept."""
        path = self.home.log
        if path.exists() and path.stat().st_size > LOG_LIMIT:
            path.replace(path.with_suffix(".log.1"))

    def open(self) -> IO[bytes]:
        """For appending; closed to others, and never through a link that somebody laid."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.fdopen(os.open(self.home.log, flags, 0o600), "ab")

    def tail(self, offset: int) -> str:
        """What was written since byte `offset`."""
        with self.home.log.open("rb") as log:
            log.seek(offset)
            return log.read().decode(errors="replace")

    def failure(self, what: str, offset: int) -> EmbeddedPostgresError:
        """`what`, with the last lines since byte `offset`."""
        lines = self.tail(offset).strip().splitlines()[-LINES_SHOWN:]
        said = "".join(f"\n  {line}" for line in lines)
        where = f"{what} in {self.home.data_dir}"
        return EmbeddedPostgresError(f"{where}; its log, {self.home.log}, says:{said or ' nothing'}")
