"""The command line, in this process and as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dhara.cli.main import cli
from tests.conftest import LEAN

ROOT = Path(__file__).parents[2]


class Dhara:
    """Calls `dhara` with a given environment, in an empty folder."""

    def __init__(self, environ: dict[str, str], folder: Path) -> None:
        self.environ = environ
        self.folder = folder

    def __call__(self, *arguments: str, code: int = 0, input: str | None = None) -> Result:
        """Run in this process; the exit code must be `code`."""
        result = CliRunner(env=self.environ).invoke(cli, list(arguments), input=input)
        assert result.exit_code == code, f"exit code {result.exit_code}: {result.output}"
        return result

    def json(self, *arguments: str, code: int = 0, input: str | None = None) -> Any:
        """The one JSON document of a `--json` call."""
        return json.loads(self(*arguments, "--json", code=code, input=input).stdout)

    def process(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """A process of its own, with pipes for its output."""
        streams: dict[str, Any] = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "stdin": subprocess.DEVNULL,
        }
        environ = {k: v for k, v in os.environ.items() if not k.startswith("DHARA_")} | self.environ
        environ["PYTHONPATH"] = os.pathsep.join([str(LEAN), str(ROOT / "src"), str(ROOT)])
        return subprocess.Popen(
            [sys.executable, "-m", "dhara", *arguments],
            text=True,
            cwd=self.folder,
            env=environ,
            **streams | options,
        )

    def run(self, *arguments: str, timeout: float = 30, **options: Any) -> subprocess.CompletedProcess[str]:
        """A process of its own, to its end."""
        with self.process(*arguments, **options) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            finally:
                process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No DHARA_ variables, no dhara.toml."""
    for name in [name for name in os.environ if name.startswith("DHARA_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def dhara(dsn: str, clean_environment: Path) -> Dhara:
    """`dhara` on a fresh, migrated database."""
    return Dhara({"DHARA_DATABASE_URL": dsn}, clean_environment)


@pytest.fixture
def dhara_on_empty(empty_dsn: str, clean_environment: Path) -> Dhara:
    """`dhara` on a fresh database without the schema."""
    return Dhara({"DHARA_DATABASE_URL": empty_dsn}, clean_environment)


@pytest.fixture
def dhara_alone(clean_environment: Path) -> Dhara:
    """`dhara` without a database."""
    return Dhara({}, clean_environment)
