"""What every command shares: `--json`, `--debug`, `--config`, the settings, and printing for people or programs."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from dhara.settings import Settings


class Console:
    """How this call wants its answers."""

    def __init__(self) -> None:
        self.json = False
        self.debug = False
        self.config: Path | None = None

    @property
    def fancy(self) -> bool:
        """Whether a person looks at standard output on a terminal."""
        return not self.json and is_terminal(sys.stdout)

    def settings(self, arguments: Mapping[str, Any] | None = None, *, database: bool = True) -> Settings:
        """The settings of this call; `database`: refuse to go on without DHARA_DATABASE_URL. Raises `ConfigError`."""
        from dhara.errors import ConfigError
        from dhara.settings import load
        from dhara.store.pool import check_dsn

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = load(arguments, file=self.config)
        for warning in caught:
            complain(f"warning: {warning.message}")
        if found.database_url:
            check_dsn(found.database_url)
        elif database:
            raise ConfigError(
                "no database: set DHARA_DATABASE_URL, as in postgresql://user@host:5432/database"
                " (or run `dhara dev`, which brings its own)"
            )
        return found

    def print(self, text: str = "") -> None:
        """A line for people."""
        click.echo(text, color=self.fancy)

    def say(self, text: str) -> None:
        """A line for people beside the answer: on standard error, unless a program listens."""
        if not self.json:
            complain(text)

    def answer(self, value: Any) -> None:
        """The one JSON document of a `--json` call."""
        import msgspec

        text = msgspec.json.format(msgspec.json.encode(value), indent=2 if is_terminal(sys.stdout) else 0)
        click.echo(text.decode())


def is_terminal(stream: IO[Any] | None) -> bool:
    """Whether `stream` is a terminal that may be coloured."""
    return stream is not None and stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def complain(line: str) -> None:
    """One line on standard error, whatever state that is in."""
    try:
        click.echo(line, err=True)
    except (OSError, ValueError):
        pass


def _set(name: str) -> Any:
    def callback(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if value:
            setattr(ctx.ensure_object(Console), name, value)

    return callback


def _shared_options() -> list[click.Parameter]:
    return [
        click.Option(
            ["--json"],
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_set("json"),
            help="Answer in JSON.",
        ),
        click.Option(
            ["--config"],
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            expose_value=False,
            callback=_set("config"),
            help="Read settings from this file instead of dhara.toml.",
        ),
        click.Option(
            ["--debug"],
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_set("debug"),
            help="Show tracebacks.",
        ),
    ]


class Command(click.Command):
    """A command with the shared options, and examples at the end of its help."""

    def __init__(self, *args: Any, examples: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples
        self.params += _shared_options()

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples.strip().splitlines():
                    formatter.write(" " * formatter.current_indent + line.strip() + "\n")


class Group(click.Group):
    """A group whose commands are `Command`s; it takes their shared options itself, too."""

    command_class = Command

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _shared_options()
