"""A private PostgreSQL: finds binaries, starts a server of its own, stops it; for development and tests.

A folder (`data_dir`) belongs to one server at a time and holds all there is to it:

    lock            held (flock) by the server's own processes for as long as one of them lives
    password        of the role `dhara`, 0600
    cluster/        PostgreSQL's data directory, 0700, owned by the account the server runs under
    run/            its socket, 0700
    postgres.log

The modules, in the order of a start:

    binaries    finds `postgres` and `initdb`
    account     whom root drops to, how a child becomes it, what it may read
    folders     what is made, and what is left alone
    home        the folder that really holds the server, claimed by its lock
    lock        who holds that folder; what a dead server left behind
    copies      binaries within the account's reach
    cluster     the data: made, or checked
    command     what the server is told: settings, port, socket
    child       the server's process, and the thread it is tied to
    log         its output, and what that says of a failure
    server      `EmbeddedPostgres`, which does all that

Permissions of folders that were there before are never changed. Nothing here is asynchronous; event loops call it
through `asyncio.to_thread`.
"""

from __future__ import annotations

from dhara.embedded.binaries import DEBIAN_FOLDERS, Binaries, find_binaries
from dhara.embedded.folders import default_data_dir
from dhara.embedded.lock import EmbeddedPostgresInUse
from dhara.embedded.server import EmbeddedPostgres
from dhara.errors import EmbeddedPostgresError

__all__ = [
    "DEBIAN_FOLDERS",
    "Binaries",
    "EmbeddedPostgres",
    "EmbeddedPostgresError",
    "EmbeddedPostgresInUse",
    "default_data_dir",
    "find_binaries",
]
