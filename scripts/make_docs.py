"""Writes the reference pages from the tables in the code, and the generated blocks of other pages.

    python scripts/make_docs.py

The schema page is read from a real database: DHARA_DATABASE_URL, or an embedded PostgreSQL; a scratch schema is made
there and dropped. A test writes all pages again and compares: what the docs say is what the code does.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import asyncpg
import click
from msgspec import Struct

from dhara import errors, settings
from dhara.api import openapi
from dhara.api.problems import PROBLEMS
from dhara.api.routes import ALWAYS, TABLE, Route
from dhara.cli import exits
from dhara.cli.console import Command
from dhara.cli.main import COMMANDS, cli
from dhara.domain.access import SCOPES
from dhara.domain.lifecycle import FINAL, NOTES, TRANSITIONS, Event, State
from dhara.store import migrate
from dhara.telemetry import metrics

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for bench
speed = import_module("bench.report")
SCRATCH = "dhara_docs_scratch"
NOTICE = "<!-- Made by scripts/make_docs.py from {source}; change that, then run the script. -->\n"

# What each event means, and what guards it. An event without a line here stops the script.
ABOUT: dict[Event, tuple[str, str]] = {
    Event.ENQUEUED: ("A client enqueued the task. Its own row stands for this entry.", "–"),
    Event.CLAIMED: (
        "A worker took the task; a new lease, attempts + 1.",
        "it is due, not expired, its type is known to the worker, its queue is not paused",
    ),
    Event.COMPLETED: ("The handler returned; the result is stored.", "lease"),
    Event.RETRIED: (
        "The attempt failed; the next one follows after the backoff.",
        "lease, failures left, no cancel request",
    ),
    Event.SNOOZED: (
        "The handler asked to run again later; no failure.",
        "lease, at most 1,000 a generation, no cancel request",
    ),
    Event.RELEASED: (
        "The attempt was given back unfinished: drain, or a claim its worker never learnt of; no failure.",
        "lease, no cancel request",
    ),
    Event.REAPED: (
        "The worker was lost or crashed; a failure and a crash are counted.",
        "two witnesses, or the keeper saw the crash; budget left; no cancel request",
    ),
    Event.DEAD: (
        "No attempt will follow: exhausted, permanent, poison, or a reason of the handler.",
        "lease, or two witnesses",
    ),
    Event.CANCELED: (
        "Canceled: at once while PENDING; when its attempt ends while RUNNING.",
        "RUNNING: lease, or two witnesses",
    ),
    Event.EXPIRED: ("`expires_at` passed before it started.", "`expires_at` in the past"),
    Event.REVIVED: ("An operator sent it back (`/retry`): generation + 1, failures and crashes 0.", "–"),
    Event.PRUNED: (
        "Its retention is over; the row is deleted, the history stays for its own retention.",
        "final, and past retention",
    ),
    Event.CANCEL_REQUESTED: ("Somebody asked to cancel the RUNNING task; its handler is told.", "–"),
    Event.SETTLE_REJECTED: (
        "An attempt whose lease was lost tried to write its outcome; nothing was changed.",
        "–",
    ),
    Event.REPLACED: ("An enqueue with the same unique key gave the PENDING task its own content.", "–"),
    Event.RESCHEDULED: ("An enqueue with the same unique key gave the PENDING task its own time.", "–"),
    Event.PROGRESS: ("Reserved: progress is kept in the task's row, not in the history.", "–"),
}


# --- Markdown -----------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def code(items: Iterable[object], separator: str = ", ") -> str:
    """Each item as code."""
    return separator.join(f"`{item}`" for item in items)


def page(title: str, source: str, *parts: str) -> str:
    """A whole page."""
    return "\n".join(
        [NOTICE.format(source=source), f"# {title}", "", "\n\n".join(part.strip("\n") for part in parts), ""]
    )


def fenced(text: str, language: str = "text") -> str:
    return f"```{language}\n{text.rstrip()}\n```"


# --- states -------------------------------------------------------------------------------------------------


def diagram() -> str:
    """The life of a task as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.PENDING}: {Event.ENQUEUED}"]
    for state, moves in TRANSITIONS.items():
        together: defaultdict[State, list[Event]] = defaultdict(list)
        for event, target in moves.items():
            together[target].append(event)
        lines += [f"    {state} --> {target}: {', '.join(events)}" for target, events in together.items()]
    lines += [f"    {state} --> [*]: {Event.PRUNED}" for state in State if state in FINAL]
    return fenced("\n".join(lines), "mermaid")


