"""The registry: task type -> handler. What cannot work is refused when it is registered, not when it runs."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, Generic, Literal, ParamSpec, TypeVar, get_type_hints

from msgspec import Struct

from dhara.domain import limits
from dhara.domain.backoff import RetryPolicy
from dhara.domain.plan import spec_of
from dhara.domain.schedule import Spec
from dhara.domain.task import Call
from dhara.domain.validate import encode_json
from dhara.errors import InvalidTask, RegistryError
from dhara.worker.context import Context
from dhara.worker.payload import Model, model_of

P = ParamSpec("P")
R = TypeVar("R")


class Options(Struct, frozen=True, kw_only=True):
    """How a handler's tasks are enqueued and run. `timeout` is seconds; None: the worker's HANDLER_TIMEOUT."""

    queue: str = "default"
    priority: int = 0
    timeout: float | None = None
    retry: RetryPolicy = RetryPolicy()
    # The first class that the exception is an instance of decides; None: no further attempt.
    retry_on: Mapping[type[Any], RetryPolicy | None] = {}
    executor: Literal["auto", "process"] = "auto"
    exclusive: bool = False

    @property
    def own_retry(self) -> RetryPolicy | None:
        """The handler's policy; None: it says nothing, the worker's settings hold."""
        return None if self.retry == RetryPolicy() else self.retry

    def policy(self, error: BaseException) -> RetryPolicy | Literal["never"] | None:
        """How a failure by `error` is retried; None: as the worker's settings say."""
        for kind, policy in self.retry_on.items():
            if isinstance(error, kind):
                return policy or "never"
        return self.own_retry


class Handler(Generic[P, R]):
    """A registered function. Call it as before; `.s(...)` makes a call to enqueue."""

    def __init__(self, type: str, function: Callable[P, R], options: Options) -> None:
        self.type = type
        self.function = function
        self.options = options
        self.is_async = inspect.iscoroutinefunction(function)
        self.signature, hints = _signature(type, function)
        self.model: Model | None = model_of(self.signature, hints)
        parameters = self.signature.parameters
        self.wants_context = "ctx" in parameters
        self._calls = inspect.Signature([p for name, p in parameters.items() if name != "ctx"])
        self.keys = frozenset(self._calls.parameters)
        self.any_key = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self.required = frozenset(
            name
            for name, p in self._calls.parameters.items()
            if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        )
        self.__doc__ = function.__doc__
        self.__name__ = getattr(function, "__name__", type)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    def s(self, *args: Any, **kwargs: Any) -> Call:
        """This handler with these arguments, to be enqueued. Raises `TypeError` if they do not fit the signature.

        `ctx` is left out: the worker gives it. A handler of one dataclass, msgspec struct or pydantic model takes an
        instance of it, or its fields.
        """
        if self.model is not None:
            return Call(type=self.type, payload=self.model.dump(args, kwargs), defaults=self.defaults())
        bound = self._calls.bind(*args, **kwargs)
        payload = dict(bound.arguments)
        for name, parameter in self._calls.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                payload.update(payload.pop(name, {}))
        return Call(type=self.type, payload=payload, defaults=self.defaults())

    def defaults(self) -> Mapping[str, Any]:
        """What an enqueue of this handler says unless told otherwise."""
        found: dict[str, Any] = {"queue": self.options.queue}
        if self.options.priority:
            found["priority"] = self.options.priority
        if self.options.retry.max_retries is not None:
            found["max_retries"] = self.options.retry.max_retries
        return found

    def arguments(self, payload: Any) -> dict[str, Any]:
        """The handler's keyword arguments in `payload`. Raises `ValueError` saying why they do not fit."""
        if self.model is not None:
            return {self.model.parameter: self.model.load(payload)}
        if problem := self._misfit(payload):
            raise ValueError(problem)
        arguments: dict[str, Any] = payload
        return arguments

    def _misfit(self, payload: Any) -> str | None:
        if not isinstance(payload, dict):
            return f"the payload must be a JSON object of the handler's arguments, not {type(payload).__name__}"
        if missing := self.required - payload.keys():
            return f"missing argument(s): {', '.join(sorted(missing))}"
        if not self.any_key and (extra := payload.keys() - self.keys):
            return f"unexpected argument(s): {', '.join(sorted(map(str, extra)))[:200]}"
        return None


