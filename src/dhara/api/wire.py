"""From a request to values: bodies, queries and the one header that matters; strict, and naming whatever is wrong.

The payload is sliced out of the body as bytes, so that it comes back as it came. Limits: a body of 1 MiB (a batch's: 4 MiB),
a payload of 256 KiB, 64 levels of nesting in a payload.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from msgspec import Raw, Struct

from dhara.api.exchange import ClientGone, Request
from dhara.api.problems import Refused
from dhara.api.strict import parse
from dhara.domain import limits
from dhara.domain.task import EMPTY_PAYLOAD, NewTask
from dhara.domain.validate import new_task
from dhara.errors import InvalidBatch, InvalidTask
from dhara.store.ids import new_id

BODY_BYTES = 1024 * 1024
BATCH_BODY_BYTES = 4 * 1024 * 1024
QUERY_FIELDS = 100
RETRY_FIELDS = ("queue", "priority", "payload", "run_at")
QUEUE_FIELDS = ("retention", "limit", "wait_objective")


_ONE = msgspec.json.Decoder(dict[str, Raw])
_MANY = msgspec.json.Decoder(list[dict[str, Raw]])
_WRAPPED = msgspec.json.Decoder(dict[str, list[dict[str, Raw]]])


class Param(Struct, frozen=True):
    """A query parameter. `parse` raises `ValueError` with what would be right; `many`: it may be repeated."""

    name: str
    parse: Callable[[str], Any]
    about: str
    schema: dict[str, Any] = msgspec.field(default_factory=lambda: {"type": "string"})
    many: bool = False


class Change(Struct, frozen=True, kw_only=True):
    """What a revival changes; None: nothing."""

    queue: str | None = None
    priority: int | None = None
    payload: str | None = None
    run_at: datetime | None = None


async def read(request: Request, most: int) -> bytes:
    """The body, at most `most` bytes. Raises `Refused`, or `ClientGone`."""
    # A server that has the whole of it already says so.
    whole: bytes | None = request.scope.get("dhara.body")
    if whole is not None and len(whole) <= most:
        return whole
    for length in request.headers(b"content-length"):
        if len(length) > 18 or (length.isdigit() and int(length) > most):
            raise _too_large(most)
    message = await request.receive()
    if not message.get("more_body") and message["type"] == "http.request":
        body: bytes = message.get("body", b"")
        if len(body) > most:
            raise _too_large(most)
        return body
    collected = bytearray()
    while True:
        if message["type"] == "http.disconnect":
            raise ClientGone
        collected += message.get("body", b"")
        if len(collected) > most:
            raise _too_large(most)
        if not message.get("more_body"):
            return bytes(collected)
        message = await request.receive()


def _too_large(most: int) -> Refused:
    return Refused("body_too_large", f"the body is larger than {most // 1024:,} KiB")


def check_media(request: Request) -> None:
    """Refuse everything but one `Content-Type: application/json`, UTF-8, not compressed."""
    types = request.headers(b"content-type")
    if len(types) != 1 or (types[0] != b"application/json" and not _is_json(types[0])):
        raise Refused("unsupported_media_type", "send one header `Content-Type: application/json`")
    encodings = request.headers(b"content-encoding")
    if any(encoding.strip().lower() != b"identity" for encoding in encodings):
        raise Refused("unsupported_media_type", "compressed bodies are refused; leave Content-Encoding out")


def _is_json(media: bytes) -> bool:
    kind, *parameters = (part.strip().lower() for part in media.split(b";"))
    return kind == b"application/json" and all(p in (b"", b"charset=utf-8", b'charset="utf-8"') for p in parameters)


async def created_task(request: Request) -> NewTask:
    """The task of a POST. Raises `Refused` or `InvalidTask`."""
    check_media(request)
    return new_task_of(await read(request, BODY_BYTES), request.headers(b"idempotency-key"))


def new_task_of(body: bytes, keys: tuple[bytes, ...] = ()) -> NewTask:
    """The task of a body, and of the values of an Idempotency-Key header. Raises `Refused` or `InvalidTask`."""
    value = parse(body, limits.JSON_DEPTH + 1)
    if not isinstance(value, dict):
        raise Refused("invalid_task", "the body must be an object", errors=(("body", "must be an object"),))
    if keys:
        _with_header_key(value, keys)
    return _task(value, _raw(_ONE, body), datetime.now(UTC))


async def batch(request: Request) -> list[NewTask]:
    """The tasks of a batch, `{"tasks": [...]}` or the list alone. Raises `InvalidBatch` naming the first bad one."""
    check_media(request)
    body = await read(request, BATCH_BODY_BYTES)
    value = parse(body, limits.JSON_DEPTH + 3)
    wrapped = isinstance(value, dict)
    if wrapped and (unknown := [key for key in value if key != "tasks"]):
        raise Refused("invalid_batch", "unknown field", errors=[(key, "unknown field") for key in unknown])
    items = value.get("tasks") if wrapped else value
    low, high = limits.BATCH
    if not isinstance(items, list) or not low <= len(items) <= high:
        raise Refused(
            "invalid_batch",
            f"send {low:,} to {high:,} tasks",
            errors=(("tasks", f"{low:,} to {high:,} tasks"),),
        )
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            raise InvalidBatch(index, [("body", "must be an object")])
    raws = _raw(_WRAPPED, body)["tasks"] if wrapped else _raw(_MANY, body)
    return _batch(items, raws)


def _batch(items: list[dict[str, Any]], raws: list[dict[str, Raw]]) -> list[NewTask]:
    now = datetime.now(UTC)
    tasks: list[NewTask] = []
    keys: dict[tuple[str, str], int] = {}
    for index, (item, raw) in enumerate(zip(items, raws, strict=True)):
        try:
            task = _task(item, raw, now)
        except InvalidTask as error:
            raise InvalidBatch(index, error.problems) from None
        tasks.append(task)
        if task.idempotency_key is not None:
            first = keys.setdefault((task.type, task.idempotency_key), index)
            if first != index:
                raise InvalidBatch(index, [("idempotency_key", f"is also that of [{first}]")])
    return tasks


async def change(request: Request) -> Change:
    """What a revival changes; an absent body changes nothing. Raises `Refused` or `InvalidTask`."""
    body = await read(request, BODY_BYTES)
    if not body:
        return Change()
    check_media(request)
    value = parse(body, limits.JSON_DEPTH + 1)
    if not isinstance(value, dict):
        raise Refused("invalid_task", "the body must be an object", errors=(("body", "must be an object"),))
    unknown = [
        (key, "unknown field; a retry may change " + ", ".join(RETRY_FIELDS))
        for key in value
        if key not in RETRY_FIELDS
    ]
    if unknown:
        raise InvalidTask(unknown)
    given = set(value)
    task = _task({"type": "x", **value}, _raw(_ONE, body), datetime.now(UTC))
    return Change(**{field: getattr(task, field) for field in RETRY_FIELDS if field in given})


async def queue_change(request: Request) -> dict[str, Any]:
    """The settings of a queue that change. Raises `Refused`, or `InvalidTask` naming every wrong field."""
    check_media(request)
    value = parse(await read(request, BODY_BYTES), limits.JSON_DEPTH)
    if not isinstance(value, dict):
        problem = ("body", "must be an object with some of: " + ", ".join(QUEUE_FIELDS))
        raise InvalidTask([problem], "invalid_queue")
    known = ", ".join(QUEUE_FIELDS)
    problems = [(key, f"unknown field; of a queue may change: {known}") for key in value if key not in QUEUE_FIELDS]
    bounds = {"retention": limits.RETENTION_SECONDS, "wait_objective": limits.WAIT_OBJECTIVE_SECONDS}
    for name, (low, high) in bounds.items():
        seconds = value.get(name)
        if isinstance(seconds, bool) or not (
            seconds is None or (isinstance(seconds, int | float) and low <= seconds <= high)
        ):
            problems.append((name, f"seconds, a number from {low:g} to {high:g}, or null for the general setting"))
    least, most = limits.QUEUE_LIMIT
    number = value.get("limit")
    if number is not None and not (type(number) is int and least <= number <= most):
        problems.append(("limit", f"an integer from {least} to {most}, or null for the server's setting"))
    if problems:
        raise InvalidTask(problems, "invalid_queue")
    return value


async def fields(request: Request) -> tuple[dict[str, Any], str | None]:
    """An object's fields, and its payload as it came, if it has one; nothing is checked yet. Raises `Refused`."""
    check_media(request)
    body = await read(request, BODY_BYTES)
    value = parse(body, limits.JSON_DEPTH + 1)
    if not isinstance(value, dict):
        raise Refused("invalid_task", "the body must be an object", errors=(("body", "must be an object"),))
    if "payload" not in value:
        return value, None
    del value["payload"]
    sliced = bytes(_raw(_ONE, body)["payload"])
    if len(sliced) > limits.PAYLOAD_BYTES:
        raise InvalidTask([("payload", f"is larger than {limits.PAYLOAD_BYTES // 1024} KiB")], "payload_too_large")
    return value, sliced.decode()


