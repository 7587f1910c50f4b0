"""What a shell is offered when somebody presses Tab on a name or an id: asked from the database, within a moment.

A database that is away, slow or of another schema offers nothing: pressing Tab is no time for errors.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from dhara.store.pool import Pool

# A person waits no longer for a list, and reads no longer one.
SECONDS = 2.0
MOST = 30

Offers = Iterable[tuple[str, str]]
Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


async def _queues(pool: Pool) -> Offers:
    from dhara.store.queues import Queues

    return [(one.name, f"{one.ready:,} ready") for one in await Queues(pool, pool.settings.schema).list()]


async def _types(pool: Pool) -> Offers:
    from dhara.store.workers import Workers

    live = await Workers(pool, pool.settings.schema).recent(0)
    return [(type, "") for type in sorted({type for one in live for type in one.types})]


async def _workers(pool: Pool) -> Offers:
    from dhara.store.workers import Workers

    live = await Workers(pool, pool.settings.schema).recent(0)
    return [(str(one.id), f"{one.host}, pid {one.pid}, runs {one.running}") for one in live]


async def _schedules(pool: Pool) -> Offers:
    from dhara.store.schedules import Schedules

    return [(one.name, f"{one.type} in {one.queue}") for one in await Schedules(pool, pool.settings.schema).all()]


async def _groups(pool: Pool) -> Offers:
    from dhara.store.failures import Failures

    found = await Failures(pool, pool.settings.schema).groups(MOST, cap=1_000)
    return [(one.fingerprint, f"{one.type}: {(one.last_error or one.reason or '')[:60]}") for one in found]


async def _operations(pool: Pool) -> Offers:
    from dhara.store.operations import Operations

    found = await Operations(pool, pool.settings.schema).recent(MOST)
    return [(str(one.id), f"{one.kind} by {one.asked_by}, {one.state}") for one in found]


def _tasks(*states: str) -> Callable[[Pool], Awaitable[Offers]]:
    """The newest tasks in these states; none given: in any."""

    async def found(pool: Pool) -> Offers:
        from dhara.domain.lifecycle import State
        from dhara.store.search import Filter, Search

        wanted = Filter(status=tuple(State(state) for state in states))
        page = await Search(pool, pool.settings.schema).page(wanted, limit=MOST)
        return [(str(one.id), f"{one.type} {one.status}") for one in page.tasks]

    return found


def _completer(find: Callable[[Pool], Awaitable[Offers]]) -> Completer:
    def offered(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            offers = asyncio.run(asyncio.wait_for(_ask(find), SECONDS))
        except Exception:
            return []
        return [CompletionItem(text, help=about) for text, about in offers if text.startswith(incomplete)]

    return offered


async def _ask(find: Callable[[Pool], Awaitable[Offers]]) -> Offers:
    from dhara.cli.console import Console
    from dhara.cli.database import pool

    # Nor for what a connection that was given up has left.
    asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
    async with pool(Console().settings()) as opened:
        return await find(opened)


QUEUE, TYPE, WORKER, SCHEDULE = (_completer(find) for find in (_queues, _types, _workers, _schedules))
GROUP, OPERATION = _completer(_groups), _completer(_operations)
TASK, OPEN_TASK, DEAD_TASK = (_completer(_tasks(*states)) for states in ((), ("PENDING", "RUNNING"), ("DEAD",)))
