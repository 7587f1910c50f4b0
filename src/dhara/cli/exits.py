"""From exceptions to exit codes: one table, one line on standard error, no password in it.

0    done
1    the answer is no: no such task, wrong state, the task failed
2    usage, or a value that is out of bounds
3    the database's schema is missing, older, newer or damaged
69   the database or the server does not answer
70   an error inside dhara
75   not in time
78   a setting, a module or a handler is wrong
130  interrupted
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import click

from dhara import errors
from dhara.cli.console import Console, complain

CODES: tuple[tuple[type[BaseException], int], ...] = (
    (errors.ConfigError, 78),
    (errors.RegistryError, 78),
    (errors.SchemaError, 3),
    (errors.Unavailable, 69),
    (errors.EmbeddedPostgresError, 69),
    (errors.InvalidTask, 2),
    (errors.DharaError, 1),
    (TimeoutError, 75),
    (click.UsageError, 2),
    (click.ClickException, 1),
    (KeyboardInterrupt, 130),
    (click.Abort, 130),
)


def run(console: Console, arguments: Sequence[str], work: Callable[[], Any]) -> int:
    """Do `work`; answers the exit code, having said what there is to say."""
    try:
        code = work()
        _flush()
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        _silence()
        return 0
    except click.exceptions.Exit as found:
        return found.exit_code
    except click.exceptions.NoArgsIsHelpError as found:
        complain(found.format_message())
        return 2
    except (KeyboardInterrupt, click.Abort):
        return 130
    except Exception as error:
        return _report(console, arguments, error)


def _report(console: Console, arguments: Sequence[str], error: Exception) -> int:
    error, code = _judged(error)
    line = _line(error, code)
    if console.debug or "--debug" in arguments:
        complain("".join(traceback.format_exception(error)).rstrip())
    complain(f"dhara: {line}")
    if console.json or "--json" in arguments:
        with suppress(OSError):
            console.answer({"error": {"code": _name(error, code), "message": line}})
            _flush()
    return code


def _name(error: Exception, code: int) -> str:
    found = getattr(error, "code", None)
    if isinstance(found, str):
        return found
    return {2: "usage", 75: "timeout"}.get(code, "internal")


def _judged(error: Exception) -> tuple[Exception, int]:
    """The error as ours where the database raised it, and its exit code."""
    for kind, code in CODES:
        if isinstance(error, kind):
            return error, code
    if getattr(error, "code", None) == errors.EmbeddedPostgresError.code:
        return error, 69
    if not isinstance(error, click.ClickException):
        from dhara.client.backend import translation

        if (ours := translation(error)) is not None:
            ours.__cause__ = error
            return _judged(ours)
    return error, 70


def _line(error: Exception, code: int) -> str:
    from dhara.telemetry.redact import redact

    text = error.format_message() if isinstance(error, click.ClickException) else str(error)
    if isinstance(error, click.UsageError) and error.ctx is not None:
        text = f"{text.rstrip('.')}; see `{error.ctx.command_path} --help`"
    text = redact(" ".join(text.split())) or type(error).__name__
    if code == 70:
        return f"internal error: {type(error).__name__}: {text} (--debug shows where)"
    return text


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _silence() -> None:
    """Let whatever is still buffered go nowhere: the reader has gone."""
    with suppress(Exception):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
