"""`dhara dev`: embedded PostgreSQL, server and worker in one process tree; with `--demo`, something to watch."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from dhara.cli.console import Command, Console, complain
from dhara.cli.scratch import scratch
from dhara.cli.serve import url, worker_arguments, worker_options

if TYPE_CHECKING:
    from dhara.app import App
    from dhara.cli.showcase import Verdict
    from dhara.settings import Settings

SLOTS = 5
SETTLE_SECONDS = 60.0


@click.command(
    "dev",
    cls=Command,
    examples="""
    dhara dev --demo
    dhara dev myapp.tasks --port 9000
    DHARA_DATABASE_URL=postgresql://me@127.0.0.1/mine dhara dev
    """,
)
@click.argument("module", metavar="[MODULE[:REGISTRY]]", default="dhara.demo")
@click.option("--demo", is_flag=True, help="Enqueue the demo's tasks and show them until they settle.")
@click.option("--once", is_flag=True, help="With --demo: end then; exits 0 if all are where they should be.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    help="The port (DHARA_PORT, 8080, or a free one if that is taken).",
)
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the embedded PostgreSQL keeps its data (DHARA_DATA_DIR).",
)
@worker_options
@click.pass_obj
def dev(
    console: Console,
    module: str,
    demo: bool,
    once: bool,
    port: int | None,
    data: Path | None,
    queues: tuple[tuple[str, int | None], ...],
    concurrency: int | None,
    processes: int | None,
) -> int:
    """Everything at once on this machine: PostgreSQL (embedded, unless DHARA_DATABASE_URL is set), server, worker.

    With --demo the data is thrown away afterwards, unless --data says where to keep it.
    """
    if once and not demo:
        raise click.UsageError("--once belongs to --demo")
    if demo and module != "dhara.demo":
        raise click.UsageError("--demo shows the tasks of dhara.demo; leave MODULE out")
    settings = _settings(console, port, demo)
    any_port = port is None and "DHARA_PORT" not in os.environ and settings.port == _usual("port")
    slots = concurrency or (SLOTS if settings.worker_count == _usual("worker_count") else None)
    beside = worker_arguments(console, module, queues, slots, processes)
    with _database(console, settings, data, demo) as database:
        guide = Guide(console, database, module)
        return _serve(guide, database.settings, beside, any_port=any_port, demo=demo, once=once)


def _usual(name: str) -> object:
    from dhara.settings import BY_NAME

    return BY_NAME[name].default


def _settings(console: Console, port: int | None, demo: bool) -> Settings:
    from msgspec.structs import replace

    found = console.settings({"port": port}, database=False)
    if "DHARA_LOG_LEVEL" not in os.environ and found.log_level == "info":
        # What the demo shows in its table would be said twice.
        found = replace(found, log_level="error" if demo else "warning")
    if demo and found.shutdown_timeout == _usual("shutdown_timeout"):
        # Nobody waits for what the demo leaves running.
        found = replace(found, shutdown_timeout=1.0)
    return found


class _Database(NamedTuple):
    """The settings with a database that is there; `embedded`: ours, and how to speak of its data."""

    settings: Settings
    embedded: str | None


@contextmanager
def _database(console: Console, settings: Settings, data: Path | None, demo: bool) -> Iterator[_Database]:
    from msgspec.structs import replace

    if settings.database_url:
        yield _Database(settings, None)
        return
    from dhara.embedded import EmbeddedPostgres, default_data_dir, find_binaries

    binaries = find_binaries()
    given = data or (Path(os.environ["DHARA_DATA_DIR"]) if os.environ.get("DHARA_DATA_DIR") else None)
    with ExitStack() as stack:
        if given is None and demo:
            folder = stack.enter_context(scratch()) / "postgres"
        else:
            folder = given or default_data_dir(binaries.major)
        console.say(f"starting {binaries} ...")
        postgres = EmbeddedPostgres(folder, binaries=binaries, spare=given is None)
        stack.callback(postgres.stop)
        url = postgres.start()
        kept = folder == postgres.data_dir and not (given is None and demo)
        where = f"data in {folder}" if kept else "data thrown away afterwards"
        yield _Database(replace(settings, database_url=url), f"PostgreSQL {binaries.version}, embedded, {where}")


def _serve(guide: Guide, settings: Settings, beside: list[str], *, any_port: bool, demo: bool, once: bool) -> int:
    from dhara.app import App, run, until_told
    from dhara.telemetry.log import configure

    configure(settings.log_level, settings.log_format)
    environ = os.environ | {
        "DHARA_DATABASE_URL": settings.database_url,
        "DHARA_LOG_LEVEL": settings.log_level,
        "DHARA_SHUTDOWN_TIMEOUT": str(settings.shutdown_timeout),
    }

    async def main() -> int:
        app = App(
            settings,
            worker=beside,
            environ=environ,
            any_port=any_port,
            on_started=lambda host, port: guide.greet(url(host, port), demo),
        )
        return await until_told(lambda: _live(guide, app, demo=demo, once=once), app.stop)

    code = run(main)
    guide.console.say("stopped")
    return code


async def _live(guide: Guide, app: App, *, demo: bool, once: bool) -> int:
    """Serve; meanwhile show the demo, and end with it if it is to run once."""
    serving = asyncio.create_task(app.run(), name="app")
    if not demo:
        return await serving
    showing = asyncio.create_task(_demonstrate(guide, app, once), name="demo")
    await asyncio.wait({serving, showing}, return_when=asyncio.FIRST_COMPLETED)
    if not showing.done():  # Told to stop, or could not start.
        showing.cancel()
        return await serving
    failed = showing.exception() is not None or showing.result().problem is not None
    if once or failed:
        app.stop()
        code = await serving
        showing.result()
        return code or int(failed)
    guide.next_steps(showing.result())
    return await serving


async def _demonstrate(guide: Guide, app: App, once: bool) -> Verdict:
    from datetime import UTC, datetime

    from dhara.cli.database import client
    from dhara.cli.showcase import leftovers, show

    await app.started.wait()
    async with client(app.settings, patience=10) as opened:
        verdict = await show(opened, guide.console, SETTLE_SECONDS)
        if not once:
            await opened.enqueue_many(leftovers(datetime.now(UTC)))
    guide.judge(verdict)
    return verdict


class Guide:
    """What people are told: what runs, how the demo went, what to try next."""

    def __init__(self, console: Console, database: _Database, module: str) -> None:
        self.console = console
        self._database = database
        self._module = module
        self._address = ""

    def greet(self, address: str, demo: bool) -> None:
        """Everything has started."""
        from dhara import __version__
        from dhara.cli.tables import pairs
        from dhara.telemetry.redact import redact

        self._address = address
        if self.console.json:
            return
        self.console.print("\n" + self._styled(f"dhara {__version__}", bold=True))
        lines = [
            ("dashboard", f"{address}/"),
            ("server", f"{address}  (API: {address}/docs, health: {address}/readyz)"),
            ("worker", f"handlers of {self._module}"),
            ("database", self._database.embedded or redact(self._database.settings.database_url)),
        ]
        self.console.print(pairs(lines, fancy=self.console.fancy) + "\n")
        if (wanted := self._database.settings.port) and not address.endswith(f":{wanted}"):
            self.console.say(f"port {wanted} is taken; this is a free one")
        if not demo:
            self._say_usual()
            self.console.print("Ctrl-C stops everything.")

    def judge(self, verdict: Verdict) -> None:
        """How the demo went."""
        from dhara.api.shapes import task_out
        from dhara.cli.showcase import summary

        if self.console.json:
            tasks = [task_out(task) for task in verdict.tasks]
            self.console.answer({"url": self._address, "problem": verdict.problem, "tasks": tasks})
        elif verdict.problem is None:
            self.console.print("\n" + summary(verdict, self.console.fancy))
        if verdict.problem is not None:
            complain(f"dhara: {verdict.problem}")

    def next_steps(self, verdict: Verdict) -> None:
        """What to try in another terminal."""
        from dhara.demo import always_fail

        if self.console.json:
            return
        dead = next((task for task in verdict.tasks if task.type == always_fail.type), verdict.tasks[0])
        self.console.print(
            "\nNow three cards could not be charged, for a service was down, and a slow task runs."
            f"\nOpen {self._address}/ to see what runs, what failed and why, and mend it: Retry … sends the three back.\n"
        )
        self.console.print("Or try, in another terminal:\n")
        self._say_usual()
        self._hint("what became of always_fail", f"curl -s {self._address}/api/v1/tasks/{dead.id}/logs")
        mended = """-H 'content-type: application/json' -d '{"payload": {"fail": false}}'"""
        self._hint("mend it", f"curl -s -X POST {self._address}/api/v1/tasks/{dead.id}/retry {mended}")
        self.console.print("Still serving; Ctrl-C stops everything.")

    def _say_usual(self) -> None:
        body = (
            '{"type": "slow_task", "payload": {"seconds": 10}}' if self._module == "dhara.demo" else '{"type": "..."}'
        )
        post = f"curl -s {self._address}/api/v1/tasks -H 'content-type: application/json' -d '{body}'"
        self._hint("enqueue a task", post)
        # The embedded server's password is nobody's secret but this machine's; another's is not repeated.
        export = f"DHARA_DATABASE_URL='{self._database.settings.database_url}' " if self._database.embedded else ""
        self._hint("look at all tasks", f"{export}dhara tasks list")

    def _hint(self, about: str, command: str) -> None:
        self.console.print(self._styled(f"  # {about}", dim=True))
        self.console.print(f"  {command}\n")

    def _styled(self, text: str, **style: bool) -> str:
        return click.style(text, **style) if self.console.fancy else text
