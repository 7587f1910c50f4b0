"""docs/reference/guarantees.md, docs/reports/security.md: every promise names tests, and they exist."""

from __future__ import annotations

import ast
import re

from tests.docs.pages import ROOT

TEXT = (ROOT / "docs/reference/guarantees.md").read_text()
REPORT = (ROOT / "docs/reports/security.md").read_text()
_NAMED = re.compile(r"`(tests/[\w/]+\.py)::(?:(\w+)::)?(\w+)`")


def _tests(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text())
    return {
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }


def test_every_named_test_exists() -> None:
    named = _NAMED.findall(TEXT + REPORT)
    assert len(named) > 100
    gone = [f"{path}::{name}" for path, _, name in named if not (ROOT / path).is_file() or name not in _tests(path)]
    assert gone == []


def test_every_promise_names_a_test_or_says_that_it_is_not_kept_yet() -> None:
    kept, _, absent = TEXT.partition("## Not there yet")
    promises = re.split(r"(?m)^### ", kept)[1:]
    numbers = set(re.findall(r"\bC(\d+)\b", TEXT))
    assert numbers == {str(number) for number in range(1, 21)}
    assert absent.strip()
    assert [promise.splitlines()[0] for promise in promises if not _NAMED.search(promise)] == []