def _raw(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    try:
        return decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise Refused("invalid_json", f"the body is not JSON: {error}") from None


def _task(value: dict[str, Any], raws: Mapping[str, Raw], now: datetime) -> NewTask:
    """`value` is the parsed object (its payload is taken out), `raws` the same as slices of the body."""
    payload = EMPTY_PAYLOAD
    if "payload" in value:
        del value["payload"]
        sliced = bytes(raws["payload"])
        if len(sliced) > limits.PAYLOAD_BYTES:
            problem = f"is larger than {limits.PAYLOAD_BYTES // 1024} KiB"
            raise InvalidTask([("payload", problem)], "payload_too_large")
        payload = sliced.decode()
    return new_task(value, payload, id=new_id(), now=now)


def _with_header_key(value: dict[str, Any], keys: tuple[bytes, ...]) -> None:
    """Put the `Idempotency-Key` header's value where the field is."""
    try:
        key = keys[0].decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidTask([("Idempotency-Key", "must be UTF-8")]) from None
    if len(keys) > 1:
        raise InvalidTask([("Idempotency-Key", "is given twice")])
    if value.setdefault("idempotency_key", key) != key:
        raise InvalidTask([("idempotency_key", "differs from the Idempotency-Key header; give one of them")])


def query(raw: bytes, known: tuple[Param, ...]) -> dict[str, Any]:
    """The query's values, parsed; absent ones are absent. Raises `Refused` naming every wrong parameter."""
    if not raw:
        return {}
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=QUERY_FIELDS)
    except ValueError:
        raise Refused("invalid_query", "the query is not UTF-8, or has too many parameters") from None
    by_name = {param.name: param for param in known}
    values: dict[str, Any] = {}
    problems = []
    for name, text in pairs:
        param = by_name.get(name)
        if param is None:
            problems.append((name, "unknown parameter; known: " + (", ".join(by_name) or "none")))
        elif name in values and not param.many:
            problems.append((name, "is given twice"))
        else:
            try:
                parsed = param.parse(text)
            except ValueError as error:
                problems.append((name, f"must be {error}"))
            else:
                values[name] = [*values.get(name, ()), parsed] if param.many else parsed
    if problems:
        detail = "; ".join(f"{name[:100]} {message}" for name, message in problems[:10])
        raise Refused("invalid_query", detail, errors=problems)
    return values