Proceed = Callable[[], Awaitable[Any]]
AsyncMiddleware = Callable[[Context, Proceed], Awaitable[Any]]
SyncMiddleware = Callable[[Context], Any]


class Registry:
    """The handlers of a worker, by task type, and what stands around them: middleware and lifespan."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler[..., Any]] = {}
        self._schedules: dict[str, Spec] = {}
        self.around: list[AsyncMiddleware] = []
        self.within: list[SyncMiddleware] = []
        self._lifespan: Callable[[], AbstractAsyncContextManager[Any]] | None = None

    def middleware(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Register what stands around every handler, outermost first.

        `async def m(ctx, proceed): ...; result = await proceed(); ...; return result` stands around all handlers.
        `def m(ctx): ...; yield; ...` runs where the handler runs: on the loop, in its thread or in its process.
        """
        if inspect.iscoroutinefunction(function):
            self.around.append(function)
        elif inspect.isgeneratorfunction(function):
            self.within.append(contextmanager(function))
        else:
            raise RegistryError("middleware is `async def m(ctx, proceed)`, or `def m(ctx)` with one `yield`")
        return function

    def lifespan(self, function: Callable[[], AsyncIterator[Any]]) -> Callable[[], AsyncIterator[Any]]:
        """Register what a worker sets up before its first task and takes down after its last.

        `async def resources(): pool = await open(); yield pool; await pool.close()`. What it yields is `ctx.state`.
        """
        if not inspect.isasyncgenfunction(function):
            raise RegistryError("lifespan is `async def` with one `yield`")
        if self._lifespan is not None:
            raise RegistryError("the registry has a lifespan already")
        self._lifespan = asynccontextmanager(function)
        return function

    def live(self) -> AbstractAsyncContextManager[Any]:
        """The lifespan, to be entered; yields `ctx.state`."""
        return self._lifespan() if self._lifespan is not None else _nothing()

    def task(
        self,
        type: str,
        *,
        queue: str = "default",
        priority: int = 0,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
        retry_on: Mapping[type[Any], RetryPolicy | None] | None = None,
        executor: Literal["auto", "process"] = "auto",
        exclusive: bool = False,
    ) -> Callable[[Callable[P, R]], Handler[P, R]]:
        """Register a function as the handler of `type`. Raises `RegistryError` for what cannot work.

        `async def` runs on the loop, `def` in a thread; `executor="process"` runs either in a process of its own, which
        timeouts and cancellation kill. The payload's keys are the keyword arguments, or the fields of the one dataclass,
        msgspec struct or pydantic model that the handler takes; a parameter `ctx` receives the `Context`.
        `timeout` is seconds. `retry_on`: policies by exception class, first match first; None: no retry.
        `exclusive`: the attempt is stopped before its lease can be lost, so that no two attempts ever overlap.
        """
        options = Options(
            queue=queue,
            priority=priority,
            timeout=timeout,
            retry=retry or RetryPolicy(),
            retry_on=dict(retry_on or {}),
            executor=executor,
            exclusive=exclusive,
        )
        _check(type, options)

        def register(function: Callable[P, R]) -> Handler[P, R]:
            if type in self._handlers:
                raise RegistryError(f"task type {type!r} is registered twice; each type has one handler")
            handler: Handler[P, R] = Handler(type, function, options)
            self._handlers[type] = handler
            return handler

        return register

    def cron(
        self, expression: str, *, tz: str = "UTC", name: str | None = None, payload: Any = None, **options: Any
    ) -> Callable[[Handler[P, R]], Handler[P, R]]:
        """Declare a schedule of a handler, above its `@tasks.task(...)`: a task of it at every fire time of `expression`.

        `tz`: the IANA zone in which it is meant. `name`: the schedule's, by default the task type's. `payload`: what the
        handler is given. `options`: queue, priority, max_retries, timeout, jitter, missed, overlap, catch_up_most
        (docs/how-to/schedules.md). The workers that know the handler make or change the schedule as they start.
        Raises `RegistryError`.
        """
        return self._scheduled({"cron": expression, "timezone": tz} | options, name, payload)

    def every(
        self, seconds: float, *, name: str | None = None, payload: Any = None, **options: Any
    ) -> Callable[[Handler[P, R]], Handler[P, R]]:
        """As `cron`, for a task every so many seconds."""
        return self._scheduled({"every": seconds} | options, name, payload)

    def _scheduled(
        self, fields: dict[str, Any], name: str | None, payload: Any
    ) -> Callable[[Handler[P, R]], Handler[P, R]]:
        def declare(handler: Handler[P, R]) -> Handler[P, R]:
            if not isinstance(handler, Handler):
                raise RegistryError("a schedule stands above @tasks.task(...), which makes the handler that it fires")
            values = {**handler.defaults(), "name": name or handler.type, "type": handler.type, **fields}
            try:
                text = encode_json({} if payload is None else payload, what="payload", most_bytes=limits.PAYLOAD_BYTES)
                spec = spec_of(values, text)
            except InvalidTask as error:
                raise RegistryError(f"the schedule of {handler.type} cannot be: {error}") from None
            if spec.name in self._schedules:
                raise RegistryError(f"schedule {spec.name!r} is declared twice; give one of them another name=")
            self._schedules[spec.name] = spec
            return handler

        return declare

    @property
    def schedules(self) -> list[Spec]:
        """The schedules that are declared here."""
        return list(self._schedules.values())

    @property
    def types(self) -> list[str]:
        """The task types known here, sorted."""
        return sorted(self._handlers)

    @property
    def handlers(self) -> list[Handler[..., Any]]:
        """All handlers, in the order of their registration."""
        return list(self._handlers.values())

    def get(self, type: str) -> Handler[..., Any] | None:
        """The handler of `type`, or None."""
        return self._handlers.get(type)

    def __len__(self) -> int:
        return len(self._handlers)


