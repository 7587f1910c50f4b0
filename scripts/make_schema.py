"""Writes src/dhara/store/schema.sql: what all migrations add up to, for people to read.

    python scripts/make_schema.py            write it
    python scripts/make_schema.py --check    exit 1 if it is not current

The file is the steps' own text, in order; a column that a later step adds stands in its table. Any other step that
changes or drops what an earlier one made does not belong in a text that people read from top to bottom: then this script
must merge it by hand-written rule, so it refuses. A test executes the file beside the migrations and compares the two
catalogues.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from dhara.store.migrate import Migration, all_migrations

FILE = Path(__file__).parent.parent / "src" / "dhara" / "store" / "schema.sql"
HEADER = """\
-- What all migrations add up to. Made by scripts/make_schema.py; do not edit, and do not install from it:
-- `dhara migrate up` keeps the record of what is applied.

"""
# What a table's pages are like may be said later: that changes nothing of what was read before.
_STORAGE = re.compile(r"^ALTER TABLE [\w.]+ SET \([\w\s=.,]+\);$", re.MULTILINE)
# A new column stands in its table, where the catalogue has it too: last.
_COLUMN = re.compile(r"^ALTER TABLE ([\w.]+) ADD COLUMN ([^;,]+);\n", re.MULTILINE)
_CHANGES = re.compile(r"^\s*(ALTER|DROP|UPDATE|DELETE|INSERT)\b", re.MULTILINE | re.IGNORECASE)


def schema_text(steps: list[Migration]) -> str:
    """The text of the whole schema. Raises `ValueError` on a step that changes an earlier one's work."""
    parts: list[str] = []
    for step in steps:
        up = step.up
        for found in _COLUMN.finditer(step.up):
            parts = [_with_column(part, table=found[1], column=found[2]) for part in parts]
            up = up.replace(found[0], "")
        outside_functions = _STORAGE.sub("", re.sub(r"\$\$.*?\$\$", "", up, flags=re.DOTALL))
        if found := _CHANGES.search(outside_functions):
            raise ValueError(f"{step.version:04}_{step.name}: teach this script to merge {found[1]} into schema.sql")
        title = f"-- {step.version:04}_{step.name} "
        parts.append(f"{title:-<110}\n\n{up.strip()}\n")
    return HEADER + "\n".join(parts)


def _with_column(text: str, *, table: str, column: str) -> str:
    return re.sub(
        rf"(^CREATE TABLE {re.escape(table)} \(.*?)\n\)", rf"\1,\n    {column}\n)", text, flags=re.MULTILINE | re.DOTALL
    )


def main(arguments: list[str]) -> int:
    text = schema_text(all_migrations())
    if "--check" in arguments:
        current = FILE.is_file() and FILE.read_text() == text
        print("schema.sql is current" if current else "schema.sql is old: run scripts/make_schema.py")
        return 0 if current else 1
    FILE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
