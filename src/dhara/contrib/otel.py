"""OpenTelemetry: spans for the enqueue, the wait and the run of each task, connected across processes.

    AsyncClient(dsn, middleware=[otel.enqueueing()])    a span `enqueue TYPE`; its context travels with the task
    otel.instrument(tasks)                              spans `wait TYPE` and `run TYPE` of each attempt

The first attempt is a child of its enqueue. A later one begins a trace of its own with a link to it: a retry a day later
would stretch the trace beyond what any viewer shows. Needs `pip install dhara[otel]`, or another implementation of the
OpenTelemetry API.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
from opentelemetry import trace
from opentelemetry.trace import Link, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from dhara.domain.outcome import Cancel, Retry, Signal, Snooze
from dhara.domain.task import NewTask
from dhara.worker.context import Context
from dhara.worker.registry import Registry

if TYPE_CHECKING:
    from dhara.client.asynchronous import Handle

_NAME = "dhara"
_propagator = TraceContextTextMapPropagator()


def enqueueing(provider: Any = None) -> Callable[[NewTask, Callable[[NewTask], Awaitable[Handle]]], Awaitable[Handle]]:
    """Client middleware: a PRODUCER span around each enqueue, whose context is the task's `traceparent`.

    A task that brings a traceparent of its own keeps it. `provider`: a tracer provider in place of the global one.
    """
    tracer = trace.get_tracer(_NAME, tracer_provider=provider)

    async def traced(task: NewTask, proceed: Callable[[NewTask], Awaitable[Handle]]) -> Handle:
        attributes = _attributes(task.type, task.queue) | {"messaging.operation.type": "send"}
        with tracer.start_as_current_span(
            f"enqueue {task.type}", kind=SpanKind.PRODUCER, attributes=attributes
        ) as span:
            if task.traceparent is None:
                carrier: dict[str, str] = {}
                _propagator.inject(carrier)
                if "traceparent" in carrier:
                    task = msgspec.structs.replace(task, traceparent=carrier["traceparent"])
            handle = await proceed(task)
            span.set_attribute("messaging.message.id", str(handle.id))
            span.set_attribute("dhara.created", handle.created)
            return handle

    return traced


def instrument(registry: Registry, provider: Any = None) -> None:
    """Have the workers of `registry` make spans: `wait`, from when the attempt was due to its claim, and `run`, in which
    the handler's own spans stand. Call it once, before other middleware that should stand within the span."""
    tracer = trace.get_tracer(_NAME, tracer_provider=provider)

    async def traced(ctx: Context, proceed: Callable[[], Awaitable[Any]]) -> Any:
        parent, links = _origin(ctx)
        attributes = _attributes(ctx.type, ctx.queue) | {
            "messaging.operation.type": "process",
            "messaging.message.id": str(ctx.task_id),
            "dhara.attempt": ctx.attempt,
        }
        waited = tracer.start_span(
            f"wait {ctx.type}", parent, attributes=attributes, links=links, start_time=_nanoseconds(ctx.run_at)
        )
        waited.end(_nanoseconds(ctx.claimed_at))
        with tracer.start_as_current_span(
            f"run {ctx.type}",
            parent,
            kind=SpanKind.CONSUMER,
            attributes=attributes,
            links=links,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                return await proceed()
            except Signal as signal:
                # What the handler wishes is no error, unless it is a failure.
                span.set_attribute("dhara.outcome", type(signal).__name__.lower())
                if not isinstance(signal, Snooze | Cancel):
                    span.set_status(
                        Status(StatusCode.ERROR, str(signal) if isinstance(signal, Retry) else "dead-lettered")
                    )
                raise
            except BaseException as error:
                span.record_exception(error)
                span.set_status(Status(StatusCode.ERROR, type(error).__name__))
                raise

    registry.middleware(traced)


def _origin(ctx: Context) -> tuple[Any, list[Link]]:
    """The context that the attempt's spans begin in, and what they are linked to."""
    if ctx.traceparent is None:
        return trace.set_span_in_context(trace.INVALID_SPAN), []
    origin = _propagator.extract({"traceparent": ctx.traceparent})
    if ctx.attempt == 1:
        return origin, []
    enqueued = trace.get_current_span(origin).get_span_context()
    return trace.set_span_in_context(trace.INVALID_SPAN), [Link(enqueued)]


def _attributes(type: str, queue: str) -> dict[str, Any]:
    return {"messaging.system": "dhara", "messaging.destination.name": queue, "dhara.type": type}


def _nanoseconds(at: datetime) -> int:
    return round(at.timestamp() * 1_000_000) * 1_000
