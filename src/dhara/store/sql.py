"""Statements: read once from `sql/`, the schema's name put in place, kept.

Files hold constant text, so that drivers keep them prepared. Each names its objects as `dhara.x`; that prefix is
replaced by the quoted schema, because `search_path` would not do: enqueues run on the caller's connection, and poolers
forget it.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

from dhara.errors import ConfigError

_PREFIX = re.compile(r"\bdhara\.(?=[a-z_])")
_COMMENT = re.compile(r"^\s*--.*\n?", re.MULTILINE)
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,39}")
_ROOT = files("dhara.store") / "sql"


def check_schema(schema: str) -> str:
    """`schema`, if it is a name that dhara takes. Raises `ConfigError`."""
    if not _NAME.fullmatch(schema):
        raise ConfigError(f"schema {schema!r} is not a name: use a-z, 0-9 and _, at most 40, not starting with a digit")
    return schema


def qualify(text: str, schema: str) -> str:
    """`text` with every `dhara.x` pointing into `schema`."""
    return _PREFIX.sub(f'"{check_schema(schema)}".', text)


@cache
def load(name: str, schema: str) -> str:
    """The statement `sql/<name>.sql` for `schema`, without its comments."""
    return qualify(_COMMENT.sub("", (_ROOT / f"{name}.sql").read_text()), schema).strip()


def names() -> list[str]:
    """Every statement there is, such as `tasks/claim`."""
    folders = sorted((f for f in _ROOT.iterdir() if f.is_dir()), key=lambda f: f.name)
    return [
        f"{folder.name}/{file.name[:-4]}"
        for folder in folders
        for file in sorted(folder.iterdir(), key=lambda f: f.name)
        if file.name.endswith(".sql")
    ]
