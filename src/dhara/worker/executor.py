"""One attempt: handler -> outcome, in named steps. Whatever the handler does ends as a value."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import msgspec

from dhara.domain import limits, validate
from dhara.domain.outcome import (
    Cancel,
    Canceled,
    DeadLetter,
    Done,
    Failed,
    Outcome,
    Released,
    Retry,
    Settled,
    Snooze,
    Snoozed,
)
from dhara.domain.task import EMPTY_PAYLOAD, Claim
from dhara.errors import InvalidTask, LeaseLost
from dhara.worker.context import Context, storable
from dhara.worker.failure import failed, fingerprint
from dhara.worker.registry import Handler, Options, Registry
from dhara.worker.slot import Slot, Stop
from dhara.worker.threads import Threads

log = logging.getLogger(__name__)

_NULL = Done()
# How many forks this process is away from the first: counting them is cheaper than asking the system twice a task.
_forks = 0


def _forked() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_forked)


class Executor:
    """Runs attempts of one registry's handlers. `threads` None: `def` handlers run inline, in a process of their own."""

    def __init__(self, registry: Registry, make_context: Callable[[Claim], Context], threads: Threads | None) -> None:
        self._around = registry.around
        self._within = registry.within
        self._bare = not (registry.around or registry.within)
        self._make_context = make_context
        self._threads = threads

    async def execute(self, handler: Handler[..., Any], claim: Claim, slot: Slot) -> Outcome:
        """One attempt in `slot`; never raises but `CancelledError` at the slot's own end."""
        arguments = self._arguments(handler, claim, slot)
        if isinstance(arguments, Failed):
            return arguments
        mine = _forks
        try:
            if self._bare and handler.is_async:
                value = await handler.function(**arguments)
            else:
                value = await self._run(handler, arguments, slot)
        except asyncio.CancelledError as error:
            _refuse_copies(mine)
            return _settled(slot) or interrupted(slot, claim, error, handler.options)
        except BaseException as error:
            # Also SystemExit and KeyboardInterrupt: a handler must not end its worker.
            _refuse_copies(mine)
            if settled := _settled(slot):
                log.warning("task %s raised after its transaction had completed it: %r", claim.id, error)
            return settled or _wish(handler, claim, error, slot)
        if mine != _forks:
            os._exit(0)
        if slot.context is None:
            return _NULL if value is None else _result(claim, value)
        return _settled(slot) or (_NULL if value is None else _result(claim, value))

    def _arguments(self, handler: Handler[..., Any], claim: Claim, slot: Slot) -> dict[str, Any] | Failed:
        try:
            payload = {} if claim.payload == EMPTY_PAYLOAD else msgspec.json.decode(claim.payload)
            arguments = handler.arguments(payload)
        except Exception as error:
            # Not only ValueError: the validators of a user's model may raise anything.
            why = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            return Failed(
                storable(f"the payload cannot be given to the handler: {why}", limits.LAST_ERROR_LENGTH),
                permanent=True,
                reason="invalid_payload",
                fingerprint=f"invalid_payload:{claim.type}",
            )
        if handler.wants_context or not self._bare:
            slot.context = self._make_context(claim)
            if handler.wants_context:
                arguments["ctx"] = slot.context
        return arguments

    async def _run(self, handler: Handler[..., Any], arguments: dict[str, Any], slot: Slot) -> Any:
        if self._bare:
            return await self._call(handler, arguments, slot)
        proceed: Callable[[], Any] = lambda: self._call(handler, arguments, slot)  # noqa: E731
        for middleware in reversed(self._around):
            proceed = _wrapped(middleware, slot.context, proceed)
        return await proceed()

    async def _call(self, handler: Handler[..., Any], arguments: dict[str, Any], slot: Slot) -> Any:
        if handler.is_async:
            if not self._within:
                return await handler.function(**arguments)
            with self._inner(slot):
                return await handler.function(**arguments)
        call: Callable[[], Any] = lambda: self._inline(handler, arguments, slot)  # noqa: E731
        if self._threads is None:
            return call()
        run = contextvars.copy_context().run
        good, value = await self._threads.run(partial(_contained, run, call))
        if good:
            return value
        try:
            raise value
        finally:
            del value  # its traceback holds this frame

    def _inline(self, handler: Handler[..., Any], arguments: dict[str, Any], slot: Slot) -> Any:
        with self._inner(slot):
            return handler.function(**arguments)

    def _inner(self, slot: Slot) -> ExitStack:
        """The sync middleware, entered."""
        stack = ExitStack()
        try:
            for middleware in self._within:
                stack.enter_context(middleware(slot.context))  # type: ignore[arg-type]
        except BaseException:
            stack.close()
            raise
        return stack


