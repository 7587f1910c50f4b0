"""What the server is told: its settings, its port, the folder of its socket."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from dhara.embedded.binaries import Binaries
from dhara.embedded.home import Home

SOCKET_PATH_LIMIT: Final = 107

SETTINGS: Final[Mapping[str, str]] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "max_wal_size": "1GB",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_line_prefix": "%m [%p] ",
    "log_checkpoints": "off",
    "cluster_name": "dhara",
}


def socket_dir(home: Home) -> Path | None:
    """The folder of the Unix socket; None if its path is too long for a client to name."""
    return home.run if len(os.fsencode(home.run / ".s.PGSQL.65535")) <= SOCKET_PATH_LIMIT else None


def server_command(home: Home, binaries: Binaries, settings: Mapping[str, str], port: int) -> list[str]:
    # A path longer than a socket's may be is said relatively: the server works in its data directory.
    sockets = str(socket_dir(home) or "../run")
    settings = {**settings, "port": str(port), "unix_socket_directories": f'"{sockets}"'}
    command = [binaries.program("postgres"), "-D", str(home.cluster)]
    return command + [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
