"""The one composed query: filters and keyset pages over `tasks`, newest first.

Only fixed fragments are composed; every value is a parameter. What a page costs does not depend on the number of tasks:

    few       matches are PENDING, RUNNING or DEAD, and the partial index of those states holds few: those are read, all of them
    walk      else the newest WALK tasks below the cursor are looked at; a page that comes back short looks at as many again
              while WALKING seconds last, and then goes on where the walk ended, by its `next`
    skip      where no match can be PENDING, a backlog that was never claimed is stepped over: it has no history
    jump      with `created_before` the walk begins, and with `created_after` it ends, by the times that ids bear

No index serves type, queue or tags of final tasks: each would have to be kept with every claim and settlement. Nor does
one serve texts: `q` is looked for in what a walk passes, in payloads only where they are small.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace

from dhara.domain.ids import least_id
from dhara.domain.lifecycle import State
from dhara.domain.masking import Mask
from dhara.domain.task import Task
from dhara.store.pool import Executor
from dhara.store.sql import load, qualify
from dhara.store.tasks import tasks_of

COUNT_CAP = 10_000
FEW = 10_000
WALK = 25_000
# Looking for a text costs several times as much a task.
WALK_TEXT = 10_000
# Bytes of a payload, as it is stored, up to which a text is looked for in it.
PAYLOAD_SEARCHED = 8_192
# How many tasks are looked at for the figures of facets.
FACETED = 5_000
# Seconds that a page whose walk was in vain goes on looking.
WALKING = 0.25
# How far the clock of an enqueuer, which the id tells, may differ from the database's.
SLACK = timedelta(minutes=5)
_INDEXED = (State.PENDING, State.RUNNING, State.DEAD)
_LAST = UUID(int=2**128 - 1)
_NOBODY = UUID(int=0)
_ID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")


class Filter(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which tasks; all given conditions hold together. `q` is looked for in id, type, key and error, and with `in_payload` in
    the text of small payloads too, but for those with one of the texts `veiled` in it; `ids` are the only ones looked at;
    `uncanceled`: only those whose cancellation was not asked for; `queues` are patterns with `*`, of which one must fit (none:
    every queue)."""

    status: tuple[State, ...] = ()
    type: str | None = None
    queue: str | None = None
    retrying: bool = False
    due: str | None = None
    worker: UUID | None = None
    tag: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    q: str | None = None
    in_payload: bool = False
    veiled: tuple[str, ...] = ()
    fingerprint: str | None = None
    ids: tuple[UUID, ...] = ()
    uncanceled: bool = False
    queues: tuple[str, ...] = ()


class Page(Struct, frozen=True):
    """One page. `total` is exact unless `total_is_estimate` (then: about that many). `next` continues it; None: that is all.

    A page of rare matches among many tasks may be short, even empty, and yet have a `next`.
    """

    tasks: list[Task]
    total: int
    total_is_estimate: bool
    next: UUID | None


class Facets(Struct, frozen=True):
    """Matches by type and by queue, the most first; among the `newest` so many tasks only, None: among all."""

    types: dict[str, int]
    queues: dict[str, int]
    newest: int | None


def reaching(wanted: Filter, mask: Mask) -> Filter:
    """`wanted`, its `q` looked for in payloads too, as far as `mask` lets: for those who may read payloads."""
    veiled = mask.veiled
    if wanted.q is None or veiled is None:
        return wanted
    return replace(wanted, in_payload=True, veiled=veiled)


class _Where:
    def __init__(self) -> None:
        self.parts: list[str] = []
        self.args: list[Any] = []

    def add(self, fragment: str, *values: Any) -> None:
        """`fragment` with `{}` for each value's parameter."""
        self.parts.append(fragment.format(*map(self.value, values)))

    def value(self, value: Any) -> str:
        """The parameter that stands for `value`."""
        self.args.append(value)
        return f"${len(self.args)}"

    def text(self) -> str:
        return " AND ".join(self.parts) or "true"


def like(pattern: str) -> str:
    """A pattern of queues, in which `*` stands for any characters, as LIKE has it."""
    return pattern.replace("_", "\\_").replace("*", "%")


