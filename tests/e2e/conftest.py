from __future__ import annotations

import fcntl
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.e2e.kit import Facts, Fleet


@pytest.fixture
def alone() -> Iterator[None]:
    """One test of processes at a time on this machine: their bars are times, and CPUs are few."""
    with (Path(tempfile.gettempdir()) / "dhara-test-e2e.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture
async def facts(dsn: str) -> AsyncIterator[Facts]:
    """The facts of the test's database."""
    found = Facts(dsn)
    yield found
    await found.close()


@pytest.fixture
async def fleet(alone: None, dsn: str, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Fleet]:
    """Worker processes on the test's database; none outlives it. Their logs are shown when the test fails."""
    made = Fleet(dsn, tmp_path)
    try:
        yield made
    finally:
        try:
            await made.end()
        finally:
            print(made.logs())
