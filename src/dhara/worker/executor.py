"""One attempt: handler -> outcome, in named steps. Whatever the handler does ends as a value."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import Executor as Threads
from typing import Any

import msgspec

from dhara.domain import limits, validate
from dhara.domain.outcome import Cancel, Canceled, DeadLetter, Done, Failed, Outcome, Released, Retry, Snooze, Snoozed
from dhara.domain.task import EMPTY_PAYLOAD, Claim
from dhara.errors import InvalidTask
from dhara.worker.context import Context
from dhara.worker.failure import failed
from dhara.worker.registry import Handler
from dhara.worker.slot import Slot, Stop

_NULL = Done()


async def execute(handler: Handler[..., Any], claim: Claim, slot: Slot, threads: Threads) -> Outcome:
    """Run `claim` in `slot`; never raises but `CancelledError` of the slot's own end."""
    arguments = _arguments(handler, claim, slot)
    if isinstance(arguments, Failed):
        return arguments
    try:
        value = await _call(handler, arguments, threads)
    except asyncio.CancelledError as error:
        return _interrupted(slot, claim, error)
    except BaseException as error:
        # Also SystemExit and KeyboardInterrupt: a handler must not end its worker.
        return _raised(claim, error, slot)
    return _NULL if value is None else _result(claim, value)


def _arguments(handler: Handler[..., Any], claim: Claim, slot: Slot) -> dict[str, Any] | Failed:
    try:
        payload = {} if claim.payload == EMPTY_PAYLOAD else msgspec.json.decode(claim.payload)
    except (msgspec.DecodeError, RecursionError) as error:
        return Failed(f"the payload cannot be read: {error}", permanent=True, reason="invalid_payload")
    if problem := handler.misfit(payload):
        return Failed(problem, permanent=True, reason="invalid_payload", fingerprint=f"payload:{claim.type}")
    if handler.wants_context:
        slot.context = payload["ctx"] = Context(claim)
    arguments: dict[str, Any] = payload
    return arguments


async def _call(handler: Handler[..., Any], arguments: dict[str, Any], threads: Threads) -> Any:
    if handler.is_async:
        return await handler.function(**arguments)
    call: Callable[[], Any] = lambda: handler.function(**arguments)  # noqa: E731
    run = contextvars.copy_context().run
    kind, value = await asyncio.get_running_loop().run_in_executor(threads, _contained, run, call)
    if kind:
        return value
    raise value


def _contained(run: Callable[..., Any], call: Callable[[], Any]) -> tuple[bool, Any]:
    """In the thread: exceptions as values, since a future refuses StopIteration and a pool must survive SystemExit."""
    try:
        return True, run(call)
    except BaseException as error:
        return False, RuntimeError(f"handler raised {error!r}") if isinstance(error, StopIteration) else error


def _interrupted(slot: Slot, claim: Claim, error: asyncio.CancelledError) -> Outcome:
    slot.heeded()
    match slot.stop:
        case Stop.CANCEL:
            return Canceled("heeded a cancel request")
        case Stop.TIMEOUT:
            return Failed(
                f"timed out after {slot.allowed:g} s", reason=None, fingerprint=f"timeout:{claim.type}", error=None
            )
        case Stop.DRAIN:
            return Released("the worker stopped before the task was done")
        case Stop.EXIT:
            raise error
        case _:
            return failed(claim.type, error)


def _raised(claim: Claim, error: BaseException, slot: Slot) -> Outcome:
    match error:
        case Retry():
            return Failed(str(error), retry_after=error.after)
        case Snooze():
            return Snoozed(max(0.0, error.seconds), error.reason)
        case Cancel():
            return Released("the worker stopped") if slot.stop is Stop.DRAIN else Canceled(error.reason)
        case DeadLetter():
            return Failed(error.reason, permanent=True, reason=error.reason[:200] or "permanent")
        case _:
            return failed(claim.type, error)


def _result(claim: Claim, value: Any) -> Outcome:
    try:
        return Done(validate.encode_json(value, what="result", most_bytes=limits.RESULT_BYTES))
    except InvalidTask as problem:
        text = f"the handler's result cannot be stored: {problem}; return JSON-able data, or None"
        return Failed(text, permanent=True, reason="invalid_result", fingerprint=f"invalid_result:{claim.type}")