def _moves() -> Iterator[tuple[State | None, Event, State | None]]:
    yield None, Event.ENQUEUED, State.PENDING
    for state, moves in TRANSITIONS.items():
        for event, target in moves.items():
            yield state, event, target
    for state in State:
        if state in FINAL:
            yield state, Event.PRUNED, None


def states() -> str:
    moves = [
        (f"`{event}`", f"{source or '–'} → {target or 'gone'}", *ABOUT[event]) for source, event, target in _moves()
    ]
    allowed = {(source, target) for source, targets in TRANSITIONS.items() for target in targets.values()}
    matrix = [
        (
            f"**{source}**",
            *("yes" if (source, target) in allowed else "–" if source is target else "refused" for target in State),
        )
        for source in State
    ]
    return page(
        "States and moves",
        "src/dhara/domain/lifecycle.py",
        "A task is in one of five states. COMPLETED, CANCELED and DEAD are final; only DEAD can be revived. Whatever"
        " this page does not allow, the database refuses, also to whoever writes SQL by hand.",
        diagram(),
        "## Moves\n\nEvery move writes its entry of the history in the same statement. A guard `lease` means: the write"
        " applies only if the row is RUNNING and still bears the lease of that attempt; else it changes nothing.",
        table(("event", "move", "what happened", "guard"), moves),
        "## From state to state",
        table(("from \\ to", *State), matrix),
        "## Notes\n\nThese stand in the history and change no state.",
        table(("event", "what happened"), ((f"`{event}`", ABOUT[event][0]) for event in Event if event in NOTES)),
    )


# --- settings -----------------------------------------------------------------------------------------------


def _span(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"


def _default(setting: settings.Setting) -> str:
    value = setting.default
    if setting.parse is settings.duration:
        return f"`{_span(value)}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if value or value == 0 else "none"


def settings_page() -> str:
    rows = [(f"`{s.variable}`", f"`{s.name}`", _default(s), s.about) for s in settings.TABLE]
    return page(
        "Settings",
        "src/dhara/settings.py",
        "Precedence: arguments of the command line, environment variables, `dhara.toml` in the working directory (or the"
        " file of `--config`), defaults. An unknown name is refused, with the nearest known one. Durations take `250ms`,"
        " `30s`, `5m`, `2h`, `7d` or a plain number of seconds.",
        table(("variable", "in dhara.toml", "default", "what it is"), rows),
        "The heartbeat interval must be less than a third of `stale_after`; `pool_min` must not exceed `pool_max`, nor"
        " `base_backoff` `max_backoff`. Such contradictions are refused at start with exit code 78.",
        "Beside these, `DHARA_DATA_DIR` (where the embedded PostgreSQL keeps its data) and `DHARA_POSTGRES_BIN` (the folder"
        " of its binaries) steer `dhara dev`.",
    )


# --- command line -------------------------------------------------------------------------------------------


def _metavar(parameter: click.Parameter) -> str:
    if isinstance(parameter, click.Option) and parameter.is_flag:
        return ""
    if parameter.metavar:
        return parameter.metavar
    if isinstance(parameter.type, click.Choice):
        return "|".join(str(choice) for choice in parameter.type.choices)
    known = {"integer range": "N", "integer": "N", "text": "TEXT", "uuid": "ID"}
    return known.get(parameter.type.name, parameter.type.name.upper())


def _commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield name, command
        return
    context = click.Context(command, info_name=name)
    for below in command.list_commands(context):
        if (found := command.get_command(context, below)) is not None:
            yield from _commands(found, f"{name} {below}")


_SHARED = {"json", "config", "debug"}


def _command(name: str, command: click.Command) -> str:
    arguments = [p for p in command.params if isinstance(p, click.Argument)]
    options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden and p.name not in _SHARED]
    words = [name, *(["[OPTIONS]"] if options else []), *(_argument(p) for p in arguments)]
    parts = [f"## {name}", inspect.cleandoc(command.help or ""), fenced(" ".join(words))]
    if options:
        rows = [(f"`{' '.join([*p.opts, _metavar(p)]).strip()}`", _help(p)) for p in options]
        parts.append(table(("option", "what it does"), rows))
    if examples := getattr(command, "examples", ""):
        parts.append("Examples:\n\n" + fenced("\n".join(line.strip() for line in examples.strip().splitlines())))
    return "\n\n".join(part.strip() for part in parts)


