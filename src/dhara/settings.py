"""Settings: one table, from which the parser, the documentation and the tests are made.

Precedence: arguments, environment (`DHARA_` and the name), `dhara.toml`, defaults. An unknown name is refused with the
nearest known one. `Settings` is frozen; each part receives only what it needs of it.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import stat
import tomllib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from dhara.errors import ConfigError


class Settings(Struct, frozen=True, kw_only=True):
    """All settings, with their defaults. Durations are seconds."""

    database_url: str = ""
    schema: str = "dhara"
    host: str = "127.0.0.1"
    port: int = 8080
    auto_migrate: bool = True
    worker_count: int = 100
    processes: int = 1
    poll_interval: float = 1.0
    heartbeat_interval: float = 5.0
    stale_after: float = 30.0
    reaper_interval: float = 5.0
    confirm_after: float = 10.0
    handler_timeout: float = 900.0
    kill_grace: float = 10.0
    base_backoff: float = 1.0
    max_backoff: float = 3600.0
    shutdown_timeout: float = 25.0
    retention: float = 7 * 86_400.0
    dead_retention: float = 30 * 86_400.0
    history_retention: float = 30 * 86_400.0
    recycle_tasks: int = 0
    recycle_memory: int = 0
    log_level: str = "info"
    log_format: str = "text"
    pool_min: int = 1
    pool_max: int = 8
    connect_timeout: float = 5.0
    command_timeout: float = 15.0
    pooler: bool = False
    wakeups: bool = True
    api_keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    rate_limit: float = 0.0
    queue_limit: int = 0
    wait_objective: float = 300.0
    masked_fields: tuple[str, ...] = ()
    trace_url: str = ""


class Setting(Struct, frozen=True):
    """A row of the table: how a text becomes the value, and what people read about it."""

    name: str
    parse: Callable[[Any], Any]
    about: str

    @property
    def variable(self) -> str:
        return "DHARA_" + self.name.upper()

    @property
    def default(self) -> Any:
        return getattr(Settings(), self.name)


_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|)", re.ASCII)


def duration(value: Any) -> float:
    """Seconds of `30s`, `5m`, `1.5h`, `250ms`, `7d` or a plain number of seconds."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(min(value, 1e18))
    elif isinstance(value, str) and (found := _DURATION.fullmatch(value.strip())):
        seconds = float(found[1]) * _UNITS[found[2]]
    else:
        raise ValueError("a duration such as 30s, 5m, or seconds")
    if not 0 < seconds <= 10 * 365 * 86_400:
        raise ValueError("a duration above 0 and of at most ten years")
    return seconds


def _boolean(value: Any) -> bool:
    known = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in known:
        return known[value.strip().lower()]
    raise ValueError("true or false")