def _where(f: Filter, where: _Where | None = None) -> _Where:
    """The conditions of a filter, added to those of `where`."""
    where = where or _Where()
    if f.status:
        if len(f.status) == 1:
            # A plain comparison with a literal of ours lets the planner use the partial indexes.
            where.add(f"status = '{State(f.status[0]).value}'")
        else:
            where.add("status = ANY ({}::text[])", [state.value for state in f.status])
    if f.type is not None:
        where.add("type = {}", f.type)
    if f.queue is not None:
        where.add("queue = {}", f.queue)
    if f.queues:
        where.add("queue LIKE ANY ({}::text[])", [like(pattern) for pattern in f.queues])
    if f.retrying:
        where.add("status = 'PENDING' AND failures > 0")
    if f.due is not None:
        where.add(f"status = 'PENDING' AND run_at {'<=' if f.due == 'ready' else '>'} statement_timestamp()")
    if f.worker is not None:
        where.add("status = 'RUNNING' AND locked_by = {}", f.worker)
    if f.tag is not None:
        where.add("{} = ANY (tags)", f.tag)
    if f.created_after is not None:
        where.add("created_at > {}", f.created_after)
    if f.created_before is not None:
        where.add("created_at < {}", f.created_before)
    if f.fingerprint is not None:
        where.add("fingerprint = {}", f.fingerprint)
    if f.ids:
        where.add("id = ANY ({}::uuid[])", f.ids)
    if f.uncanceled:
        where.add("cancel_requested_at IS NULL")
    if f.q is not None:
        pattern = _within(f.q)
        text = "id::text = lower({}) OR type ILIKE {} OR idempotency_key ILIKE {} OR last_error ILIKE {}"
        values: list[Any] = [f.q, pattern, pattern, pattern]
        if f.in_payload:
            # Its stored size is known without reading it; and letters' case by the C locale costs a fraction of a language's.
            text += ' OR CASE WHEN pg_column_size(payload) <= {} THEN payload::text COLLATE "C" ILIKE {}'
            text += " AND payload::text NOT LIKE ALL ({}::text[]) END"
            values += [PAYLOAD_SEARCHED, pattern, [_within(one) for one in f.veiled]]
        where.add(f"({text})", *values)
    return where


def _within(text: str) -> str:
    """The pattern that LIKE has for whatever contains `text`."""
    return "%" + text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"


