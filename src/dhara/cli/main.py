"""`dhara`: the one table of commands, each loaded when it is called, and the way from exceptions to exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from dhara import __version__
from dhara.cli.console import Console
from dhara.cli.exits import run

# name -> (where it is, what it does). The documentation is made from this table.
COMMANDS: dict[str, tuple[str, str]] = {
    "dev": ("dhara.cli.dev:dev", "Everything at once on this machine: embedded PostgreSQL, server, worker."),
    "server": ("dhara.cli.serve:server", "Serve the HTTP API, with worker processes beside it."),
    "worker": ("dhara.cli.serve:worker", "Run the handlers of a module."),
    "migrate": ("dhara.cli.migrate:migrate", "Bring the database's schema up to date, or look at it."),
    "enqueue": ("dhara.cli.tasks:enqueue", "Enqueue one task."),
    "tasks": ("dhara.cli.tasks:tasks", "List, look at, cancel, retry and wait for tasks."),
    "dead": ("dhara.cli.dead:dead", "DEAD tasks: list, group, retry and purge them."),
    "operations": ("dhara.cli.bulk:operations", "Bulk operations: list, look at and stop them."),
    "schedules": ("dhara.cli.schedules:schedules", "List, make, change, pause and run schedules."),
    "queues": ("dhara.cli.queues:queues", "List, look at, pause, resume and limit queues."),
    "keys": ("dhara.cli.keys:keys", "Make, list, rotate and revoke API keys."),
    "workers": ("dhara.cli.workers:workers", "List live and lately lost workers; drain some."),
    "actions": ("dhara.cli.actions:actions", "Who did what: the audit log."),
    "top": ("dhara.cli.top:top", "Watch the fleet, live."),
    "doctor": ("dhara.cli.doctor:doctor", "Check set-up, database and fleet, and say what to do."),
    "audit": ("dhara.cli.audit:audit", "Check the invariants over all tasks and their whole history."),
    "bench": ("dhara.cli.bench:bench", "Measure dhara on this database, in a schema of its own."),
}

_HELP = """A distributed task queue on PostgreSQL.

Try it: `dhara dev --demo`. Settings come from DHARA_... variables and dhara.toml; DHARA_DATABASE_URL names the
database. `dhara COMMAND --help` shows examples.
"""


class Root(click.Group):
    """The group of all commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        found: click.Command = getattr(import_module(module), name)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in COMMANDS.items()])

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> Any:
        """Run, and exit with the code that says how it ended."""
        if os.environ.get("_DHARA_COMPLETE"):  # A shell asks for completions.
            return super().main(args, prog_name or "dhara", **extra)
        given = list(sys.argv[1:] if args is None else args)
        console = Console()

        def work() -> Any:
            # Not by click's own `main`, which has views of its own on broken pipes and Ctrl-C.
            with self.make_context(prog_name or "dhara", list(given), obj=console) as ctx:
                return self.invoke(ctx)

        sys.exit(run(console, given, work))


@click.group(
    "dhara",
    cls=Root,
    help=_HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="dhara")
def cli() -> None:
    pass


def main() -> None:
    """The entry point of the `dhara` script."""
    cli.main()