@asynccontextmanager
async def _nothing() -> AsyncIterator[None]:
    yield


def _check(type: str, options: Options) -> None:
    if options.executor not in ("auto", "process"):
        raise RegistryError(f"{type}: executor must be 'auto' or 'process', not {options.executor!r}")
    kinds: list[Any] = list(options.retry_on)
    for kind in kinds:
        if not inspect.isclass(kind) or not issubclass(kind, BaseException):
            raise RegistryError(f"{type}: retry_on has {kind!r}, which is no exception class")
    named: tuple[tuple[str, Any], ...] = (("task type", type), ("queue", options.queue))
    for what, value in named:
        if not isinstance(value, str) or not limits.NAME.fullmatch(value):
            raise RegistryError(f"{what} {value!r} is not a name: {limits.NAME_HINT}")
    low, high = limits.TIMEOUT_SECONDS
    if options.timeout is not None and not low <= options.timeout <= high:
        raise RegistryError(f"{type}: timeout must be {low:g} to {high:g} seconds")
    retries = options.retry.max_retries
    if retries is not None and not limits.MAX_RETRIES[0] <= retries <= limits.MAX_RETRIES[1]:
        raise RegistryError(f"{type}: max_retries must be {limits.MAX_RETRIES[0]} to {limits.MAX_RETRIES[1]}")


def _signature(type: str, function: Any) -> tuple[inspect.Signature, dict[str, Any]]:
    if not inspect.isroutine(function):
        raise RegistryError(f"{type}: the handler must be a function, not {function!r}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise RegistryError(f"{type}: the handler must not be a generator; return the result instead")
    if getattr(function, "__name__", "") == "<lambda>":
        raise RegistryError(f"{type}: give the handler a name with `def`; a lambda's errors cannot be told apart")
    signature = inspect.signature(function)
    for name, parameter in signature.parameters.items():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
            raise RegistryError(f"{type}: argument {name!r} must be passable by keyword: payloads are JSON objects")
    try:
        hints = get_type_hints(function)
    except Exception as error:
        raise RegistryError(f"{type}: an annotation of the handler cannot be resolved: {error}") from None
    if "ctx" in hints and hints["ctx"] is not Context:
        raise RegistryError(f"{type}: the argument ctx is the dhara Context; annotate it `ctx: Context`, or rename it")
    return signature, hints