def _wrapped(middleware: Any, context: Any, proceed: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: middleware(context, proceed)


def _contained(run: Callable[..., Any], call: Callable[[], Any]) -> tuple[bool, Any]:
    """In the thread: exceptions as values, since a future refuses StopIteration and a thread must survive SystemExit."""
    mine = _forks
    try:
        return True, run(call)
    except BaseException as error:
        return False, RuntimeError(f"handler raised {error!r}") if isinstance(error, StopIteration) else error
    finally:
        _refuse_copies(mine)


def _refuse_copies(mine: int) -> None:
    """A handler that forks comes back twice. The copy ends here: it shares our connections, and is no worker."""
    if mine != _forks:
        os._exit(0)


def _settled(slot: Slot) -> Settled | None:
    """Once its transaction has committed, nothing that the handler does changes the outcome."""
    return Settled() if slot.context is not None and slot.context.settled else None


def interrupted(slot: Slot, claim: Claim, error: asyncio.CancelledError, options: Options) -> Outcome:
    """What an attempt that ended by a CancelledError means: whose wish was it?"""
    slot.heeded()
    match slot.stop:
        case Stop.CANCEL:
            return Canceled("heeded a cancel request")
        case Stop.TIMEOUT:
            return _timed_out(slot, claim, options)
        case Stop.DRAIN:
            return Released("the worker stopped before the task was done")
        case Stop.EXCLUSIVE:
            return Released("no heartbeat was acknowledged; an exclusive attempt stops before its lease is lost")
        case Stop.EXIT:
            raise error
        case _:
            return failed(claim.type, error, policy=options.policy(error))


def _timed_out(slot: Slot, claim: Claim, options: Options) -> Failed:
    """Retried as the handler says of a `TimeoutError`."""
    policy = options.policy(TimeoutError())
    return Failed(
        f"timed out after {slot.allowed:g} s",
        permanent=policy == "never",
        policy=None if policy == "never" else policy,
        fingerprint=f"timeout:{claim.type}",
    )


def _wish(handler: Handler[..., Any], claim: Claim, error: BaseException, slot: Slot) -> Outcome:
    """What the exception asks for; where that makes no sense, a failure that says so."""
    try:
        return _raised(handler, claim, error, slot)
    except Exception as senseless:
        return failed(claim.type, senseless, policy=handler.options.policy(senseless))


def _raised(handler: Handler[..., Any], claim: Claim, error: BaseException, slot: Slot) -> Outcome:
    match error:
        case Retry():
            after = None if error.after is None else _seconds("Retry", error.after)
            policy = handler.options.own_retry
            return Failed(_text(error), retry_after=after, policy=policy, fingerprint=fingerprint(claim.type, error))
        case Snooze():
            return Snoozed(_seconds("Snooze", error.seconds), None if error.reason is None else _text(error.reason))
        case Cancel():
            if slot.stop in (Stop.DRAIN, Stop.EXCLUSIVE):
                return Released("the worker stopped; the handler heeded it")
            if slot.stop is Stop.TIMEOUT:
                return _timed_out(slot, claim, handler.options)
            return Canceled(_text(error.reason))
        case DeadLetter():
            return Failed(
                _text(error.reason),
                permanent=True,
                reason=_text(error.reason, 200) or "permanent",
                fingerprint=fingerprint(claim.type, error),
            )
        case LeaseLost():
            return Released(str(error))
        case _ if slot.stop in (Stop.DRAIN, Stop.EXCLUSIVE):
            # Libraries turn a cancellation into errors of their own.
            return Released(f"the worker stopped; the handler ended by {type(error).__name__}")
        case _:
            return failed(claim.type, error, policy=handler.options.policy(error))


def _seconds(what: str, value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise TypeError(f"{what} takes seconds, a number, not {type(value).__name__}")


def _text(value: object, length: int = limits.LAST_ERROR_LENGTH) -> str:
    return storable(str(value), length)


def _result(claim: Claim, value: Any) -> Outcome:
    try:
        return Done(validate.encode_json(value, what="result", most_bytes=limits.RESULT_BYTES))
    except Exception as error:
        # Not only InvalidTask: a lazy mapping, for one, may raise anything as it is read.
        problem = error if isinstance(error, InvalidTask) else f"{type(error).__name__} as it was read"
        text = f"the handler's result cannot be stored: {problem}; return JSON-able data, or None"
        return Failed(text, permanent=True, reason="invalid_result", fingerprint=f"invalid_result:{claim.type}")
