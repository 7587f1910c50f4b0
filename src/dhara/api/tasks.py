"""Endpoints of tasks: enqueue, list, read, cancel, retry, wait."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from dhara.api import wire
from dhara.api.auth import forbidden, unauthorized
from dhara.api.exchange import Reply, Request, json_reply
from dhara.api.parts import Parts
from dhara.api.problems import Refused, busy, not_found
from dhara.api.shapes import (
    AttemptList,
    LogList,
    TaskList,
    TaskOut,
    attempt_out,
    batch_out,
    enqueued_out,
    explain_out,
    log_out,
    task_out,
    task_row,
)
from dhara.domain.access import PAYLOAD, Principal
from dhara.domain.explain import explain as reasons_of
from dhara.domain.lifecycle import FINAL, State
from dhara.domain.masking import Mask
from dhara.domain.task import Enqueued, NewTask, Task
from dhara.errors import IdempotencyConflict, QueueFull, WrongState
from dhara.store.search import Filter, reaching

DEFAULT_LIMIT = 20
DEFAULT_WAIT = 30.0
# A text that is looked for in a million tasks takes its time; the database is told to stop.
LIST_SECONDS = 5.0

_ID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")


async def create(request: Request) -> Reply:
    task = await wire.created_task(request)
    if request.principal.queues:
        check_queues(request.principal, (task,))
    try:
        request.parts.pressure.take(task.queue)
    except QueueFull as full:
        done = await repeated(request.parts, task, full)
    else:
        done = await request.parts.ingest.enqueue(task)
    return created(done, request.principal, request.parts.mask)


async def repeated(parts: Parts, task: NewTask, full: QueueFull) -> Enqueued:
    """The task that stands already under a key of `task`: it needs no room. Raises `full` if there is none."""
    done = await parts.tasks.standing(task)
    if isinstance(done, IdempotencyConflict):
        raise done from None
    if done is None:
        raise full from None
    return done


def created(done: Enqueued, principal: Principal, mask: Mask) -> Reply:
    """The answer to an enqueue: the task that was made, or the one that stood already, for whoever may see it."""
    headers = ((b"location", b"/api/v1/tasks/%b" % str(done.id).encode()),)
    if done.created:
        return json_reply(enqueued_out(done, mask), 201, headers)
    _check_standing(principal, done.task)
    # Others may have made it, so its payload is for those who may read payloads.
    standing = task_out(done.task, mask, hidden=not principal.may(PAYLOAD))
    return json_reply(standing, 200, (*headers, (b"idempotency-replayed", b"true")))


async def create_batch(request: Request) -> Reply:
    tasks = await wire.batch(request)
    if request.principal.queues:
        check_queues(request.principal, tasks)
    request.parts.pressure.take_all(task.queue for task in tasks)
    done = await request.parts.ingest.enqueue_all(tasks, lambda task: _check_standing(request.principal, task))
    return json_reply(batch_out(done, request.parts.mask, reader=request.principal.may(PAYLOAD)), 201)


def check_queues(principal: Principal, tasks: Sequence[NewTask]) -> None:
    """Refuse what a key for some queues may not enqueue: into others, and in place of a task that may be in another."""
    for task in tasks:
        if not principal.sees(task.queue) or task.on_conflict != "keep":
            raise forbidden()


def _check_standing(principal: Principal, task: Task) -> None:
    if not principal.sees(task.queue):
        raise forbidden()


def _out(request: Request, task: Task) -> TaskOut:
    return task_out(task, request.parts.mask, hidden=not request.principal.may(PAYLOAD))


async def listing(request: Request) -> Reply:
    return await page(request, filter_of(request, request.query))


async def page(request: Request, wanted: Filter) -> Reply:
    """One page of `wanted`, by `limit` and `offset` or `cursor` of the query."""
    limit = request.query.get("limit", DEFAULT_LIMIT)
    offset = request.query.get("offset", 0)
    cursor = request.query.get("cursor")
    if cursor is not None and "offset" in request.query:
        raise Refused("invalid_query", "give offset or cursor, not both", errors=(("cursor", "excludes offset"),))
    cursors = request.parts.cursors
    after = await cursors.read(wanted, cursor) if cursor is not None else None
    try:
        async with asyncio.timeout(LIST_SECONDS):
            found = await request.parts.search.page(wanted, limit=limit, offset=offset, after=after)
    except TimeoutError:
        raise busy("overloaded", f"this list takes longer than {LIST_SECONDS:g} s; narrow its filters") from None
    return json_reply(
        TaskList(
            tasks=[task_row(task) for task in found.tasks],
            limit=limit,
            offset=offset,
            total=found.total,
            total_is_estimate=found.total_is_estimate,
            next_cursor=await cursors.make(wanted, found.next) if found.next else None,
        )
    )


async def get(request: Request) -> Reply:
    return json_reply(_out(request, await _task(request)))


async def cancel(request: Request) -> Reply:
    id = await _seen_id(request)
    reason = {"reason": request.query["reason"]} if "reason" in request.query else {}
    canceling = await request.parts.tasks.request_cancel(id, **reason, by=request.actor)
    if canceling.found in (State.COMPLETED, State.DEAD):
        raise WrongState(canceling.found.value, "only PENDING and RUNNING tasks can be canceled")
    if canceling.worker is not None and request.parts.notifier is not None:
        request.parts.notifier.cancel(canceling.worker)
    found = ((b"dhara-found", canceling.found.value.encode()),)
    return json_reply(_out(request, await _task(request)), 202 if canceling.found is State.RUNNING else 200, found)


async def retry(request: Request) -> Reply:
    id = await _seen_id(request)
    change = await wire.change(request)
    if change.queue is not None and not request.principal.sees(change.queue):
        raise forbidden()
    parts = request.parts
    await parts.tasks.revive(
        id,
        queue=change.queue,
        priority=change.priority,
        payload=change.payload,
        run_at=change.run_at,
        by=request.actor,
    )
    task = await _task(request)
    if parts.notifier is not None and change.run_at is None:
        parts.notifier.wake(task.queue)
    return json_reply(_out(request, task))


async def logs(request: Request) -> Reply:
    return json_reply(LogList([log_out(entry) for entry in await request.parts.tasks.logs(await _seen_id(request))]))


async def attempts(request: Request) -> Reply:
    task = await _task(request)
    return json_reply(AttemptList([attempt_out(one) for one in await request.parts.tasks.attempts(task.id)]))


async def explain(request: Request) -> Reply:
    id = await _seen_id(request)
    facts = await request.parts.tasks.facts(id)
    return json_reply(explain_out(id, facts.status, reasons_of(facts, request.parts.settings.stale_after)))


async def wait(request: Request) -> Reply:
    task = await _task(request)
    if task.status not in FINAL:
        await request.parts.waiters.wait(task.id, request.query.get("timeout", DEFAULT_WAIT), request.receive)
        if not request.parts.auth.stands(request.principal):
            raise unauthorized()
        task = await _task(request)
    return json_reply(_out(request, task), 200 if task.status in FINAL else 202)


async def dead_letters(request: Request) -> Reply:
    return await page(request, filter_of(request, {**request.query, "status": [State.DEAD]}))


def id_of(request: Request) -> UUID:
    """The id in the path. Another spelling of a UUID is as unknown as an unknown id."""
    text = request.path["id"]
    if not _ID.fullmatch(text):
        raise not_found()
    return UUID(text)


async def _task(request: Request) -> Task:
    task = await request.parts.tasks.get(id_of(request))
    if not request.principal.sees(task.queue):
        raise not_found()
    return task


async def _seen_id(request: Request) -> UUID:
    """The id in the path, of a task that the principal may see."""
    return (await _task(request)).id if request.principal.queues else id_of(request)


def filter_of(request: Request, query: Any) -> Filter:
    """The filter that a query's parameters say, within the queues and the payloads that the principal may see."""
    principal = request.principal
    fields = {name: query[name] for name in Filter.__struct_fields__ if name in query}
    fields["status"] = tuple(sorted(set(query.get("status", ()))))
    fields["ids"] = tuple(query.get("id", ()))
    wanted = Filter(**fields | {"queues": principal.queues})
    return reaching(wanted, request.parts.mask) if principal.may(PAYLOAD) else wanted
