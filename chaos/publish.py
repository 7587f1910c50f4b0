"""Puts the ledger's table into the report: `python -m chaos report --write`."""

from __future__ import annotations

import re
from pathlib import Path

_PART = re.compile(r"(?s)(<!-- ledger -->\n).*?(<!-- end: ledger -->)")


def publish(page: Path, table: str) -> None:
    """Replace what stands between the marks."""
    text = page.read_text()
    page.write_text(_PART.sub(lambda marks: f"{marks[1]}{table}{marks[2]}", text))
