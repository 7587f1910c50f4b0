"""Tasks behind a dhara server, through its HTTP API.

What is repeated, and when: reads, cancellations and enqueues, after lost connections, time-outs, and answers 429, 502, 503
and 504 (after their Retry-After), until `patience` is at its end. An enqueue without an idempotency key gets one, so that the
repetition of one whose answer was lost finds its task instead of making a second. A revival is repeated only where
it is certain that nothing was done: the connection was refused, or the server said that it was too busy.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit
from uuid import UUID

import msgspec
from msgspec import Raw, Struct

from dhara.client.backend import Row
from dhara.client.calls import Built, as_object
from dhara.domain import limits
from dhara.domain.lifecycle import FINAL, State
from dhara.domain.task import Attempt, Enqueued, LogEntry, NewTask, Task
from dhara.errors import (
    ConfigError,
    DharaError,
    IdempotencyConflict,
    InvalidBatch,
    InvalidTask,
    NotFound,
    QueueFull,
    SchemaError,
    Unavailable,
    WrongState,
)
from dhara.store.search import Filter, Page

if TYPE_CHECKING:
    import httpx

BATCH_BYTES = 3 * 1024 * 1024
# Long polls at a time; where more wait, they take turns of so many seconds.
MOST_POLLS = 500
TURN = 5.0
MOST_CALLS = 100
LONGEST_POLL = 25.0
_MOST_PAUSE = 2.0
_BUSY = (429, 502, 503, 504)
_OURS = "dhara-client-"
_FULL = re.compile(r"queue (\S+) takes ([\d,]+) PENDING tasks(?:; ([\d,]+) at once)?")


class _Problem(Struct):
    """What is read of a problem+json."""

    code: str = ""
    detail: str = ""
    errors: list[dict[str, str]] = []
    state: str = ""
    index: int | None = None
    task_id: str = ""


# No JSON, so nobody can take it for a payload.
HIDDEN = ""


class _Wired(Struct):
    """The JSON members of a task, which stay text; empty where there are none."""

    payload: Raw = Raw()
    result: Raw = Raw()
    progress: Raw = Raw()


class HttpBackend:
    """Tasks on a dhara server. Times are seconds; `patience` is how long a call goes on trying.

    An answer may take `command_timeout` beyond that. Raises `ConfigError` without httpx, or for a URL that cannot be right.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        connect_timeout: float = 5.0,
        command_timeout: float = 15.0,
        patience: float = 10.0,
        transport: Any = None,
    ) -> None:
        self._httpx = _import_httpx()
        self._base = _base(url)
        self._where = urlsplit(self._base).netloc.rpartition("@")[2]
        self._token = token
        self._connect_timeout = connect_timeout
        self._command_timeout = command_timeout
        self._patience = patience
        self._transport = transport
        self._http: httpx.AsyncClient | None = None
        self._polls = asyncio.Semaphore(MOST_POLLS)
        self._calls = asyncio.Semaphore(MOST_CALLS)
        self._waiting: set[asyncio.Task[Any]] = set()
        self._cursors: dict[tuple[Filter, UUID], str] = {}

    async def open(self) -> None:
        """Make sure that a server answers. Raises `Unavailable`."""
        headers = {"accept": "application/json", "user-agent": "dhara-client"}
        if self._token is not None:
            headers["authorization"] = f"Bearer {self._token}"
        limits = self._httpx.Limits(max_connections=None, max_keepalive_connections=100)
        self._http = self._httpx.AsyncClient(
            base_url=self._base, headers=headers, limits=limits, transport=self._transport
        )
        try:
            await self._ask("GET", "livez", patient=False)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        for waiter in self._waiting:
            waiter.cancel()
        http, self._http = self._http, None
        if http is not None:
            await http.aclose()

    async def check(self) -> None:
        """Raise `SchemaError` or `Unavailable` unless the server is ready."""
        answer = await self._ask("GET", "readyz", patient=False, accept=(503,))
        if answer.status_code != 503:
            return
        checks = _decode(answer.content, dict[str, Any]).get("checks") or {}
        failed = {name: check.get("detail") or check.get("status") for name, check in checks.items()}
        if checks.get("migrations", {}).get("status") == "failed":
            raise SchemaError(f"the server's database: {failed['migrations']}; run `dhara migrate up` there")
        raise Unavailable(f"the server at {self._where} is not ready: {failed}")

    async def enqueue(self, new: NewTask) -> Enqueued:
        """One task. Raises `InvalidTask`, `IdempotencyConflict`."""
        key, body = _body(new)
        answer = await self._ask("POST", "tasks", body=body)
        task = _task(answer.content)
        return Enqueued(task, created=answer.status_code == 201 or _is_ours(new, key, task))

    async def enqueue_many(self, given: Sequence[NewTask] | Built) -> list[Row]:
        """By batches of at most 1,000 tasks and 3 MiB: each is all or none, several together are not."""
        rows: list[Row] = []
        for chunk in _chunks(list(given)):
            keys, bodies = zip(*(_body(task) for task in chunk), strict=True)
            try:
                answer = await self._ask("POST", "tasks/batch", body=b'{"tasks":[' + b",".join(bodies) + b"]}")
            except (IdempotencyConflict, InvalidBatch) as error:
                _move(error, len(rows), chunk)
            for task, key, raw in zip(chunk, keys, _decode(answer.content, list[Raw]), strict=True):
                standing = _task(bytes(raw))
                created = _decode(bytes(raw), dict[str, Any])["created"] or _is_ours(task, key, standing)
                rows.append((standing.id, created))
        return rows

    async def get(self, id: UUID) -> Task:
        return _task((await self._ask("GET", f"tasks/{id}")).content)

    async def wait(self, id: UUID, timeout: float) -> Task | None:
        """The task once it is final, by the server's long poll; None after `timeout` seconds."""
        waiter = asyncio.create_task(self._wait(id, time.monotonic() + timeout))
        self._waiting.add(waiter)
        try:
            return await waiter
        finally:
            waiter.cancel()
            self._waiting.discard(waiter)

    async def _wait(self, id: UUID, until: float) -> Task | None:
        while True:
            try:
                async with asyncio.timeout(max(0.0, until - time.monotonic())), self._polls:
                    found = await self._poll(id, until)
            except TimeoutError:
                return None
            if found is not None:
                return found

    async def _poll(self, id: UUID, until: float) -> Task | None:
        """One long poll; None if the task is not final yet, or not there yet."""
        turn = LONGEST_POLL if len(self._waiting) <= MOST_POLLS else TURN
        seconds = min(turn, max(0.0, until - time.monotonic()))
        path = f"tasks/{id}/wait?timeout={seconds:.3f}"
        try:
            answer = await self._ask("GET", path, extra=seconds)
        except NotFound:
            # Perhaps its transaction has not committed yet.
            await asyncio.sleep(min(0.5, seconds))
            return None
        except Unavailable:
            return None  # `until` decides how long that may go on.
        task = _task(answer.content)
        return task if task.status in FINAL else None

    async def cancel(self, id: UUID, reason: str) -> State:
        """Answers the state as it was found; canceling twice changes nothing more."""
        answer = await self._ask("DELETE", f"tasks/{id}", params={"reason": reason}, accept=(409,))
        if answer.status_code == 409:
            problem = _decode(answer.content, _Problem)
            if problem.code != "wrong_state":
                _explain(answer, self._where)
            return State(problem.state)
        return State(answer.headers.get("dhara-found", _task(answer.content).status))

    async def revive(
        self, id: UUID, queue: str | None, priority: int | None, payload: str | None, run_at: datetime | None
    ) -> None:
        changes = {"queue": queue, "priority": priority, "run_at": run_at, "payload": _raw(payload)}
        body = msgspec.json.encode({name: value for name, value in changes.items() if value is not None})
        await self._ask("POST", f"tasks/{id}/retry", body=body, safe=False)

    async def logs(self, id: UUID) -> list[LogEntry]:
        answer = await self._ask("GET", f"tasks/{id}/logs")
        found: dict[str, list[LogEntry]] = _decode(answer.content, dict[str, list[LogEntry]])
        return found["logs"]

    async def attempts(self, id: UUID) -> list[Attempt]:
        try:
            answer = await self._ask("GET", f"tasks/{id}/attempts")
        except NotFound:
            return []
        found = []
        for raw in _decode(answer.content, dict[str, list[Raw]])["attempts"]:
            texts = _decode(bytes(raw), dict[str, Raw])
            whole = _decode(bytes(raw), dict[str, Any])
            whole |= {name: bytes(texts[name]).decode() for name in ("error", "logs") if name in texts}
            found.append(msgspec.convert({"worker_id": None, "lease": None, **whole}, Attempt, strict=False))
        return found

    async def page(self, wanted: Filter, limit: int, offset: int, after: UUID | None) -> Page:
        """A page; `after` must be the `next` of a page that this client has shown for the same filter."""
        params: list[tuple[str, str]] = [("limit", str(limit)), *_query(wanted)]
        if after is None:
            params.append(("offset", str(offset)))
        elif (cursor := self._cursors.get((wanted, after))) is not None:
            params.append(("cursor", cursor))
        else:
            raise ValueError(
                "over HTTP, `after` continues only a list that this client has begun, by its page's `next`"
            )
        answer = await self._ask("GET", "tasks", params=params)
        found = _decode(answer.content, dict[str, Any])
        tasks = [_task(msgspec.json.encode(row), whole=False) for row in found["tasks"]]
        following = None
        if found.get("next_cursor"):
            # A page without any match continues itself.
            following = tasks[-1].id if tasks else after or UUID(int=2**128 - 1)
        if following is not None:
            while len(self._cursors) >= 1_000:
                del self._cursors[next(iter(self._cursors))]
            self._cursors[wanted, following] = found["next_cursor"]
        return Page(tasks, found["total"], found["total_is_estimate"], following)

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        params: Any = None,
        body: bytes | None = None,
        safe: bool = True,
        patient: bool = True,
        extra: float = 0.0,
        accept: tuple[int, ...] = (),
    ) -> httpx.Response:
        """An answer below 300 or in `accept`. `safe`: doing it twice is as good as once.

        `extra`: how many seconds the answer may take beyond the usual, as a long poll's does.
        """
        if self._http is None:
            raise Unavailable("the client is not open; use `async with`, or call open() first")
        give_up = time.monotonic() + (self._patience if patient else 0)
        timeout = self._httpx.Timeout(self._command_timeout + extra, connect=self._connect_timeout)
        headers = None if body is None else {"content-type": "application/json"}
        pause = 0.05
        while True:
            least = 0.0
            try:
                # Long polls have been counted already.
                async with nullcontext() if extra else self._calls:
                    answer = await self._http.request(
                        method, path, params=params, content=body, headers=headers, timeout=timeout
                    )
            except self._httpx.TransportError as error:
                unsent = isinstance(error, self._httpx.ConnectError | self._httpx.ConnectTimeout)
                again, why = safe or unsent, Unavailable(f"no answer from {self._where}: {_text(error)}")
            else:
                if answer.status_code in accept or answer.status_code < 300:
                    return answer
                if answer.status_code not in _BUSY:
                    _explain(answer, self._where)
                problem = _problem(answer)
                if problem.code == "schema_error":
                    raise SchemaError(f"{self._where}: {problem.detail}")
                again = safe or answer.status_code == 429 or problem.code == "overloaded"
                least = _retry_after(answer.headers.get("retry-after"))
                why = _busy(problem, f"{self._where} answered {answer.status_code}: {problem.detail or 'try again'}")
            wait = max(least, pause * random.uniform(0.5, 1.5)) + least * random.uniform(0, 0.5)
            if not again or time.monotonic() + wait > give_up:
                raise why
            await asyncio.sleep(wait)
            pause = min(pause * 2, _MOST_PAUSE)


