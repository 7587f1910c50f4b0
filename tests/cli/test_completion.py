"""What a shell offers on Tab: names and ids from the database, and nothing at all when it is away."""

from __future__ import annotations

import asyncio
from typing import Any

import click
import pytest

from dhara.cli import completion
from dhara.cli.main import cli
from dhara.domain.plan import spec_of
from dhara.store.operations import Operations
from dhara.store.pool import Pool
from dhara.store.schedules import Schedules
from dhara.store.search import Filter
from tests.factories import make_task, make_worker


def offered(*words: str) -> set[str]:
    """What is offered for the last of these words."""
    from click.shell_completion import ShellComplete

    return {one.value for one in ShellComplete(cli, {}, "dhara", "_X").get_completions(list(words[:-1]), words[-1])}


async def test_names_and_ids_are_offered(pool: Pool, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DHARA_DATABASE_URL", dsn)
    monkeypatch.setattr(completion, "SECONDS", 60.0)
    waiting = await make_task(pool, queue="mail", type="a.type")
    dead = await make_task(pool, "DEAD", queue="pay", fingerprint="print:1")
    worker = await make_worker(pool, types=["a.type", "b.type"])
    await Schedules(pool).create(spec_of({"name": "nightly", "type": "t", "every": 60}), "ann")
    begun = await Operations(pool).create("retry", Filter(), "ann", total=0, is_estimate=False)
    cases: dict[tuple[str, ...], set[str]] = {
        ("queues", "pause", ""): {"mail", "pay"},
        ("tasks", "list", "--queue", "m"): {"mail"},
        ("tasks", "get", ""): {str(waiting.id), str(dead.id)},
        ("tasks", "cancel", ""): {str(waiting.id)},
        ("tasks", "retry", str(dead.id)[:9]): {str(dead.id)},
        ("enqueue", "b"): {"b.type"},
        ("workers", "drain", str(worker)[:13]): {str(worker)},
        ("schedules", "run", "n"): {"nightly"},
        ("dead", "mute", ""): {"print:1"},
        ("operations", "stop", ""): {str(begun.id)},
    }
    found: dict[tuple[str, ...], Any] = {words: await asyncio.to_thread(offered, *words) for words in cases}
    assert found == cases
    monkeypatch.setenv("DHARA_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    assert await asyncio.to_thread(offered, "queues", "pause", "") == set()


def test_every_name_and_id_can_be_completed() -> None:
    """Whatever command gains an argument for something that the database knows."""
    known = {"id", "ids", "fingerprint"}
    for name in ("tasks", "dead", "operations", "workers", "queues", "schedules"):
        group = cli.get_command(click.Context(cli), name)
        assert isinstance(group, click.Group)
        for verb, command in group.commands.items():
            for argument in command.params:
                if isinstance(argument, click.Argument) and argument.name in known | {"name"}:
                    assert argument._custom_shell_complete is not None, (name, verb)
