"""validate: each field in and out of its bounds; whatever comes in, nothing but InvalidTask comes out."""

from __future__ import annotations

import dataclasses
import json
import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhara.domain import limits
from dhara.domain.task import NewTask
from dhara.domain.validate import CREATE_FIELDS, encode_json, new_task, parse_time
from dhara.errors import InvalidTask

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
ID = UUID(int=7)
TRACE = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"


def validated(**fields: Any) -> NewTask:
    return new_task({"type": "t"} | fields, "{}", id=ID, now=NOW)


def iso(**delta: float) -> str:
    return (NOW + timedelta(**delta)).isoformat()


GOOD: list[tuple[str, Any, Any]] = [
    ("type", "email.send", "email.send"),
    ("type", "a" * 100, "a" * 100),
    ("queue", "0", "0"),
    ("priority", 0, 0),
    ("priority", 100, 100),
    ("max_retries", 20, 20),
    ("delay", 0, 0.0),
    ("delay", 365 * 86_400, 365 * 86_400.0),
    ("timeout", 0.001, 0.001),
    ("timeout", 604_800, 604_800.0),
    ("run_at", iso(days=365), NOW + timedelta(days=365)),
    ("run_at", iso(minutes=-5), NOW - timedelta(minutes=5)),
    ("run_at", "2026-06-01T14:00:00+02:00", NOW),
    ("run_at", "2026-06-01t12:00:00.123456789z", NOW.replace(microsecond=123456)),
    ("run_at", NOW, NOW),
    ("expires_at", iso(seconds=1), NOW + timedelta(seconds=1)),
    ("expires_at", "9999-12-31T23:59:59Z", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
    ("idempotency_key", "k" * 255, "k" * 255),
    ("concurrency_key", "ключ", "ключ"),
    ("tags", ["b", "a", "b"], ("b", "a")),
    ("tags", [], ()),
    ("tags", [str(n) for n in range(32)], tuple(str(n) for n in range(32))),
    ("traceparent", TRACE, TRACE),
]
WRONG: dict[str, list[Any]] = {
    "type": ["", "A", "a" * 101, "é", "a b", "a\n", "../x", "'; DROP", "__proto__", 1, True, [], {}],
    "queue": ["", "Q", "q" * 101, "\u202e", "a%00", "q\r\n", 0],
    "priority": [-1, 101, 10**9, 1.5, "5", True, math.nan, []],
    "max_retries": [-1, 21, 10**9, 1.5, "5", False],
    "delay": [-0.1, 365 * 86_400 + 1, math.nan, math.inf, "5", True, 10**400],
    "timeout": [0, 0.0009, 604_801, math.nan, "5", True, -1],
    "run_at": [
        iso(days=365, seconds=1), iso(minutes=-5, seconds=-1), "now", "", 5, True, datetime(2026, 6, 1, 12),
        "2026-06-01T12:00:00", "2026-06-01", "2026-02-30T12:00:00Z", "2026-06-01T24:00:00Z", "2026-06-30T23:59:60Z",
        "2026-06-01T12:00:00+25:00", "2026-06-01T12:00:00Z\n", "2026-6-1T1:0:0Z", "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00Z", "9999-01-01T00:00:00Z", "10000-01-01T00:00:00Z", "٢٠٢٦-01-01T00:00:00Z",
        "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59",
    ],
    "expires_at": [iso(seconds=-1), iso(), "x", 7],
    "idempotency_key": ["", "k" * 256, "a\r\nb", "\x00", "\ud800", 5],
    "concurrency_key": ["", "k" * 256, "\x7f", []],
    "tags": ["a", [""], ["a" * 101], [1], [None], ["\ud800"], ["a\n"], [str(n) for n in range(33)], {"a": 1}],
    "traceparent": ["", "00", TRACE.upper(), TRACE + "\n", 5],
    "nonsense": [1],
    "TYPE": ["t"],
}  # fmt: skip
BAD = [(field, value) for field, values in WRONG.items() for value in values]


@pytest.mark.parametrize(("field", "value", "kept"), GOOD)
def test_good(field: str, value: Any, kept: Any) -> None:
    assert getattr(validated(**{field: value}), field) == kept


@pytest.mark.parametrize(("field", "value"), BAD)
def test_bad(field: str, value: Any) -> None:
    with pytest.raises(InvalidTask) as caught:
        validated(**{field: value})
    ((named, message),) = caught.value.problems
    assert named.partition("[")[0] == field
    assert message


def test_defaults() -> None:
    assert validated() == NewTask(id=ID, type="t")


def test_every_wrong_field_is_named_at_once() -> None:
    with pytest.raises(InvalidTask) as caught:
        new_task({"queue": "Q", "priority": -1, "nonsense": 1, "tags": ["a", ""]}, "{}", id=ID, now=NOW)
    assert [field for field, _ in caught.value.problems] == ["nonsense", "type", "queue", "priority", "tags[1]"]


def test_run_at_and_delay_exclude_each_other() -> None:
    with pytest.raises(InvalidTask, match="not both"):
        validated(run_at=iso(), delay=1)


@pytest.mark.parametrize("field", [field for field in CREATE_FIELDS if field != "payload"])
def test_null_is_not_absent(field: str) -> None:
    with pytest.raises(InvalidTask, match="must not be null"):
        new_task({"type": "t"} | {field: None}, "{}", id=ID, now=NOW)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.datetimes() | st.uuids()
    | st.datetimes(timezones=st.timezones()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=4),
    max_leaves=6,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(CREATE_FIELDS) | st.text(max_size=4), ANYTHING, max_size=5))