def _argument(argument: click.Argument) -> str:
    name = argument.metavar or str(argument.name).upper()
    return name if argument.required or name.startswith("[") else f"[{name}]"


def _help(option: click.Option) -> str:
    text = option.help or ""
    if option.show_default and option.default is not None:
        text += f" Default: {option.default}."
    return text + (" Repeatable." if option.multiple and "repeat" not in text.lower() else "")


def _exit_codes() -> list[tuple[str, str]]:
    lines = (exits.__doc__ or "").splitlines()
    found = [re.match(r"\s+(\d+)\s{2,}(.+)", line) for line in lines]
    return [(f"`{match[1]}`", match[2]) for match in found if match]


def cli_page() -> str:
    shared = click.Context(Command("any", callback=lambda: None)).command.params
    return page(
        "Command line",
        "the commands of src/dhara/cli",
        table(("command", "what it does"), ((f"`dhara {name}`", about) for name, (_, about) in COMMANDS.items())),
        "## Options of every command",
        table(
            ("option", "what it does"),
            [(f"`{' '.join([*p.opts, _metavar(p)]).strip()}`", _help(p)) for p in shared if isinstance(p, click.Option)]
            + [("`-h --help`", "Show the help, with examples.")],
        ),
        "With `--json` a command prints one JSON document on standard output, also when it fails: then"
        ' `{"error": {"code": ..., "message": ...}}`.',
        "## Exit codes",
        table(("code", "meaning"), _exit_codes()),
        "## Shell completion",
        "Commands and options complete with Tab after one line in the shell's start file:",
        fenced(
            'eval "$(_DHARA_COMPLETE=bash_source dhara)"     # ~/.bashrc\n'
            'eval "$(_DHARA_COMPLETE=zsh_source dhara)"      # ~/.zshrc\n'
            "_DHARA_COMPLETE=fish_source dhara | source      # ~/.config/fish/completions/dhara.fish",
            "sh",
        ),
        *(_command(name, command) for name, command in _commands(cli, "dhara")),
    )


# --- HTTP ---------------------------------------------------------------------------------------------------


def _shape(shape: Any) -> str:
    if isinstance(shape, str):
        return f"`{shape}`"
    text = re.sub(
        r"[\w.]+\.(?=\w)",
        "",
        shape.__name__ if isinstance(shape, type) and "[" not in str(shape) else str(shape),
    )
    text = re.sub(r"Annotated\[(.+?), Meta\([^)]*\)\]", r"\1", text)
    text = re.sub(r"Union\[(\w+), (.+)\]", r"\1 | \2", text)
    return f"`{text}`" if text != "dict[str, Any]" else "a JSON object"


