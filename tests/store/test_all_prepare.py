"""Every statement prepares against the real schema, under any schema's name, and says what its parameters are."""

from __future__ import annotations

import re
from importlib.resources import files

import asyncpg
import pytest

from dhara.store import migrate
from dhara.store.sql import load, names
from tests.factories import Connection

ROOT = files("dhara.store") / "sql"


def text_of(name: str) -> str:
    return (ROOT / f"{name}.sql").read_text()


def header_of(text: str) -> str:
    lines = []
    for line in text.splitlines():
        if not line.startswith("--"):
            break
        lines.append(line)
    return "\n".join(lines)


async def test_all_prepare(db: Connection) -> None:
    await migrate.up(db, "other")
    for schema in ("dhara", "other"):
        for name in names():
            try:
                statement = await db.prepare(load(name, schema))
            except asyncpg.PostgresError as error:
                pytest.fail(f"{name}: {error}")
            parameters = len(statement.get_parameters())
            assert parameters == max(map(int, re.findall(r"\$(\d+)", load(name, schema))), default=0), name
            assert '"dhara".' not in load(name, "other"), name


@pytest.mark.parametrize("name", names())
def test_header_names_every_parameter(name: str) -> None:
    text = text_of(name)
    header = header_of(text)
    assert len(header) > 20, f"{name} opens without a comment"
    body = text[len(header) :]
    used, named = set(re.findall(r"\$\d+", body)), set(re.findall(r"\$\d+", header))
    assert used == named, f"{name}: used {sorted(used)}, named {sorted(named)}"


def test_every_statement_is_used() -> None:
    """A file that no store method loads is a power that nobody has."""
    store = files("dhara.store")
    sources = "".join(file.read_text() for file in store.iterdir() if file.name.endswith(".py"))
    unused = [name for name in names() if f'"{name.split("/")[1]}"' not in sources and f'"{name}"' not in sources]
    assert unused == []
