"""SQL injection: sqlmap on every parameter of a running server, its paths, queries and bodies, and those of the dashboard.

    pip install sqlmap
    python -m fuzz.injection [--level 3] [--only PATTERN] [--sqlmap sqlmap]

Takes an hour or so. Exit code 1 if sqlmap calls any parameter injectable, or could not finish with one; and if it finds
nothing wrong with a route that is here only to be found.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import re
import subprocess
import sys
import tempfile
import time
from urllib.parse import urlencode

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route as Added

from dhara.api.routes import PROBE, TABLE, Route
from fuzz.server import served

ID = "01890a5d-ac96-774b-bcce-b302099a8057"
# A value that each parameter takes, so that what sqlmap adds is what is wrong with it.
VALUES = {
    "status": "DEAD",
    "type": "echo",
    "queue": "mail",
    "retrying": "true",
    "due": "ready",
    "worker": ID,
    "tag": "x",
    "fingerprint": "x",
    "id": ID,
    "created_after": "2026-01-01T00:00:00Z",
    "created_before": "2036-01-01T00:00:00Z",
    "q": "x",
    "limit": "5",
    "offset": "0",
    "cursor": "x",
    "before": "5",
    "actor": "x",
    "action": "queue.pause",
    "target": "mail",
    "reason": "x",
    "timeout": "0",
    "dry_run": "true",
    "all": "true",
    "muted": "false",
    "minutes": "5",
    "overlap": "5",
    "canary": "1",
    "factor": "2",
    "most": "5",
    "max_failed": "1",
    "watch": "1",
    "name": "mail",
    "key": "abcdefabcdef",
}
TASK = {
    "type": "echo",
    "queue": "mail",
    "payload": {"a": "x"},
    "tags": ["x"],
    "idempotency_key": "x",
    "unique_key": "x",
}
BODIES: dict[str, object] = {
    "/tasks": TASK,
    "/tasks/batch": [TASK],
    "/tasks/{id}/retry": {"queue": "mail", "payload": {"a": "x"}},
    "/queues/{name}": {"limit": 5},
    "/schedules": {"name": "x", "type": "echo", "cron": "0 3 * * *", "timezone": "UTC", "payload": {"a": "x"}},
    "/schedules/{name}": {"cron": "0 3 * * *", "type": "echo"},
    "/keys": {"name": "x", "scopes": ["read"], "queues": ["mail*"]},
}
PAGES = (
    "/tasks?status=DEAD&type=echo&queue=mail&q=x&tag=x&due=ready&page=1",
    "/tasks/" + ID + "*",
    "/dead-letters?type=echo&queue=mail&fingerprint=x",
    "/failures?type=echo&muted=1",
    "/audit?actor=x&action=queue.pause&target=mail&before=5",
    "/schedules/mail*",
    "/operations/" + ID + "*",
)


class Target(Struct, frozen=True):
    """One call for sqlmap; `*` in the URL marks a place to test."""

    method: str
    url: str
    body: str = ""


async def _vulnerable(request: Request) -> JSONResponse:
    """What nothing of dhara does: a value in the text of a query."""
    text = f"SELECT count(*) FROM pg_tables WHERE tablename = '{request.query_params.get('q', '')}'"
    return JSONResponse({"count": await request.app.parts.pool.fetchval(text)})


BAIT = Target("GET", "/api/bait?q=x")


def targets() -> list[Target]:
    """Every parameter that there is: of paths, of queries, of bodies."""
    found = [target for route in TABLE if route.scope != PROBE for target in _of(route)]
    return [*found, *(Target("GET", page) for page in PAGES)]


def _of(route: Route) -> list[Target]:
    if "text/event-stream" in route.answers.values():
        return []
    plain = "/api/v1" + route.path
    for name, value in VALUES.items():
        plain = plain.replace("{" + name + "}", value)
    marked = "/api/v1" + route.path
    for name, value in VALUES.items():
        marked = marked.replace("{" + name + "}", value + "*")
    found = []
    if "*" in marked and route.path != "/docs/{file}":
        found.append(Target(route.method, marked))
    if route.query:
        query = {param.name: VALUES[param.name] for param in route.query}
        # Both at once are refused before either is looked at.
        for without in ("cursor", "offset") if {"cursor", "offset"} <= query.keys() else ("",):
            text = urlencode({name: value for name, value in query.items() if name != without})
            found.append(Target(route.method, f"{plain}?{text}"))
    if route.request is not None and route.path in BODIES:
        found.append(Target(route.method, plain, msgspec.json.encode(BODIES[route.path]).decode()))
    return found


def attack(target: Target, base: str, sqlmap: str, level: int) -> tuple[bool, str]:
    """Whether sqlmap found nothing, and the end of what it said."""
    command = [*sqlmap.split(), "-u", base + target.url, "--method", target.method, "--batch", "--flush-session"]
    command += [
        "--level",
        str(level),
        "--dbms",
        "PostgreSQL",
        "--technique",
        "BEUST",
        "--threads",
        "2",
        "--ignore-code",
        "*",
    ]
    command += ["--disable-coloring", "--timeout", "20", "--skip", "user-agent,referer,host"]
    if target.body:
        command += ["--data", target.body, "--headers", "Content-Type: application/json"]
    with tempfile.TemporaryDirectory(prefix="dhara-sqlmap-") as folder:
        done = subprocess.run(
            [*command, "--output-dir", folder], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
    said = done.stdout.strip().splitlines()
    clean = "do not appear to be injectable" in done.stdout and "identified the following injection" not in done.stdout
    return clean, "\n".join(said[-12:])


async def main(level: int, only: str, sqlmap: str) -> int:
    logging.disable(logging.CRITICAL)  # sqlmap makes plenty of noise
    started, bad = time.monotonic(), []
    async with served(pages=True, routes=[Added("/api/bait", _vulnerable)]) as (port, pool, _):
        if (await asyncio.to_thread(attack, BAIT, f"http://127.0.0.1:{port}", sqlmap, 1))[0]:
            print("sqlmap does not find what is to be found; its silence on the rest would mean nothing")
            return 1
        wanted = [target for target in targets() if re.search(only, target.url)]
        for n, target in enumerate(wanted, 1):
            begun = time.monotonic()
            clean, said = await asyncio.to_thread(attack, target, f"http://127.0.0.1:{port}", sqlmap, level)
            state = "clean" if clean else "LOOK"
            print(
                f"{n}/{len(wanted)} {state} {time.monotonic() - begun:.0f} s {target.method} {target.url}", flush=True
            )
            if not clean:
                bad.append(target)
                print(said, flush=True)
        made = await pool.fetchval(f'SELECT count(*) FROM "{pool.settings.schema}".tasks')
    print(
        f"{len(wanted)} targets in {time.monotonic() - started:.0f} s, to look at: {len(bad)}; {made:,} tasks were made"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--level", type=int, default=3)
    parser.add_argument("--only", default="", metavar="PATTERN", help="only targets whose URL has it")
    parser.add_argument("--sqlmap", default="sqlmap", help="the command")
    arguments = parser.parse_args()
    sys.exit(asyncio.run(main(arguments.level, arguments.only, arguments.sqlmap)))