class Search:
    """Lists of tasks."""

    def __init__(self, db: Executor, schema: str = "dhara") -> None:
        self.db = db
        self.schema = schema

    async def page(self, wanted: Filter, *, limit: int = 20, offset: int = 0, after: UUID | None = None) -> Page:
        """A page of at most `limit` tasks, newest first (UUIDv7 ids grow with time); `after` continues a page by its `next`."""
        if (found := await self._by_id(wanted)) is not None:
            shown = [found] if (after is None or found.id < after) and not offset else []
            return Page(shown[:limit], 1, False, None)
        few = await self._are_few(wanted)
        top = await self._top(wanted)
        total, estimated = await self._count(wanted, few, top)
        start = top if after is None else min(top, after)
        bounded = not few and wanted != Filter()
        rows = await self._below(wanted, few, start, limit + 1, offset)
        end = await self._end(wanted, start) if bounded and len(rows) <= limit else None
        until = time.monotonic() + WALKING
        # A short page, and more to look at: on, for a while. With an offset it stays what one walk gives.
        while end is not None and len(rows) <= limit and not offset and time.monotonic() < until:
            beyond = await self._skip(wanted, end)
            if beyond is None:
                end = None
                break
            rows += await self._below(wanted, few, beyond, limit + 1 - len(rows), 0)
            end = await self._end(wanted, beyond)
        if len(rows) > limit:
            end = rows[limit - 1].id
        return Page(rows[:limit], max(total, len(rows[:limit])), estimated, end)

    async def facets(self, wanted: Filter) -> Facets:
        """How many tasks match by type, whatever type `wanted` says, and by queue, whatever queue it says."""
        free = replace(wanted, type=None, queue=None)
        few = await self._are_few(free)
        where = _Where()
        if few:
            source = _held(free, where)
        else:
            start = await self._skip(free, await self._top(free))
            source = _walk(free, where, start or _NOBODY)
        query = f"""SELECT type, queue, count(*) FILTER (WHERE {_where(free, where).text()}), count(*)
            FROM (SELECT * FROM ({source}) AS walked {"" if few else f"LIMIT {FACETED}"}) AS seen GROUP BY type, queue"""
        rows = await self._fetch(query, where)
        types: Counter[str] = Counter()
        queues: Counter[str] = Counter()
        for type, queue, n, _ in rows:
            types[type] += n if wanted.queue in (None, queue) else 0
            queues[queue] += n if wanted.type in (None, type) else 0
        whole = few or sum(row[3] for row in rows) < FACETED
        return Facets(_most(types), _most(queues), None if whole else FACETED)

    async def count(self, wanted: Filter) -> tuple[int, bool]:
        """How many match; True if that is an estimate."""
        return await self._count(wanted, await self._are_few(wanted), await self._top(wanted))

    async def walk(self, wanted: Filter, after: UUID, most: int) -> Sequence[UUID]:
        """The ids of at most `most` matching tasks above `after`, in their order: the next batch of a walk over all."""
        where = _where(wanted)
        where.add("id > {}", after)
        return await self._ids(where, "ORDER BY id", most)

    async def some(self, wanted: Filter, most: int) -> Sequence[UUID]:
        """The ids of at most `most` matching tasks, in no order."""
        return await self._ids(_where(wanted), "", most)

    async def _ids(self, where: _Where, order: str, most: int) -> Sequence[UUID]:
        where.args.append(most)
        query = f"SELECT id FROM dhara.tasks WHERE {where.text()} {order} LIMIT ${len(where.args)}"
        return [row[0] for row in await self._fetch(query, where)]

    # the parts of a page

    async def _by_id(self, wanted: Filter) -> Task | None:
        """The one task whose id is looked for."""
        if wanted.q is None or not _ID.fullmatch(wanted.q.lower()):
            return None
        where = _where(wanted)
        where.add("id = {}", UUID(wanted.q))
        rows = await self._fetch(f"SELECT * FROM dhara.tasks WHERE {where.text()}", where)
        return tasks_of(rows)[0] if rows else None

    async def _are_few(self, wanted: Filter) -> bool:
        """Whether the states that can match are indexed, and hold few tasks altogether."""
        if wanted.ids:
            return True
        states = _states(wanted)
        if not states or not set(states) <= set(_INDEXED):
            return False
        where = _Where()
        query = f"SELECT count(*) FROM (SELECT FROM ({_held(wanted, where)}) AS held LIMIT {FEW + 1}) AS t"
        found = await self._fetch(query, where)
        return bool(found[0][0] <= FEW)

    async def _top(self, wanted: Filter) -> UUID:
        """Below which id matches are: with `created_before`, where there are too many to look at all, by the times in ids."""
        if wanted.created_before is None or await self._end(wanted, _LAST) is None:
            return _LAST
        return _id_at(wanted.created_before + SLACK)

    async def _skip(self, wanted: Filter, start: UUID) -> UUID | None:
        """Where a walk from `start` may begin as well: whoever is PENDING no more has a history, which a backlog that nobody
        has claimed yet lacks, however long it is. None: there is nothing more."""
        states = _states(wanted)
        if not states or State.PENDING in states:
            return start
        query = "SELECT task_id FROM dhara.task_history WHERE task_id < $1 ORDER BY task_id DESC LIMIT 1"
        found = await self.db.fetchval(qualify(query, self.schema), start)
        return None if found is None else UUID(int=found.int + 1)

    async def _below(self, wanted: Filter, few: bool, start: UUID, most: int, offset: int) -> list[Task]:
        """Matches below the id `start`: among the few, or among those that one walk looks at."""
        where = _Where()
        source = _held(wanted, where) if few else _walk(wanted, where, start)
        _where(wanted, where)
        if start != _LAST:
            where.add("id < {}", start)
        where.args += [most, offset]
        n = len(where.args)
        # Materialized, so that no other index than the one that holds the few is thought of.
        query = f"""WITH seen AS {"MATERIALIZED" if few else "NOT MATERIALIZED"} ({source})
            SELECT * FROM seen WHERE {where.text()} ORDER BY id DESC LIMIT ${n - 1} OFFSET ${n}"""
        return tasks_of(await self._fetch(query, where))

    async def _end(self, wanted: Filter, start: UUID) -> UUID | None:
        """The last id that a walk from `start` looks at; None if there can be no match beyond it."""
        where = _Where()
        source = _walk(wanted, where, start, "id")
        rows = await self._fetch(f"SELECT id FROM ({source}) AS seen OFFSET {_length(wanted) - 1}", where)
        if not rows or (wanted.created_after is not None and rows[0][0] < _id_at(wanted.created_after - SLACK)):
            return None
        end: UUID = rows[0][0]
        return end

    async def _count(self, wanted: Filter, few: bool, top: UUID) -> tuple[int, bool]:
        """Exact up to the cap, and beyond where one walk comes to the end; else an estimate."""
        by_flows = wanted == Filter(status=wanted.status, queue=wanted.queue)
        where = _Where()
        if few:
            source = _held(wanted, where)
        elif wanted == Filter():
            source = "SELECT id FROM dhara.tasks"
        else:
            source = _walk(wanted, where, top)
        matching = f"SELECT FROM ({source}) AS seen WHERE {_where(wanted, where).text()}"
        if few or by_flows:
            matching += f" LIMIT {COUNT_CAP + 1}"
        matched: int = (await self._fetch(f"SELECT count(*) FROM ({matching}) AS t", where))[0][0]
        if few or wanted == Filter() or await self._end(wanted, top) is None:
            exact = matched <= COUNT_CAP or not by_flows
        else:
            exact = False
        if exact:
            return matched, False
        if by_flows:
            return max(min(matched, COUNT_CAP), await self._total(wanted)), True
        # As many as if all were like those that the walk has looked at.
        return max(matched, round(matched / _length(wanted) * await self._total(Filter()))), True

    async def _total(self, wanted: Filter) -> int:
        """Tasks of the filter's states and queue by the flows, whatever else it says."""
        states = [state.value for state in wanted.status] or None
        total: int = await self.db.fetchval(load("stats/total", self.schema), states, wanted.queue)
        return max(0, total)

    async def _fetch(self, query: str, where: _Where) -> list[Any]:
        return await self.db.fetch(qualify(query, self.schema), *where.args)


