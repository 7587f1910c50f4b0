"""Which files a server and its workers write: none (trust S34). Watched by strace, from their start to their end.

    python -m fuzz.files          (Linux, with strace, and DHARA_DATABASE_URL)

Starts `dhara server` with a worker in an empty folder, has a task done, stops it, and goes through the trace: whatever is opened
to write, made, renamed, or given rights is a finding, but /dev/null, memory without a name, and Python's bytecode. Also
which addresses are bound.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from dhara.store.pool import DatabaseSettings, Pool

CALLS = "openat,open,creat,mkdir,mkdirat,mknod,bind,chmod,fchmod,fchmodat,rename,renameat,renameat2,unlink,link,symlink"
HANDLERS = (
    'from dhara import Registry\ntasks = Registry()\n@tasks.task("echo")\nasync def echo() -> str:\n    return "x"\n'
)
_WRITES = re.compile(r"O_CREAT|O_WRONLY|O_RDWR|^(creat|mk|f?chmod|rename|unlink|link|symlink)")
_FINE = re.compile(r'"/dev/(null|tty|shm/)|__pycache__|bytecode|\.pyc|= -1 E')


def trace(folder: Path) -> str:
    """What a server, from start to end, has asked of the system."""
    (folder / "handlers.py").write_text(HANDLERS)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    schema = f"dhara_files_{secrets.token_hex(4)}"
    environ = os.environ | {"DHARA_PORT": str(port), "DHARA_SCHEMA": schema}
    environ |= {"PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
    log = folder / "trace"
    command = ["strace", "-f", "-qq", "-e", f"trace={CALLS}", "-o", str(log), sys.executable, "-m", "dhara"]
    process = subprocess.Popen([*command, "server", "handlers", "--concurrency", "2"], cwd=folder, env=environ)
    try:
        url = f"http://127.0.0.1:{port}/api/v1/tasks"
        id = _answer(url, b'{"type":"echo"}').split('"')[3]
        while '"COMPLETED"' not in _answer(f"{url}/{id}"):
            time.sleep(0.2)
    finally:
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGTERM)
        process.wait(60)
        asyncio.run(_drop(schema))
    return log.read_text()


async def _drop(schema: str) -> None:
    async with Pool(DatabaseSettings(dsn=os.environ["DHARA_DATABASE_URL"])) as pool:
        await pool.execute(f'DROP SCHEMA IF EXISTS "{schema}" CASCADE')


def _answer(url: str, body: bytes | None = None) -> str:
    """What the server says, once it does."""
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    until = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(request) as answer:
                return str(answer.read().decode())
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="dhara-files-") as folder:
        calls = [re.sub(r"^\d+ +", "", line) for line in trace(Path(folder)).splitlines()]
    written = [call for call in calls if _WRITES.search(call) and not _FINE.search(call)]
    bound = [call for call in calls if call.startswith("bind(") and "NETLINK" not in call]
    elsewhere = [call for call in bound if '"127.0.0.1"' not in call]
    print(f"{len(calls):,} calls; written: {len(written)}; bound: {len(bound)}, not to 127.0.0.1: {len(elsewhere)}")
    for call in (*written, *elsewhere):
        print(f"  {call[:200]}")
    return 1 if written or elsewhere or not bound else 0


if __name__ == "__main__":
    sys.exit(main())