def _schema_type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return f"`{schema['$ref'].rpartition('/')[2]}`"
    if "anyOf" in schema:
        return " or ".join(_schema_type(option) for option in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type", "any JSON")
    if kind == "array":
        return f"list of {_schema_type(schema.get('items', {}))}"
    names = {"date-time": "time", "uuid": "UUID"}
    name = names.get(schema.get("format", ""), str(kind))
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        name += f" {low:g} to {high:,g}" if high < 1e6 else f" {low:g} to {high:,.0f}"
    if "maxLength" in schema:
        name += f", {schema.get('minLength', 0)} to {schema['maxLength']} characters"
    return name


def _fields(name: str, schema: dict[str, Any]) -> str:
    required = set(schema.get("required", ()))
    rows = [
        (
            f"`{field}`",
            _schema_type(of),
            "yes" if field in required else "",
            of.get("description", ""),
            _field_default(of),
        )
        for field, of in schema.get("properties", {}).items()
    ]
    return f"### {name}\n\n{schema.get('description', '')}\n\n" + table(
        ("field", "type", "always", "about", "default"), rows
    )


def _field_default(schema: dict[str, Any]) -> str:
    return (
        f"`{str(schema['default']).lower() if isinstance(schema['default'], bool) else schema['default']}`"
        if "default" in schema
        else ""
    )


def _route(route: Route) -> str:
    first, *others = route.paths
    parts = [f"### {route.method} {first}", route.summary + "."]
    facts = [f"Scope `{route.scope}`."]
    if others:
        facts.append(f"Also at {code(others)}.")
    if route.request is not None:
        facts.append(f"Body: {_shape(route.request)}{'' if route.request_required else ', optional'}.")
    facts.append("Answers: " + ", ".join(f"{status} {_shape(shape)}" for status, shape in route.answers.items()) + ".")
    if route.errors:
        facts.append(f"Problems: {code(route.errors)}.")
    parts.append(" ".join(facts))
    if route.query:
        rows = [(f"`{p.name}`", _schema_type(p.schema), p.about) for p in route.query]
        parts.append(table(("query", "type", "about"), rows))
    return "\n\n".join(parts)


def http_page() -> str:
    document = openapi.document(TABLE, "")
    shapes = document["components"]["schemas"]
    by_tag: defaultdict[str, list[Route]] = defaultdict(list)
    for route in TABLE:
        by_tag[route.tag].append(route)
    return page(
        "HTTP API",
        "src/dhara/api/routes.py and shapes.py",
        "JSON over HTTP. A running server describes itself at `/openapi.json` (OpenAPI 3.1) and has a page to try it at"
        " `/docs`. Times are RFC 3339 with zone, ids are UUIDs; absent optional values are left out, never null."
        " `X-Request-Id` is taken from the request or made, answered and logged.",
        "Once there is an API key, every route but the probes needs `Authorization: Bearer <key>`. Keys are made by"
        " `dhara keys create` or `POST /api/v1/keys`; those of `DHARA_API_KEYS` may do everything. A key is limited to its"
        " scopes and, if it names queues, to these: tasks of others do not exist for it, and routes that know no queues"
        " refuse it. In a browser another site's requests are refused.",
        table(("scope", "its holder may"), ((f"`{name}`", about) for name, about in SCOPES.items())),
        table(
            ("method", "path", "what it does"),
            ((r.method, f"`{r.paths[0]}`", r.summary) for r in TABLE),
        ),
        "## Problems\n\nEvery refusal is `application/problem+json` (RFC 9457) with a stable `code`; see"
        f" [`Problem`](#problem). Any route may answer {code(ALWAYS)} and, to an unknown query parameter, `invalid_query`.",
        table(
            ("code", "status", "meaning"),
            ((f"`{name}`", status, text) for name, (status, text) in PROBLEMS.items()),
        ),
        *(
            f"## {tag.capitalize()}\n\n" + "\n\n".join(_route(route) for route in routes)
            for tag, routes in by_tag.items()
        ),
        "## Shapes\n\n`always`: required in a request, always there in an answer.",
        *(_fields(name, shapes[name]) for name in sorted(shapes)),
    )


# --- metrics ------------------------------------------------------------------------------------------------


def metrics_page() -> str:
    rows = [(f"`{m.name}`", m.kind, code(m.labels), m.help) for m in metrics.TABLE]
    return page(
        "Metrics",
        "src/dhara/telemetry/metrics.py",
        "`GET /metrics` answers in the Prometheus text format. Unless a line says `of this process`, the figure is the"
        " whole fleet's: it comes from the database, survives restarts, and is the same whichever server is asked. Do not"
        " add up such figures over servers; take one of them (`max`).",
        table(("family", "kind", "labels", "what it is"), rows),
        f"Labels are bounded: at most {metrics.MOST_LABELS} values a family, the rest is added up as `{metrics.OTHER}`.",
        "Buckets of the task histograms, in seconds: " + ", ".join(f"{bound:g}" for bound in metrics.BUCKETS) + ".",
    )


# --- errors -------------------------------------------------------------------------------------------------


def errors_page() -> str:
    tree = (errors.__doc__ or "").partition("\n\n")[2].rpartition("\n\n")[0]
    exit_codes = dict(exits.CODES)
    classes = [
        found
        for found in vars(errors).values()
        if isinstance(found, type) and issubclass(found, errors.DharaError) and found is not errors.DharaError
    ]
    rows = [
        (f"`{c.__name__}`", f"`{c.code}`", _exit_of(c, exit_codes), (c.__doc__ or "").splitlines()[0]) for c in classes
    ]
    return page(
        "Errors",
        "src/dhara/errors.py",
        "Everything that the library raises of its own is a `DharaError` with a stable `code`. Over HTTP the same codes come"
        " as [problems](http-api.md#problems), on the command line as [exit codes](cli.md#exit-codes).",
        fenced("\n".join(line.removeprefix("    ") for line in tree.splitlines())),
        table(("class", "code", "exit code", "meaning"), rows),
    )


def _exit_of(kind: type[BaseException], known: dict[type[BaseException], int]) -> int:
    return next(known[base] for base in kind.__mro__ if base in known)


# --- schema -------------------------------------------------------------------------------------------------


class Relation(Struct, frozen=True):
    """A table or view as the catalogue describes it: columns are (name, type, nullable, default, comment)."""

    name: str
    kind: str
    comment: str
    columns: list[tuple[str, str, bool, str, str]]
    indexes: list[tuple[str, str]]
    triggers: list[str]


class Function(Struct, frozen=True):
    """A function that users may call."""

    name: str
    arguments: str
    answers: str
    comment: str


_RELATIONS = """
SELECT c.oid, c.relname, CASE c.relkind WHEN 'v' THEN 'view' ELSE 'table' END, COALESCE(obj_description(c.oid, 'pg_class'), '')
FROM pg_class c WHERE c.relnamespace = $1::text::regnamespace AND c.relkind IN ('r', 'v') ORDER BY c.oid"""
_COLUMNS = """
SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), NOT a.attnotnull,
       COALESCE(pg_get_expr(d.adbin, d.adrelid), ''), COALESCE(col_description(a.attrelid, a.attnum), '')
FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"""
_INDEXES = """
SELECT i.relname::text, pg_get_indexdef(i.oid) FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
WHERE x.indrelid = $1 ORDER BY i.oid"""
_TRIGGERS = "SELECT tgname::text FROM pg_trigger WHERE tgrelid = $1 AND NOT tgisinternal ORDER BY tgname"
_FUNCTIONS = """
SELECT p.proname::text, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid),
       COALESCE(obj_description(p.oid, 'pg_proc'), '')
FROM pg_proc p WHERE p.pronamespace = $1::text::regnamespace AND p.prorettype <> 'trigger'::regtype ORDER BY p.oid"""


class Catalogue(Struct, frozen=True):
    """What the schema page is made of."""

    relations: list[Relation]
    functions: list[Function]


async def catalogue(connection: Any, schema: str = "dhara") -> Catalogue:
    """Read a migrated schema."""
    # Names are shown whole: a role named like the schema (as the embedded server's is) has it in its path.
    await connection.execute("SET search_path = pg_catalog")
    relations = []
    for oid, name, kind, comment in await connection.fetch(_RELATIONS, schema):
        relations.append(
            Relation(
                name,
                kind,
                comment,
                [tuple(row) for row in await connection.fetch(_COLUMNS, oid)],
                [tuple(row) for row in await connection.fetch(_INDEXES, oid)],
                [row[0] for row in await connection.fetch(_TRIGGERS, oid)],
            )
        )
    return Catalogue(relations, [Function(*row) for row in await connection.fetch(_FUNCTIONS, schema)])


def _relation(relation: Relation) -> str:
    rows = [
        (f"`{name}`", kind, "" if nullable else "not null", f"`{default}`" if default else "", comment)
        for name, kind, nullable, default, comment in relation.columns
    ]
    parts = [f"## {relation.name}", " ".join(filter(None, [f"A {relation.kind}.", relation.comment]))]
    if relation.kind == "view":
        parts.append(table(("column", "type"), [row[:2] for row in rows]))
    else:
        parts.append(table(("column", "type", "", "default", "about"), rows))
    if relation.indexes:
        parts.append(fenced("\n".join(definition for _, definition in relation.indexes), "sql"))
    if relation.triggers:
        parts.append(f"Triggers that refuse what the [moves](states.md) do not allow: {code(relation.triggers)}.")
    return "\n\n".join(parts)


def _function(function: Function) -> str:
    # A comma of a default stands in no argument list, and none of the functions has one with a comma in it.
    arguments = re.sub(r"DEFAULT (NULL|'[^']*')::[a-z ]+(\[\])?", r"DEFAULT \1", function.arguments).replace(
        ", ", ",\n    "
    )
    signature = f"dhara.{function.name}(\n    {arguments}\n) RETURNS {function.answers}".replace("(\n    \n)", "()")
    head = f"### dhara.{function.name}"
    return "\n\n".join(part for part in (head, function.comment, fenced(signature, "sql")) if part)


def schema_page(found: Catalogue, schema: str = "dhara") -> str:
    text = page(
        "Schema",
        "the catalogue of a migrated database",
        "What the migrations make, in the schema `dhara` (or `DHARA_SCHEMA`). Read whatever you like; change tasks through the"
        " operations of dhara, or enqueue by [SQL](sql.md). The database itself refuses moves that the"
        " [life cycle](states.md) does not allow.",
        *(_relation(relation) for relation in found.relations),
        "## Functions",
        *(_function(function) for function in found.functions),
    )
    return re.sub(rf'"?\b{schema}"?\.', "dhara.", text)


# --- all ----------------------------------------------------------------------------------------------------

REFERENCE = {
    "states": states,
    "settings": settings_page,
    "cli": cli_page,
    "http-api": http_page,
    "metrics": metrics_page,
    "errors": errors_page,
}


# The figures that are worth a place in README: row of the benchmarks -> its figures, first what is worth most.
SHOWN = {
    "P1": ("drain",),
    "P2": ("2 processes",),
    "P3": ("enqueue_many", "16 concurrent enqueue"),
    "P4": ("64 connections", "64 connections, p99"),
    "P5": ("tasks",),
    "P6": ("p50", "p99"),
    "P7": ("p50", "p99"),
    "P10": ("finished against empty",),
    "P11": ("list", "/metrics"),
}


def figures() -> str:
    """What `make bench` has measured last, and on what; says so when nothing has been."""
    file = ROOT / "docs" / "reports" / "speed" / "pg18.json"
    if not file.exists():
        return "Not measured yet: `make bench` on an idle machine, then `make docs`."
    found = json.loads(file.read_text())
    machine = found["machine"]
    server = machine["settings"]
    where = (
        f"Medians of {found['runs']} runs ({found['begun']}) on one machine of {machine['cores']} cores, shared by"
        f" PostgreSQL {machine['postgresql']}, server, worker and load; fsync {server['fsync']}, synchronous_commit"
        f" {server['synchronous_commit']}, full history and metrics."
    )
    rows = {row["id"]: row for row in found["rows"]}
    lines = [(rows[id]["title"], _values(rows[id], names)) for id, names in SHOWN.items() if id in rows]
    return table(("work", "figures"), lines) + "\n\n" + where


def _values(row: dict[str, Any], names: Sequence[str]) -> str:
    """Figures of a row in one cell."""
    found = {figure["name"]: figure for figure in row["figures"]}
    shown = [f"{name} {speed.shown(found[name]['value'], found[name]['unit'])}" for name in names if name in found]
    return ", ".join(shown) or "not measured"


BLOCKS = {"states": diagram, "figures": figures}
WITH_BLOCKS = ("README.md", "docs/explanation/life-of-a-task.md", "docs/explanation/performance.md")


def with_blocks(text: str) -> str:
    """`text` with the contents of its generated blocks made anew."""
    for name, make in BLOCKS.items():
        start, end = f"<!-- generated: {name} -->", f"<!-- end: {name} -->"
        text = re.sub(f"(?s){start}.*?{end}", lambda _: f"{start}\n{make()}\n{end}", text)  # noqa: B023
    return text


def outputs(found: Catalogue, schema: str = "dhara") -> dict[str, str]:
    """Every file that is made here, whole or in part, and its text."""
    made = {f"docs/reference/{name}.md": make() for name, make in REFERENCE.items()}
    made["docs/reference/schema.md"] = schema_page(found, schema)
    for name in WITH_BLOCKS:
        made[name] = with_blocks((ROOT / name).read_text())
    return made


@contextmanager
def database() -> Iterator[str]:
    """A database to make the scratch schema in."""
    if given := os.environ.get("DHARA_DATABASE_URL"):
        yield given
        return
    embedded = import_module("dhara.embedded")
    with tempfile.TemporaryDirectory(prefix="dhara-docs-") as folder:
        Path(folder).chmod(0o711)  # The server's own user must be able to pass through to its data.
        server = embedded.EmbeddedPostgres(Path(folder) / "data")
        try:
            yield server.start()
        finally:
            server.stop()


async def read(dsn: str) -> Catalogue:
    """The catalogue of a scratch schema, migrated and dropped again."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(f"DROP SCHEMA IF EXISTS {SCRATCH} CASCADE")
        await migrate.up(connection, SCRATCH)
        found = await catalogue(connection, SCRATCH)
        await connection.execute(f"DROP SCHEMA {SCRATCH} CASCADE")
        return found
    finally:
        await connection.close()


def main() -> int:
    with database() as dsn:
        made = outputs(asyncio.run(read(dsn)), SCRATCH)
    for name, text in made.items():
        path = ROOT / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(f"written  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
