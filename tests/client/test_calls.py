"""From what the user wrote to a `NewTask`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from dhara import InvalidBatch, InvalidTask, Registry, RetryPolicy
from dhara.client.calls import build, build_many, to_json

tasks = Registry()


@tasks.task("mail.send", queue="mail", priority=7, retry=RetryPolicy(max_retries=2))
async def send(to: str, copies: int = 1) -> None: ...


def test_a_call_brings_its_handlers_defaults_and_options_override_them() -> None:
    made = build(send.s("a@b.c"), None, {})
    assert (made.type, made.queue, made.priority, made.max_retries, made.payload) == (
        "mail.send",
        "mail",
        7,
        2,
        '{"to":"a@b.c"}',
    )
    made = build(send.s("a@b.c"), None, {"queue": "other", "priority": 0, "max_retries": 5, "timeout": None})
    assert (made.queue, made.priority, made.max_retries, made.timeout) == ("other", 0, 5, None)


def test_by_name_with_everything() -> None:
    at = datetime.now(UTC) + timedelta(hours=1)
    made = build(
        "t",
        [1, None],
        {
            "run_at": at,
            "idempotency_key": "k",
            "timeout": timedelta(minutes=1),
            "expires_at": at + timedelta(hours=1),
            "tags": ["a", "b", "a"],
            "concurrency_key": "c",
            "traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01",
        },
    )
    assert made.payload == "[1,null]"
    assert (made.run_at, made.timeout, made.tags, made.concurrency_key) == (at, 60.0, ("a", "b"), "c")
    assert build("t", None, {}).payload == "{}"
    assert build("t", None, {"delay": timedelta(seconds=1.5)}).delay == 1.5


def test_every_wrong_field_is_named() -> None:
    with pytest.raises(InvalidTask) as caught:
        build("T!", {}, {"priority": 101, "run_at": datetime(2026, 1, 1), "max_retires": 3})
    assert [field for field, _ in caught.value.problems] == ["max_retires", "priority", "run_at", "type"] or {
        field for field, _ in caught.value.problems
    } == {"max_retires", "priority", "run_at", "type"}


@pytest.mark.parametrize(
    "payload",
    [{"a": float("nan")}, {"a": b"x"}, {"a": "\x00"}, {"\ud800": 1}, {"a": object()}, "x" * 300_000],
    ids=["nan", "bytes", "nul", "surrogate", "object", "large"],
)
def test_payloads_that_cannot_be_stored(payload: Any) -> None:
    with pytest.raises(InvalidTask) as caught:
        build("t", payload, {})
    assert caught.value.problems[0][0] == "payload"


def test_raw_json_stays_byte_for_byte() -> None:
    assert (
        build("t", msgspec.Raw(b'{"a": 1.0,  "b":12345678901234567890123}'), {}).payload
        == '{"a": 1.0,  "b":12345678901234567890123}'
    )
    told = rb'{"a":"\\u0000","a":1}'  # a backslash, and the text u0000
    assert build("t", msgspec.Raw(told), {}).payload == told.decode()
    hidden = (rb'{"a":"\u0000","a":1}', rb'{"a":{"\\\u0000":2},"a":1}')
    # PostgreSQL keeps these as text, and fails when it compares them.
    numbers = (b"1e-100000", b"[1E+401]", b"0e99999999999", b"9" * 1_001, b"0." + b"1" * 1_001)
    for bad in (*hidden, b"{", b'{"a": "\\u0000"}', b"[" * 70 + b"]" * 70, b"1" * 300_000, b"\xff", *numbers):
        with pytest.raises(InvalidTask):
            build("t", msgspec.Raw(bad), {})


def test_wrong_kinds_of_calls() -> None:
    with pytest.raises(TypeError, match="call its"):
        build(send, None, {})
    with pytest.raises(TypeError, match="not int"):
        build(3, None, {})
    with pytest.raises(TypeError, match="payload already"):
        build(send.s("a"), {"to": "b"}, {})
    with pytest.raises(TypeError, match="missing"):
        send.s()


def test_many_take_calls_and_fields_and_name_the_bad_one() -> None:
    made = build_many(
        [send.s("a"), {"type": "t", "payload": {"x": 1}, "queue": "own"}, {"type": send.s("b")}],
        {"queue": "all"},
    )
    assert [(task.type, task.queue) for task in made] == [
        ("mail.send", "all"),
        ("t", "own"),
        ("mail.send", "all"),
    ]
    assert len({task.id for task in made}) == 3
    with pytest.raises(InvalidBatch) as caught:
        build_many([{"type": "t"}, {"type": "t", "priority": -1}], {})
    assert caught.value.index == 1
    assert caught.value.problems[0][0] == "[1].priority"
    with pytest.raises(InvalidBatch):
        build_many([{"payload": {}}], {})
    with pytest.raises(TypeError, match="one task"):
        build_many([{"type": "t"}], {"idempotency_key": "k"})
    with pytest.raises(TypeError, match="not str"):
        build_many(["t"], {})  # type: ignore[list-item]


def test_to_json_keeps_payloads_and_leaves_out_what_is_not_given() -> None:
    made = build("t", msgspec.Raw(b'{"a": 1.0}'), {"tags": ["x"]})
    decoded = msgspec.json.decode(to_json([made]))
    assert '{"a": 1.0}' in to_json([made])
    assert {"id", "type", "payload", "queue", "priority", "max_retries", "tags"} <= decoded[0].keys()
    assert not {"run_at", "delay", "idempotency_key", "timeout"} & decoded[0].keys()
