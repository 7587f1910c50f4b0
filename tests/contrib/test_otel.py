"""Spans of real enqueues and attempts, caught in memory."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id

from dhara import AsyncClient, Registry, RetryPolicy, Snooze, State
from dhara.contrib import otel
from tests.worker.kit import running


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> TracerProvider:
    made = TracerProvider()
    made.add_span_processor(SimpleSpanProcessor(exporter))
    return made


async def test_one_trace_from_enqueue_to_run_and_links_from_retries(
    dsn: str, provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    tasks = Registry()
    otel.instrument(tasks, provider)
    inner = provider.get_tracer("handlers")
    tries: list[str] = []

    @tasks.task("work", retry=RetryPolicy(base=0.01))
    async def work() -> str:
        with inner.start_as_current_span("inside"):
            tries.append("x")
        if len(tries) == 1:
            raise ValueError("secret")
        if len(tries) == 2:
            raise Snooze(0.01)
        return "done"

    async with (
        AsyncClient(dsn, middleware=[otel.enqueueing(provider)]) as client,
        running(dsn, tasks, poll_interval=0.1),
    ):
        handle = await client.enqueue(work.s())
        task = await client.wait(handle.id, 60)
    assert task.status is State.COMPLETED
    spans: dict[str, list[ReadableSpan]] = {}
    for span in exporter.get_finished_spans():
        spans.setdefault(span.name, []).append(span)
    (enqueue,) = spans["enqueue work"]
    context = enqueue.context
    assert context is not None
    assert (task.traceparent or "")[:-2] == f"00-{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}-"
    assert (enqueue.kind, (enqueue.attributes or {})["messaging.message.id"]) == (SpanKind.PRODUCER, str(task.id))
    runs, waits, insides = spans["run work"], spans["wait work"], spans["inside"]
    assert [len(waits), len(runs), len(insides)] == [3, 3, 3]
    for n, (wait, run, inside) in enumerate(zip(waits, runs, insides, strict=True), 1):
        assert run.context is not None
        assert (run.attributes or {})["dhara.attempt"] == n
        assert inside.parent is not None
        assert inside.parent.span_id == run.context.span_id
        assert (wait.start_time or 0) <= (wait.end_time or 0)
        if n == 1:
            assert run.parent is not None
            assert (run.parent.span_id, run.context.trace_id) == (context.span_id, context.trace_id)
            assert run.links == ()
        else:
            assert run.parent is None
            assert run.context.trace_id != context.trace_id
            assert [link.context.span_id for link in run.links] == [context.span_id]
    assert [run.status.status_code for run in runs] == [StatusCode.ERROR, StatusCode.UNSET, StatusCode.UNSET]
    assert (runs[1].attributes or {})["dhara.outcome"] == "snooze"
    assert [event.name for event in runs[0].events] == ["exception"]


async def test_a_traceparent_of_ones_own_is_kept(
    dsn: str, provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    given = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    async with AsyncClient(dsn, middleware=[otel.enqueueing(provider)]) as client:
        handle = await client.enqueue("t", traceparent=given)
        assert (await client.get(handle.id)).traceparent == given
    assert [span.name for span in exporter.get_finished_spans()] == ["enqueue t"]
