"""S15, S24: what must not be in the source: code from data, SQL by formatting, temporary files in shared folders."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2] / "src" / "dhara"
FILES = sorted(ROOT.rglob("*.py"))
# Modules and functions that turn data into code, or open what others may have put there.
FORBIDDEN_IMPORTS = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "yaml", "xmlrpc", "telnetlib"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "tempfile.mktemp"}
# Handlers are found by what the operator says on the command line, commands by a table; never by a payload.
MAY_IMPORT_BY_NAME = {"__init__.py", "cli/main.py", "worker/entry.py", "worker/spawned.py"}
# Composed from fixed texts, names that were checked, and numbers of parameters.
MAY_COMPOSE = {"store/search.py", "store/roles.py", "store/migrate.py"}
EXECUTING = {"execute", "fetch", "fetchrow", "fetchval", "executemany", "copy_to_table", "prepare", "cursor"}


@cache
def _tree(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_text())
    except SystemError:  # Python 3.11 counts wrongly where a collection of garbage comes between.
        return ast.parse(file.read_text())


def _calls(file: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(_tree(file)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def _name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def test_no_code_from_data() -> None:
    found = []
    for file in FILES:
        for node in ast.walk(_tree(file)):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            found += [f"{_name(file)}: imports {n}" for n in names if n.split(".")[0] in FORBIDDEN_IMPORTS]
        found += [f"{_name(file)}: calls {name}" for name, _ in _calls(file) if name in FORBIDDEN_CALLS]
        found += [
            f"{_name(file)}: a shell" for _, call in _calls(file) for k in call.keywords
            if k.arg == "shell" and not (isinstance(k.value, ast.Constant) and k.value.value is False)
        ]  # fmt: skip
    assert found == []


def test_modules_are_imported_by_name_in_few_places() -> None:
    places = {_name(f) for f in FILES for name, _ in _calls(f) if name.rpartition(".")[2] == "import_module"}
    assert places <= MAY_IMPORT_BY_NAME


def test_statements_are_constant_texts() -> None:
    """No f-string, `%`, `+` or format() in what is executed; what must be composed is composed where all can see it."""
    found = []
    for file in FILES:
        for name, call in _calls(file):
            if name.rpartition(".")[2] not in EXECUTING or not call.args or _name(file) in MAY_COMPOSE:
                continue
            statement = call.args[0]
            formatted = isinstance(statement, ast.Call) and ast.unparse(statement.func).endswith(".format")
            if isinstance(statement, ast.JoinedStr | ast.BinOp) or formatted:
                found.append(f"{_name(file)}:{call.lineno}: {ast.unparse(statement)[:60]}")
    assert found == []