def _integer(low: int, high: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        try:
            number = int(value.strip()) if isinstance(value, str) else value
        except ValueError:
            number = None
        if isinstance(number, int) and not isinstance(number, bool) and low <= number <= high:
            return number
        raise ValueError(f"an integer from {low} to {high}")

    return parse


def _text(value: Any) -> str:
    if isinstance(value, str) and value and value.isprintable():
        return value
    raise ValueError("a text without control characters")


def _one_of(*choices: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if isinstance(value, str) and value.lower() in choices:
            return value.lower()
        raise ValueError("one of " + ", ".join(choices))

    return parse


def _schema(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[a-z_][a-z0-9_]{0,39}", value):
        return value
    raise ValueError("a name of a-z, 0-9 and _, at most 40 characters, not starting with a digit")


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, list) and all(isinstance(part, str) and part.isprintable() for part in value):
        return tuple(value)
    raise ValueError("a list of texts, separated by commas")


def _networks(value: Any) -> tuple[str, ...]:
    texts = _texts(value)
    for text in texts:
        try:
            ipaddress.ip_network(text)
        except ValueError:
            raise ValueError("addresses or networks such as 10.0.0.0/8, separated by commas") from None
    return texts


def _rate(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = -1.0
    if isinstance(value, bool) or not 0 <= number <= 1_000_000:
        raise ValueError("requests a second, from 0 to 1000000")
    return number


def field_paths(value: Any) -> tuple[str, ...]:
    """Paths of fields, of a text or several: `card.number, *.password`."""
    texts = _texts(value)
    if any(not part for text in texts for part in text.split(".")):
        raise ValueError("paths such as card.number or *.password, separated by commas")
    return texts


def trace_address(value: Any) -> str:
    """The template of a trace's address, `https://traces.example/{trace_id}`."""
    if isinstance(value, str) and re.fullmatch(r"https?://[!-~]*\{trace_id\}[!-~]*", value):
        return value
    raise ValueError("an address with {trace_id}, such as https://traces.example/trace/{trace_id}")


TABLE: tuple[Setting, ...] = (
    Setting("database_url", _text, "the database: postgresql://user:password@host:5432/database"),
    Setting("schema", _schema, "the PostgreSQL schema that holds dhara's tables"),
    Setting("host", _text, "the address that the server binds; another than loopback needs API keys"),
    Setting("port", _integer(0, 65_535), "the port of the server; 0 takes a free one"),
    Setting("auto_migrate", _boolean, "whether server, worker and dev apply missing migrations at start"),
    Setting("worker_count", _integer(1, 10_000), "slots of one worker process: how many tasks it runs at once"),
    Setting("processes", _integer(1, 64), "worker processes"),
    Setting("poll_interval", duration, "P: how often an idle worker looks for tasks without being woken"),
    Setting("heartbeat_interval", duration, "H: how often a worker beats; less than a third of STALE_AFTER"),
    Setting("stale_after", duration, "L: a worker without a beat for so long counts as lost"),
    Setting("reaper_interval", duration, "R: how often the reaper looks for lost workers"),
    Setting("confirm_after", duration, "C: how long the reaper itself must have seen a beat stand still"),
    Setting("handler_timeout", duration, "T: how long an attempt may take, unless task or handler say otherwise"),
    Setting(
        "kill_grace", duration, "K: how long an attempt may outlive its deadline or cancellation; then it is killed"
    ),
    Setting("base_backoff", duration, "the wait after the first failure; doubles with each further one"),
    Setting("max_backoff", duration, "the longest wait between attempts"),
    Setting("shutdown_timeout", duration, "G: how long running tasks may go on after SIGTERM before they are released"),
    Setting("retention", duration, "how long COMPLETED and CANCELED tasks are kept"),
    Setting("dead_retention", duration, "how long DEAD tasks are kept"),
    Setting("history_retention", duration, "how long the history of pruned tasks is kept"),
    Setting("recycle_tasks", _integer(0, 10**9), "a worker process is replaced after so many tasks; 0: never"),
    Setting("recycle_memory", _integer(0, 10**6), "a worker process is replaced above so many MiB; 0: never"),
    Setting("log_level", _one_of("debug", "info", "warning", "error"), "the least level that is logged"),
    Setting("log_format", _one_of("text", "json"), "how log lines look"),
    Setting("pool_min", _integer(0, 1_000), "connections kept open"),
    Setting("pool_max", _integer(1, 1_000), "most connections of a process"),
    Setting("connect_timeout", duration, "how long connecting to the database may take"),
    Setting("command_timeout", duration, "how long one statement may take"),
    Setting("pooler", _boolean, "true behind a transaction pooler (PgBouncer): no prepared statements, no LISTEN"),
    Setting("wakeups", _boolean, "whether enqueues wake idle workers by NOTIFY; polling goes on in any case"),
    Setting("api_keys", _texts, "keys that may do everything, to begin with; further ones by `dhara keys create`"),
    Setting("allowed_hosts", _texts, "Host headers that the server answers, besides loopback names and HOST"),
    Setting("trusted_proxies", _networks, "addresses or networks of proxies whose X-Forwarded-For is believed"),
    Setting("rate_limit", _rate, "requests a second of each API key without a rate of its own; 0: unlimited"),
    Setting(
        "queue_limit",
        _integer(0, 10**12),
        "PENDING tasks above which HTTP enqueues get 429, where a queue has no limit of its own; 0: none",
    ),
    Setting(
        "wait_objective",
        duration,
        "a ready task that waits for longer deserves a look, where its queue has no objective of its own",
    ),
    Setting(
        "masked_fields", field_paths, "fields of payloads and results that HTTP never shows: card.number, *.password"
    ),
    Setting(
        "trace_url",
        trace_address,
        "where a task's trace is shown, for the dashboard: https://traces.example/{trace_id}",
    ),
)
BY_NAME = {setting.name: setting for setting in TABLE}
# Variables of this prefix that are no settings of a process: they steer the tools around it.
_OTHERS = {"DHARA_POSTGRES_BIN", "DHARA_DATA_DIR"}


def load(
    arguments: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> Settings:
    """Settings from arguments (None: not given), environment and file. Raises `ConfigError`, one line."""
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    for name, value in _from_file(file).items():
        values[name] = _parsed(name, value, f"{file or 'dhara.toml'}: {name}")
    for variable, value in environ.items():
        # An empty variable is one that somebody has unset.
        if (
            value
            and variable.startswith("DHARA_")
            and variable not in _OTHERS
            and not variable.startswith("DHARA_TEST_")
        ):
            name = variable.removeprefix("DHARA_").lower()
            values[name] = _parsed(name, value, variable, "DHARA_")
    for name, value in (arguments or {}).items():
        if value is not None:
            values[name] = _parsed(name, value, "--" + name.replace("_", "-"))
    return check(Settings(**values))


def check(settings: Settings) -> Settings:
    """Refuse settings that contradict each other. Raises `ConfigError`."""
    if settings.heartbeat_interval >= settings.stale_after / 3:
        raise ConfigError(
            f"HEARTBEAT_INTERVAL ({settings.heartbeat_interval:g} s) must be less than a third of STALE_AFTER"
            f" ({settings.stale_after:g} s), or live workers would be taken for lost"
        )
    if settings.pool_min > settings.pool_max:
        raise ConfigError(f"POOL_MIN ({settings.pool_min}) must not exceed POOL_MAX ({settings.pool_max})")
    if settings.base_backoff > settings.max_backoff:
        raise ConfigError("BASE_BACKOFF must not exceed MAX_BACKOFF")
    return settings


def _parsed(name: str, value: Any, where: str, prefix: str = "") -> Any:
    setting = BY_NAME.get(name)
    if setting is None:
        near = difflib.get_close_matches(name, BY_NAME, n=1, cutoff=0.4)
        shown = [prefix + n.upper() if prefix else n for n in near]
        raise ConfigError(f"{where}: unknown setting" + (f"; did you mean {shown[0]}?" if shown else ""))
    try:
        return setting.parse(value)
    except ValueError as error:
        secret = name in ("database_url", "api_keys")
        shown_value = "" if secret else f", not {value!r}"
        raise ConfigError(f"{where}: must be {error}{shown_value}") from None


def _from_file(file: Path | None) -> dict[str, Any]:
    path = file or Path("dhara.toml")
    if file is None and not path.is_file():
        return {}
    try:
        values = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    secret = {"database_url", "api_keys"} & set(values)
    if secret and os.name == "posix" and path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        warnings.warn(f"{path} holds {', '.join(sorted(secret))} and is readable by others; chmod 600 it", stacklevel=2)
    return values
