"""The list of tasks: facets and search in the URL, pages by keyset."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct
from starlette.responses import Response

from dhara.dashboard.visit import Visit
from dhara.domain import limits
from dhara.domain.access import PAYLOAD
from dhara.domain.lifecycle import State
from dhara.domain.validate import text_problem
from dhara.store.search import PAYLOAD_SEARCHED, WALK_TEXT, Facets, Filter, reaching

PAGE = 50
SEARCH_LENGTH = 200
# As many types as stand above a list with their figures.
TYPES = 8


class Wanted(Struct, frozen=True):
    """What the query of a list asks for: the filter, and what of the query could not be understood."""

    filter: Filter
    problems: tuple[str, ...]


async def show(visit: Visit) -> Response:
    return await listing(visit, "/tasks")


async def listing(visit: Visit, path: str, states: tuple[State, ...] = (), **further: Any) -> Response:
    """A page of the list at `path`; `states` narrow it, whatever the query says; `further` is for its template."""
    snapshot = await visit.desk.pulse.snapshot()
    asked = wanted(visit)
    if states:
        asked = Wanted(msgspec.structs.replace(asked.filter, status=states), asked.problems)
    after, problem = _after(visit.one("after"))
    problems = [*asked.problems, *([problem] if problem else [])]
    within = limited(visit, asked.filter)
    page = None if problems else await visit.desk.search.page(within, limit=PAGE, after=after)
    facets = Facets({}, {}, None) if problems else await visit.desk.search.facets(within)
    workers = [] if visit.limited else await visit.desk.workers.recent(0)
    return visit.page(
        "tasks.html" if path == "/tasks" else "dead.html",
        now=snapshot.now(),
        snapshot=snapshot,
        page=page,
        facets=facets,
        most_types=TYPES,
        problems=problems,
        query=query_of(asked.filter),
        asked=asked.filter,
        searched=_searched(visit),
        looked_at=WALK_TEXT,
        states=list(State),
        first=after is None,
        list_path=path,
        types=sorted({type for worker in workers for type in worker.types} | set(facets.types) | _shown_types(page)),
        queues=[queue.name for queue in snapshot.queues if visit.sees(queue.name)],
        **further,
    )


def limited(visit: Visit, asked: Filter) -> Filter:
    """`asked`, within the queues and the payloads that the visitor may see."""
    within = msgspec.structs.replace(asked, queues=visit.queues)
    return reaching(within, visit.desk.mask) if visit.may(PAYLOAD) else within


def _searched(visit: Visit) -> tuple[str, str | None]:
    """Where a text is looked for, in a few words; and what is left out of it."""
    if not visit.may(PAYLOAD):
        return "id, type, key, error", "Payloads are searched for keys with read:payload only."
    veiled = visit.desk.mask.veiled
    if veiled is None:
        return "id, type, key, error", "Payloads are not searched, for every field may be masked."
    left = f"Payloads of up to {PAYLOAD_SEARCHED // 1024} KiB are searched"
    return "id, type, key, error, payload", f"{left}{', but for those with masked fields' if veiled else ''}."


def _shown_types(page: Any) -> set[str]:
    return {task.type for task in page.tasks} if page else set()


def wanted(visit: Visit, *, of_form: bool = False) -> Wanted:
    """The filter in the query (or in the form that carries one on); what makes no sense is a problem, not an error."""
    one, many = (visit.field, visit.fields) if of_form else (visit.one, visit.many)
    problems: list[str] = []
    states = []
    for text in dict.fromkeys(many("status")):
        if text in State.__members__:
            states.append(State(text))
        else:
            problems.append(f"status {text!r} is none of {', '.join(State)}")
    fields: dict[str, Any] = {"status": tuple(states)}
    for name in ("type", "queue"):
        if text := one(name):
            if limits.NAME.fullmatch(text):
                fields[name] = text
            else:
                problems.append(f"{name} {text!r} is not a name: {limits.NAME_HINT}")
    for name, most in (("tag", limits.TAG_LENGTH), ("q", SEARCH_LENGTH), ("fingerprint", 255)):
        if text := one(name):
            if len(text) <= most and text.isprintable() and text_problem(text) is None:
                fields[name] = text
            else:
                problems.append(f"{name} must be at most {most} characters, all printable")
    if text := one("worker"):
        try:
            fields["worker"] = UUID(text)
        except ValueError:
            problems.append(f"worker {text!r} is not an id")
    if one("due") in ("ready", "delayed"):
        fields["due"] = one("due")
    if one("retrying") == "true":
        fields["retrying"] = True
    return Wanted(Filter(**fields), tuple(problems))


def query_of(asked: Filter) -> dict[str, Any]:
    """The query that `wanted` makes the same filter of."""
    return {
        "status": [state.value for state in asked.status],
        "type": asked.type,
        "queue": asked.queue,
        "tag": asked.tag,
        "worker": str(asked.worker) if asked.worker else None,
        "due": asked.due,
        "retrying": "true" if asked.retrying else None,
        "q": asked.q,
        "fingerprint": asked.fingerprint,
    }


def _after(text: str) -> tuple[UUID | None, str | None]:
    if not text:
        return None, None
    try:
        return UUID(text), None
    except ValueError:
        return None, "the address of this page of the list is damaged; begin with the first one"
