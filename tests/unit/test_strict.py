"""The strict parser agrees with slow and obvious ones."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhara.api import strict
from dhara.api.problems import Refused
from dhara.api.strict import parse

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)

# What makes valid JSON doubtful or wrong, and how it may be spaced.
MARKS = [
    b'"',
    b'"a":1,',
    b"1e99",
    b"e-400",
    b"0",
    b".5",
    b"NaN",
    b"\\u0000",
    b"\x00",
    b"[",
    b"}",
    b" ",
    b"\xed\xa0\x80",
    b"-",
]
SEPARATORS = [(",", ":"), (", ", ": "), (" ,\n", "\t:")]


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 0


def strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [*value, *(text for item in value.values() for text in strings(item))]
    return [text for item in value for text in strings(item)] if isinstance(value, list) else []


@settings(max_examples=500, deadline=None)
@given(VALUES, st.sampled_from([None, 1, "\t"]), st.booleans())
def test_what_python_writes_is_read_the_same(value: Any, indent: Any, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    read = parse(text.encode(), 1_000)
    assert json.dumps(read) == json.dumps(value)


@settings(max_examples=300, deadline=None)
@given(VALUES, st.integers(0, 6))
def test_depth_is_exact(value: Any, levels: int) -> None:
    # Brackets inside texts count for nothing.
    text = json.dumps([value, '[{[{\\"]}']).encode()
    if depth(value) + 1 > levels:
        with pytest.raises(Refused) as refused:
            parse(text, levels)
        assert refused.value.code == "invalid_json"
    else:
        parse(text, levels)


UNITS = st.lists(
    st.sampled_from(["a", '"', "\\", "\x00", "\ud800", "\udbff", "\udc00", "\udfff", "u0000", "ud800", "é", "😀"]),
    max_size=6,
).map("".join)


@settings(max_examples=500, deadline=None)
@given(
    st.recursive(
        UNITS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(UNITS, inner, max_size=3), max_leaves=6
    )
)
def test_unstorable_texts_are_found_exactly(value: Any) -> None:
    text = json.dumps(value)
    # What two halves of a pair side by side mean is the reader's to say: they are one character.
    meant = strings(json.loads(text))
    bad = any("\x00" in one or any("\ud800" <= c <= "\udfff" for c in one) for one in meant)
    if bad:
        with pytest.raises(Refused) as refused:
            parse(text.encode())
        assert refused.value.code == "invalid_string"
    else:
        parse(text.encode())


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(TEXT, st.integers(0, 9)), max_size=6), st.integers(0, 3))
def test_duplicates_are_found_exactly(pairs: list[tuple[str, int]], deep: int) -> None:
    text = "[" * deep + "{" + ",".join(f"{json.dumps(key)}:{value}" for key, value in pairs) + "}" + "]" * deep
    if len({key for key, _ in pairs}) < len(pairs):
        with pytest.raises(Refused, match="same key twice"):
            parse(text.encode())
    else:
        parse(text.encode())


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=40))
def test_bytes_never_do_more_than_be_refused(body: bytes) -> None:
    # Whatever else it raised would fail the test.
    with suppress(Refused):
        parse(body)


@settings(max_examples=1_000, deadline=None)
@given(
    VALUES, st.lists(st.tuples(st.integers(0, 200), st.sampled_from(MARKS)), max_size=2), st.sampled_from(SEPARATORS)
)
def test_the_quick_look_says_what_the_closer_one_says(
    value: Any, marks: list[tuple[int, bytes]], separators: tuple[str, str]
) -> None:
    body = json.dumps(value, ensure_ascii=False, separators=separators).encode()
    for at, mark in marks:
        body = body[:at] + mark + body[at:]
    found = strict._beyond_doubt(body, 5)
    if found is not strict._IN_DOUBT:
        assert repr(found) == repr(strict._parse_closely(body, 5))


def test_the_quick_look_is_enough_for_what_people_send() -> None:
    task = {"type": "echo", "payload": {"to": "a@b.c", "n": 12_345, "x": 1.5e-7, "items": ["é", None, True]}}
    for separators in SEPARATORS:
        body = json.dumps(task, ensure_ascii=False, separators=separators).encode()
        assert strict._beyond_doubt(body, 64) == task


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":1,"a":1}',
        b'[{"b":"","c":{"b":1,"b":1}}]',
        b'"\\u0000"',
        b"1e999",
        b"0e999",
        b"9" * 1_001,
        b"[[[[[[1]]]]]]",
    ],
)
def test_the_quick_look_leaves_what_is_wrong_to_the_closer_one(body: bytes) -> None:
    assert strict._beyond_doubt(body, 5) is strict._IN_DOUBT
    with pytest.raises(Refused):
        parse(body, 5)


@pytest.mark.parametrize("before", [b"[", b'{"tasks":['])
def test_a_batch_is_as_deep_as_its_deepest_item(before: bytes) -> None:
    after = b"]}" if before[:1] == b"{" else b"]"
    room = 8 - len(after)
    items = [b"[" * room + b"]" * room, b"{}"] * 20
    body = before + b",".join(items) + after
    assert strict._beyond_doubt(body, 8) == strict._parse_closely(body, 8)
    deeper = before + b",".join([*items, b"[" * (room + 1) + b"]" * (room + 1)]) + after
    assert strict._beyond_doubt(deeper, 8) is strict._IN_DOUBT
    with pytest.raises(Refused):
        parse(deeper, 8)
