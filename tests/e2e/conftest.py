from __future__ import annotations

import fcntl
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.kit import Facts, Fleet


@pytest.fixture
def alone() -> Iterator[None]:
    """For a test that takes all processors of this machine: no other test of processes beside it."""
    with _turn(fcntl.LOCK_EX):
        yield


@pytest.fixture
def machine(request: pytest.FixtureRequest) -> Iterator[None]:
    """For every test of processes: not beside one that wants to be alone.

    How long it waits for its turn is no part of the test, so such a test is marked with `timeout(..., func_only=True)`.
    """
    if "alone" in request.fixturenames:
        request.getfixturevalue("alone")
        yield
    else:
        with _turn(fcntl.LOCK_SH):
            yield


@contextmanager
def _turn(kind: int) -> Iterator[None]:
    with (Path(tempfile.gettempdir()) / "dhara-test-e2e.lock").open("a") as lock:
        fcntl.flock(lock, kind)
        yield


@pytest.fixture
async def facts(dsn: str) -> AsyncIterator[Facts]:
    """The facts of the test's database."""
    found = Facts(dsn)
    yield found
    await found.close()


@pytest.fixture
async def fleet(machine: None, dsn: str, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Fleet]:
    """Worker processes on the test's database; none outlives it. Their logs are shown when the test fails."""
    made = Fleet(dsn, tmp_path)
    try:
        yield made
    finally:
        try:
            await made.end()
        finally:
            print(made.logs())
