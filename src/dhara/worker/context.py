"""What a handler may ask and say while it runs: its attempt, whether to stop, log lines and progress kept with it."""

from __future__ import annotations

import logging
import re
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec

from dhara.domain import limits
from dhara.domain.outcome import Cancel
from dhara.domain.task import Claim
from dhara.worker.transaction import Transaction

Line = dict[str, str]
# C0 but for tab and newline, DEL, C1, line and paragraph separators, marks that change the direction of text.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")


class AttemptLog:
    """Log lines kept with the attempt, bounded: the first and last ones stay, the middle is counted."""

    def __init__(self, claim: Claim, changed: Callable[[], None] = lambda: None) -> None:
        self._claim = claim
        self._changed = changed
        self._first: list[Line] = []
        self._last: deque[Line] = deque(maxlen=limits.LOG_LINES // 2)
        self._dropped = 0
        self._lock = threading.Lock()

    def debug(self, message: str, *args: Any) -> None:
        self._log(logging.DEBUG, message, args)

    def info(self, message: str, *args: Any) -> None:
        self._log(logging.INFO, message, args)

    def warning(self, message: str, *args: Any) -> None:
        self._log(logging.WARNING, message, args)

    def error(self, message: str, *args: Any) -> None:
        self._log(logging.ERROR, message, args)

    def _log(self, level: int, message: str, args: tuple[Any, ...]) -> None:
        try:
            text = message % args if args else str(message)
        except Exception:
            text = f"{message!r} {args!r}"
        line = {
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "level": logging.getLevelName(level).lower(),
            "message": storable(text, limits.LOG_LINE_LENGTH),
        }
        self.keep(line)
        logging.getLogger("dhara.task").log(
            level, "%s", line["message"], extra={"task_id": self._claim.id, "attempt": self._claim.attempt}
        )

    def keep(self, line: Line) -> None:
        """Add a finished line, such as one that came from another process."""
        with self._lock:
            if len(self._first) < limits.LOG_LINES // 2:
                self._first.append(line)
            else:
                self._dropped += len(self._last) == self._last.maxlen
                self._last.append(line)
        self._changed()

    def to_json(self) -> str | None:
        """All lines as JSON text; None if there are none."""
        with self._lock:
            if not self._first:
                return None
            lines = list(self._first)
            if self._dropped:
                lines.append({"at": "", "level": "info", "message": f"... {self._dropped} lines left out ..."})
            return msgspec.json.encode([*lines, *self._last]).decode()


class _Said(Awaitable[None]):
    """Done already; may be awaited, so that `async` and `def` handlers can both report progress."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


_SAID = _Said()


class Context:
    """One attempt, seen from its handler. Asked for by a parameter `ctx`."""

    def __init__(self, claim: Claim, transaction: Callable[[Context, Any], Transaction] | None = None) -> None:
        self._claim = claim
        self._transaction = transaction
        self._cancel = threading.Event()
        self._lost = threading.Event()
        self._progress: str | None = None
        self.dirty = False
        self.settled = False
        # What the registry's lifespan yielded.
        self.state: Any = None
        self.log = AttemptLog(claim, self._touch)

    def _touch(self) -> None:
        self.dirty = True

    @property
    def task_id(self) -> UUID:
        """The task's id."""
        return self._claim.id

    @property
    def type(self) -> str:
        """The task's type."""
        return self._claim.type

    @property
    def queue(self) -> str:
        """The queue that the task was claimed from."""
        return self._claim.queue

    @property
    def attempt(self) -> int:
        """Which execution this is, counted from 1 over all generations."""
        return self._claim.attempt

    @property
    def failures(self) -> int:
        """Failed executions before this one, of this generation."""
        return self._claim.failures

    @property
    def max_retries(self) -> int:
        """How many failures are followed by another attempt."""
        return self._claim.max_retries

    @property
    def run_at(self) -> datetime:
        """When this attempt was due, by the database's clock."""
        return self._claim.run_at

    @property
    def claimed_at(self) -> datetime:
        """When its worker took it, by the database's clock."""
        return self._claim.started_at

    @property
    def lease(self) -> UUID:
        """The token of this attempt; changes with each one."""
        return self._claim.lease

    @property
    def idempotency_key(self) -> str:
        """Stable across the attempts of a generation: give it to services that should act once."""
        return f"{self._claim.id}:{self._claim.generation}"

    @property
    def traceparent(self) -> str | None:
        """The W3C trace context given at the enqueue."""
        return self._claim.traceparent

    @property
    def canceled(self) -> bool:
        """True once someone asked to cancel the task, its time is up, or its worker drains beyond the grace."""
        return self._cancel.is_set()

    @property
    def lease_lost(self) -> bool:
        """True once the task is known to be someone else's; whatever this attempt answers is discarded."""
        return self._lost.is_set()

    def check_canceled(self) -> None:
        """Raise `Cancel` if `canceled`; for `def` handlers, to be called now and then."""
        if self.canceled:
            raise Cancel("canceled")

    def wait_canceled(self, seconds: float) -> bool:
        """Sleep in a `def` handler, at most `seconds`; True as soon as `canceled`."""
        return self._cancel.wait(seconds)

    def progress(self, percent: float, message: str = "") -> Awaitable[None]:
        """Say how far the attempt is, 0 to 100; shown within a second or two, kept across attempts.

        May be awaited in `async` handlers and called plainly in `def` handlers; it never waits for the database.
        """
        value = {"percent": round(min(100.0, max(0.0, float(percent))), 2), "message": storable(message, 500)}
        self.tell_progress(msgspec.json.encode(value).decode())
        return _SAID

    def tell_progress(self, progress: str) -> None:
        """Take over a progress that is JSON text already, such as one that came from another process."""
        self._progress = progress
        self.dirty = True

    def transaction(self, session: Any = None) -> Transaction:
        """`async with ctx.transaction() as conn:` the handler's own writes and the task's completion, in one commit.

        Without `session`: an asyncpg connection to dhara's own database. With one (psycopg sync or async, asyncpg,
        SQLAlchemy sync or async): that session's transaction, begun here if it has not begun. Leaving the block completes
        the task as the last statement and commits; an exception rolls back. To store a result, keep the object and set
        its `result` inside the block. `with` serves sync sessions.

        Raises `LeaseLost`, with everything rolled back, when the task is someone else's by then; and `RuntimeError` when
        the session cannot keep the promise: it is in autocommit mode, or the block itself committed or rolled back.
        """
        if self._transaction is None:
            raise RuntimeError("this context has no database; ctx.transaction() works in workers only")
        return self._transaction(self, session)


def storable(text: str, length: int) -> str:
    """`text` as PostgreSQL and people can take it: bounded, no NUL, no lone surrogates, control characters escaped."""
    text = text[: length + 1].encode("utf-8", "backslashreplace").decode()
    text = _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return text if len(text) <= length else text[: length - 1] + "…"