def _states(f: Filter) -> tuple[State, ...]:
    """The states that a match can be in; empty: any."""
    if f.retrying or f.due is not None:
        return (State.PENDING,)
    if f.worker is not None:
        return (State.RUNNING,)
    return f.status


def _held(f: Filter, where: _Where) -> str:
    """All tasks in the states of the filter, each state by its own partial index; or those of its ids."""
    if f.ids:
        return f"SELECT * FROM dhara.tasks WHERE id = ANY ({where.value(f.ids)}::uuid[])"
    more = f" AND queue = {where.value(f.queue)}" if f.queue is not None else ""
    more += f" AND fingerprint = {where.value(f.fingerprint)}" if f.fingerprint is not None else ""
    return " UNION ALL ".join(
        f"SELECT * FROM dhara.tasks WHERE status = '{State(state).value}'{more}" for state in _states(f)
    )


def _walk(f: Filter, where: _Where, start: UUID, columns: str = "*") -> str:
    """The newest tasks below `start`, as many as one walk looks at; all of them where there is nothing to filter."""
    conditions = ["status = 'DEAD'"] if _states(f) == (State.DEAD,) else []
    if start != _LAST:
        # Not said where it says nothing: before a table's first ANALYZE it makes the planner fetch all rows by a bitmap and
        # sort them, instead of going down the index. (A table of millions looks large enough without.)
        conditions.append(f"id < {where.value(start)}")
    only = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    most = "" if f == Filter() else f" LIMIT {_length(f)}"
    return f"SELECT {columns} FROM dhara.tasks {only} ORDER BY id DESC{most}"


def _most(counts: Counter[str]) -> dict[str, int]:
    return {name: n for name, n in counts.most_common() if n}


def _length(f: Filter) -> int:
    return WALK if f.q is None else WALK_TEXT


def _id_at(moment: datetime) -> UUID:
    return least_id(moment.timestamp())
