"""From what the user wrote to `NewTask`: a call or a type's name, a payload, options. Pure but for the clock's value."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict
from uuid import UUID

import msgspec

from dhara.domain import limits, validate
from dhara.domain.task import Call, NewTask
from dhara.errors import InvalidBatch, InvalidTask
from dhara.store.ids import new_id, new_ids

# What `enqueue_many` takes: a handler's call, or the fields of a task by name (`type` required).
Item = Call | Mapping[str, Any]
_MOST_KNOWN = 100
# An escape begins behind an even number of backslashes; valid JSON has them in texts only.
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


class Options(TypedDict, total=False):
    """What can be said of a task beside its type and payload; None is the same as not given.

    `delay` and `timeout` are seconds or a `timedelta`; `run_at` and `expires_at` need a zone.
    """

    queue: str | None
    priority: int | None
    max_retries: int | None
    run_at: datetime | None
    delay: float | timedelta | None
    idempotency_key: str | None
    timeout: float | timedelta | None
    expires_at: datetime | None
    tags: Sequence[str] | None
    unique_key: str | None
    unique_for: str | float | timedelta | None
    on_conflict: str | None
    retention: float | timedelta | None
    concurrency_key: str | None
    traceparent: str | None


def build(what: object, payload: Any, options: Mapping[str, Any]) -> NewTask:
    """One task to enqueue. Raises `InvalidTask` naming every wrong field, or `TypeError` for a wrong kind of call."""
    match what:
        case Call():
            if payload is not None:
                raise TypeError("a call has its payload already; give a call, or a type with a payload")
            kind, payload, defaults = what.type, what.payload, what.defaults
        case str():
            kind, defaults = what, {}
        case _:
            hint = "; call its .s(...) first" if hasattr(what, "s") else ""
            raise TypeError(f"enqueue takes a handler's call or a task type, not {type(what).__name__}{hint}")
    fields = {**defaults, **{name: _plain(value) for name, value in options.items() if value is not None}}
    return validate.new_task({**fields, "type": kind}, checked_payload(payload), id=new_id(), now=datetime.now(UTC))


def checked_payload(value: Any) -> str:
    """JSON text of a payload; a `msgspec.Raw` is JSON text already and stays byte for byte what it is."""
    if not isinstance(value, msgspec.Raw):
        return validate.encode_json({} if value is None else value, what="payload", most_bytes=limits.PAYLOAD_BYTES)
    raw = bytes(value)
    if len(raw) > limits.PAYLOAD_BYTES:
        raise InvalidTask([("payload", f"is larger than {limits.PAYLOAD_BYTES // 1024} KiB")], "payload_too_large")
    try:
        decoded = _read(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidTask([("payload", f"is not JSON: {error}")]) from None
    # Decoded, the value of a key that comes again is gone; PostgreSQL reads it all the same.
    if b"\\u0000" in raw and _NUL.search(raw):
        raise InvalidTask([("payload", str(validate.text_problem("\0")))], "invalid_string")
    validate.encode_json(decoded, what="payload", most_bytes=6 * limits.PAYLOAD_BYTES)
    text = raw.decode()
    if validate.has_long_number(text):
        raise InvalidTask([("payload", validate.LONG_NUMBER)])
    return text


_read = msgspec.json.Decoder(float_hook=validate.number).decode


def build_many(items: Iterable[Item], options: Mapping[str, Any]) -> list[NewTask]:
    """Many tasks; `options` hold for all, an item's own fields first. Raises `InvalidBatch` with the index of the bad one."""
    return list(Built(items, options))


class Built:
    """The tasks of `build_many`, each built when it is first asked for, and kept. Raises as that does."""

    def __init__(self, items: Iterable[Item], options: Mapping[str, Any]) -> None:
        if options.get("idempotency_key") is not None:
            raise TypeError("an idempotency key names one task; give each item its own")
        self._items = items if isinstance(items, Sequence) else list(items)
        self._ids = new_ids(len(self._items))
        self._options = options
        self._known: dict[Any, NewTask] = {}
        self._made: list[NewTask] = []

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[NewTask]:
        return iter(self.upto(len(self)))

    def upto(self, end: int) -> list[NewTask]:
        """The tasks before index `end`, and whatever was built beyond it."""
        made = self._made
        for index in range(len(made), min(end, len(self))):
            try:
                made.append(_build_item(self._items[index], self._ids[index], self._options, self._known))
            except InvalidTask as error:
                raise InvalidBatch(index, error.problems) from None
        return made


def _build_item(item: Item, id: UUID, options: Mapping[str, Any], known: dict[Any, NewTask]) -> NewTask:
    """`known`: tasks whose fields have been checked; one that differs from them in its payload only is made alike."""
    what, payload, fields = _parts(item, options)
    try:
        key = (what, *fields.items(), *map(type, fields.values())) if fields else what
        alike = known.get(key)
    except TypeError:  # A list of tags, say, is no key.
        return msgspec.structs.replace(build(what, payload, fields), id=id)
    if alike is not None:
        return msgspec.structs.replace(alike, id=id, payload=checked_payload(payload))
    made = msgspec.structs.replace(build(what, payload, fields), id=id)
    if len(known) < _MOST_KNOWN:
        known[key] = made
    return made


def _parts(item: Item, options: Mapping[str, Any]) -> tuple[str, Any, Mapping[str, Any]]:
    """Type, payload and fields: a call's defaults give way to the options, and these to a mapping's own fields."""
    if isinstance(item, Call):
        return item.type, item.payload, {**item.defaults, **options}
    if type(item) is not dict and not isinstance(item, Mapping):
        raise TypeError(f"enqueue_many takes calls and mappings of task fields, not {type(item).__name__}")
    fields = {**options, **item}
    what, payload = fields.pop("type", None), fields.pop("payload", None)
    if isinstance(what, Call):
        if payload is not None:
            raise TypeError("a call has its payload already; give a call, or a type with a payload")
        return what.type, what.payload, {**what.defaults, **fields}
    if not isinstance(what, str):
        raise InvalidTask([("type", "required: a task type")])
    return what, payload, fields


def _plain(value: Any) -> Any:
    return value.total_seconds() if isinstance(value, timedelta) else value


def to_json(new: Sequence[NewTask]) -> str:
    """What the SQL function `dhara.enqueue_all` takes: a JSON list, payloads as they are."""
    return msgspec.json.encode([as_object(task) for task in new]).decode()


def as_object(task: NewTask) -> dict[str, Any]:
    """The fields that are given, by name."""
    fields = {name: getattr(task, name) for name in task.__struct_fields__}
    given = {name: value for name, value in fields.items() if value is not None and value != ()}
    return given | {"payload": msgspec.Raw(task.payload.encode())}