def _import_httpx() -> Any:
    try:
        import httpx
    except ImportError:
        raise ConfigError("a client over HTTP needs httpx; install it with `pip install 'dhara[client]'`") from None
    return httpx


def _base(url: str) -> str:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        parts = None
    if parts is None or not parts.hostname or parts.query or parts.fragment:
        raise ConfigError("the server's URL cannot be read; write http://host:8080 or https://host")
    return url.rstrip("/").removesuffix("/api/v1") + "/api/v1/"


def _body(new: NewTask) -> tuple[str, bytes]:
    """The idempotency key that it travels with, and the body."""
    key = new.idempotency_key or f"{_OURS}{new.id}"
    fields = as_object(new)
    del fields["id"]
    # These say something only beside a unique key.
    if new.unique_key is None:
        del fields["unique_for"], fields["on_conflict"]
    return key, msgspec.json.encode(fields | {"idempotency_key": key})


def _is_ours(new: NewTask, key: str, standing: Task) -> bool:
    """Whether the task that stood already is what an earlier try of this very enqueue made."""
    return new.idempotency_key is None and standing.idempotency_key == key


def _chunks(new: Sequence[NewTask]) -> Iterator[list[NewTask]]:
    chunk: list[NewTask] = []
    size = 0
    for task in new:
        length = 1_000 + len(task.payload.encode())
        if chunk and (len(chunk) == limits.BATCH[1] or size + length > BATCH_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(task)
        size += length
    if chunk:
        yield chunk


def _move(error: IdempotencyConflict | InvalidBatch, start: int, chunk: Sequence[NewTask]) -> NoReturn:
    """Raise `error` with its index counted from the first of all chunks."""
    index = error.index or 0
    if isinstance(error, InvalidBatch):
        problems = [(field.partition("].")[2] or field, message) for field, message in error.problems]
        raise InvalidBatch(start + index, problems) from error
    raise IdempotencyConflict(error.existing, chunk[index].idempotency_key, start + index) from error


def _query(wanted: Filter) -> Iterator[tuple[str, str]]:
    for name in Filter.__struct_fields__:
        value = getattr(wanted, name)
        if name in ("queues", "ids", "in_payload", "veiled"):
            # The key's own, and a bulk operation's: nobody lists by them. How far `q` reaches is the server's to say.
            continue
        if name == "status":
            yield from (("status", state.value) for state in value)
        elif isinstance(value, bool):
            if value:
                yield name, "true"
        elif value is not None:
            yield name, value.isoformat() if isinstance(value, datetime) else str(value)


def _decode(content: bytes, shape: Any) -> Any:
    try:
        return msgspec.json.decode(content, type=shape)
    except msgspec.MsgspecError:
        raise Unavailable("the answer is none of a dhara server; is the URL right?") from None


def _task(content: bytes, *, whole: bool = True) -> Task:
    """A `Task` of an answer, whose JSON members stay the text they are. An empty payload says that this key may see none;
    not `whole`: nobody is shown any, as in lists."""
    fields = _decode(content, dict[str, Any])
    texts = _decode(content, _Wired)
    for name in ("payload", "result", "progress"):
        fields[name] = bytes(getattr(texts, name)).decode() or None
    if fields["payload"] is None:
        fields["payload"] = HIDDEN if whole else "{}"
    try:
        return msgspec.convert(fields, Task, strict=False)
    except msgspec.ValidationError as error:
        raise Unavailable(f"the server speaks another version: {error}; use the same version of dhara") from None


def _raw(text: str | None) -> Raw | None:
    return None if text is None else Raw(text.encode())


def _problem(answer: httpx.Response) -> _Problem:
    try:
        return msgspec.json.decode(answer.content, type=_Problem)
    except msgspec.MsgspecError:
        return _Problem()


def _explain(answer: httpx.Response, where: str) -> NoReturn:
    """Raise what a refusal means, as a client on PostgreSQL would."""
    problem, status = _problem(answer), answer.status_code
    fields = [(error.get("field", ""), error.get("message", "")) for error in problem.errors]
    raise _meaning(problem, status, fields, where)


def _busy(problem: _Problem, text: str) -> Unavailable:
    full = _FULL.match(problem.detail) if problem.code in ("queue_full", "batch_too_large") else None
    if full is None:
        return Unavailable(text)
    return QueueFull(full[1], *(int(number.replace(",", "")) for number in full.groups()[1:] if number))


def _meaning(problem: _Problem, status: int, fields: list[tuple[str, str]], where: str) -> DharaError:
    detail = problem.detail or f"{where} answered {status}"
    match problem.code:
        case "idempotency_conflict":
            return IdempotencyConflict(UUID(problem.task_id), None, problem.index)
        case "wrong_state":
            return WrongState(problem.state, detail.partition("; ")[2] or detail)
        case "invalid_batch" if problem.index is not None:
            return InvalidBatch(problem.index, [(f.partition("].")[2] or f, m) for f, m in fields])
        case "invalid_task" | "invalid_batch" | "invalid_string" | "payload_too_large":
            return InvalidTask(fields or [("body", detail)], problem.code)
        case "not_found":
            return NotFound(detail)
        case "batch_too_large":
            return _busy(problem, detail)
    if status == 404:
        return ConfigError(f"{where} is no dhara server, or another path is; check the URL")
    if status in (401, 403, 421):
        return ConfigError(f"{where} refuses this client: {detail}; check the token")
    if status in (301, 302, 303, 307, 308):
        return ConfigError(f"{where} answered {status}; give the URL of the dhara server itself")
    if status >= 500:
        return Unavailable(f"{where} answered {status}: {detail}")
    return DharaError(f"{where} answered {status}: {detail}")


def _retry_after(value: str | None) -> float:
    """Seconds of a Retry-After header; 0 without one."""
    if value is None:
        return 0.0
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def _text(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
