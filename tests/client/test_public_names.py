"""What `import dhara` offers, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import dhara


def test_all_names_exist_and_are_sorted() -> None:
    assert list(dhara.__all__) == sorted(dhara.__all__)
    for name in dhara.__all__:
        assert getattr(dhara, name).__name__ == name
    assert set(dhara.__all__) <= set(dir(dhara))
    with pytest.raises(AttributeError, match="no attribute 'Wroker'"):
        dhara.Wroker  # noqa: B018


def test_names_are_loaded_when_they_are_used() -> None:
    code = (
        "import sys, dhara; assert 'asyncpg' not in sys.modules, 'import dhara loads a driver';"
        "dhara.Registry; assert 'starlette' not in sys.modules and 'sqlalchemy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
