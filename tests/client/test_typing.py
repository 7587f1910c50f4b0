"""Typed user code: mypy and pyright are content with the examples and with code as users write it, and see its mistakes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

GOOD = """
import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID

import msgspec

from dhara import AsyncClient, Call, Client, Context, Handle, Registry, RetryPolicy, State, SyncHandle, Worker
from dhara.client import Middleware, NewTask, Proceed

tasks = Registry()


@tasks.task("mail.send", queue="mail", timeout=30, retry=RetryPolicy(max_retries=3))
async def send(to: str, subject: str = "Hi", *, ctx: Context) -> str:
    await ctx.progress(50, "half")
    return to


@tasks.task("report.make", retry_on={ValueError: None}, executor="process")
def report(month: str) -> dict[str, int]:
    return {month: 1}


@tasks.lifespan
async def resources() -> AsyncIterator[dict[str, str]]:
    yield {}


def traced(task: NewTask) -> NewTask:
    return msgspec.structs.replace(task, tags=("a",))


async def timed(task: NewTask, proceed: Proceed) -> Handle:
    return await proceed(task)


around: list[Middleware] = [traced, timed]


async def main(url: str) -> None:
    direct: dict[str, int] = report("2026-01")
    call: Call = send.s(to="a@b.c")
    async with AsyncClient(url, token="k", middleware=around) as dhara:
        handle: Handle = await dhara.enqueue(call, delay=timedelta(minutes=1), unique_key="k", unique_for=60)
        await dhara.enqueue("mail.send", {"to": "a@b.c"}, priority=50, tags=["x"], on_conflict="replace")
        handles: list[Handle] = await dhara.enqueue_many([call, {"type": "t", "payload": 1}], retention=3600)
        id: UUID = handle.id
        state: State = await handles[0].status()
        result: object = await handle.result(timeout=5)
        page = await dhara.list(status=State.DEAD, limit=5)
        print(direct, id, state, result, page.total, [task.last_error for task in page.tasks])
    async with Worker(url, tasks, queues={"mail": 20}) as worker:
        print(worker)


def sync(url: str) -> None:
    with Client(url, pool_max=2, patience=3.0) as dhara:
        handle: SyncHandle = dhara.enqueue(report.s(month="2026-01"))
        print(handle.result(), dhara.list(type="t").total)


if __name__ == "__main__":
    asyncio.run(main("postgresql://"))
"""

# Each line is wrong on its own, and every checker must say so.
WRONG = """
from dhara import AsyncClient, Client, Context, Registry

tasks = Registry()


@tasks.task("t", timeout="long")  # wrong
async def one(a: int, ctx: Context) -> int:
    await ctx.progress("half")  # wrong
    return a


@tasks.task("u")
def two(a: int) -> int:
    return a


async def main(dhara: AsyncClient, sync: Client) -> None:
    two("x")  # wrong
    await dhara.enqueue("t", prority=5)  # wrong
    await dhara.enqueue("t", priority="high")  # wrong
    await dhara.enqueue(two)  # wrong
    await dhara.enqueue_many(["t"])  # wrong
    (await dhara.enqueue("t")).reslt()  # wrong
    sync.enqueue("t", prority=5)  # wrong
    sync.list(statuses="DEAD")  # wrong
    Client("postgresql://", pool_size=3)  # wrong
    AsyncClient("http://h", middleware=[5])  # wrong
"""


def mypy(folder: Path) -> subprocess.CompletedProcess[str]:
    """As a user runs it: on files of theirs, with dhara installed and typed by its `py.typed`."""
    environ = os.environ | {"MYPYPATH": str(ROOT / "src"), "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", str(folder / "cache")]
    command += ["--explicit-package-bases", "good.py", "wrong.py", "examples"]
    return subprocess.run(command, text=True, capture_output=True, env=environ, cwd=folder, timeout=300)


def pyright(folder: Path) -> subprocess.CompletedProcess[str]:
    settings = {"typeCheckingMode": "standard", "extraPaths": [str(ROOT / "src")], "pythonVersion": "3.11"}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "basedpyright", "-p", ".", "--pythonpath", sys.executable]
    return subprocess.run(command, text=True, capture_output=True, cwd=folder, timeout=300)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("checker", [mypy, pyright])
def test_user_code_is_typed(checker: Callable[[Path], subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    """The examples and a user's code have no mistakes, and each mistake that a user makes is seen."""
    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "wrong.py").write_text(WRONG)
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    done = checker(tmp_path)
    found = {(file, int(line)) for file, line in re.findall(r"([\w/]+\.py):(\d+).*? error:", done.stdout)}
    wrong = {n for n, line in enumerate(WRONG.splitlines(), 1) if line.endswith("# wrong")}
    assert {(Path(file).name, line) for file, line in found} == {("wrong.py", line) for line in wrong}, (
        done.stdout + done.stderr
    )


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "src/dhara/py.typed").is_file()