def test_whatever_comes_in_nothing_else_comes_out(fields: dict[str, Any]) -> None:
    try:
        task = new_task(fields, "{}", id=ID, now=NOW)
    except InvalidTask as error:
        assert error.problems  # noqa: PT017
        assert str(error)  # noqa: PT017
    else:
        assert limits.NAME.fullmatch(task.type)
        assert limits.PRIORITY[0] <= task.priority <= limits.PRIORITY[1]
        assert task.run_at is None or task.delay is None


@given(ANYTHING)
def test_what_is_encoded_is_json_that_comes_back(value: Any) -> None:
    try:
        text = encode_json(value, what="payload", most_bytes=4096)
    except InvalidTask as error:
        assert [field for field, _ in error.problems] == ["payload"]  # noqa: PT017
    else:
        assert len(text.encode()) <= 4096
        assert "\\u0000" not in text
        assert json.dumps(json.loads(text)) is not None


STORABLE = st.characters(exclude_categories=["Cs"], exclude_characters="\x00")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(STORABLE, max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(STORABLE, max_size=3), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


@given(JSON)
def test_json_goes_through_unchanged(value: Any) -> None:
    assert json.loads(encode_json(value, what="payload", most_bytes=10**6)) == value


@dataclasses.dataclass
class Point:
    x: Any


class Struct(msgspec.Struct):
    x: Any


def test_dataclasses_structs_and_times_are_what_msgspec_makes_of_them() -> None:
    assert encode_json([Point(1), Struct("a")], what="payload", most_bytes=99) == '[{"x":1},{"x":"a"}]'
    at = datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1)))
    assert encode_json(at, what="payload", most_bytes=99) == '"2026-01-01T00:00:00+01:00"'


CYCLE: list[Any] = []
CYCLE.append(CYCLE)
ODD: dict[str, Any] = {
    "NaN": math.nan,
    "Infinity": math.inf,
    "inner NaN": {"a": [math.nan]},
    "NUL": "a\x00",
    "NUL in a key": {"\x00": 1},
    "surrogate": "\ud800",
    "surrogate in a key": {"\udfff": 1},
    "bytes": b"x",
    "bytearray": [bytearray(b"x")],
    "object": object(),
    "lambda": lambda: 1,
    "generator": (n for n in range(3)),
    "complex": 1j,
    "tuple key": {(1, 2): 3},
    "cycle": CYCLE,
    "huge integer": 10**5000,
    "NaN in a dataclass": Point(math.nan),
    "NUL in a struct": Struct("\x00"),
    "surrogate in a struct": Struct(["\ud800"]),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_not_json(name: str) -> None:
    with pytest.raises(InvalidTask) as caught:
        encode_json(ODD[name], what="payload", most_bytes=10**6)
    assert caught.value.problems[0][0] == "payload"


def test_depth_and_size() -> None:
    deep: Any = 1
    for _ in range(limits.JSON_DEPTH):
        deep = [deep]
    assert encode_json(deep, what="payload", most_bytes=10**6)
    with pytest.raises(InvalidTask, match="nested deeper"):
        encode_json([deep], what="payload", most_bytes=10**6)
    assert encode_json("é" * 9, what="payload", most_bytes=20)
    with pytest.raises(InvalidTask) as caught:
        encode_json("é" * 10, what="payload", most_bytes=21)
    assert caught.value.code == "payload_too_large"


@given(st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.timezones() | st.just(UTC)))
def test_times_round_trip(at: datetime) -> None:
    offset = at.utcoffset()
    if offset is not None and offset.seconds % 60 == 0:  # older zones had seconds, which RFC 3339 has not
        found = parse_time(at.isoformat())
        assert found is not None
        assert found.isoformat() == at.isoformat()


@given(st.text(alphabet="0123456789-:TtZz+. ", max_size=35))
def test_times_never_raise(text: str) -> None:
    found = parse_time(text)
    assert found is None or found.tzinfo is not None
