"""Fields that HTTP never shows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhara.domain.masking import Mask

CASES: list[tuple[tuple[str, ...], str, str]] = [
    (("a",), '{"a":1,"b": 1.0}', '{"a":"***","b":1.0}'),
    (("a.b",), '{ "a":{"b":[1],"c":1e5 } , "x":-0 }', '{"a":{"b":"***","c":1e5},"x":-0}'),
    (("*.b",), '[{"b":1},{"c":2},3]', '[{"b":"***"},{"c":2},3]'),
    (("1",), "[1,2,3]", '[1,"***",3]'),
    (("*",), '{"a":1,"b":[2]}', '{"a":"***","b":"***"}'),
    (("a.b", "a.c"), '{"a":{"b":1,"c":2,"d":3}}', '{"a":{"b":"***","c":"***","d":3}}'),
    (("a", "a.b"), '{"a":{"b":1}}', '{"a":"***"}'),
    (("a",), '{"\\u0061":1}', '{"a":"***"}'),
    (("a.b",), '{ "a" : 5 }', '{ "a" : 5 }'),
    (("a",), '{ "b" : 1 }', '{ "b" : 1 }'),
    (("a",), '"a"', '"a"'),
    (("a",), "null", "null"),
    ((), '{"a" : 1}', '{"a" : 1}'),
]


@pytest.mark.parametrize(("paths", "text", "masked"), CASES)
def test_what_is_masked(paths: tuple[str, ...], text: str, masked: str) -> None:
    assert Mask(paths).apply(text) == masked


def test_nothing_is_nothing() -> None:
    assert Mask(("a",)).apply(None) is None


KEYS = st.sampled_from(["a", "b", "c.d", "\u00e9", ""])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=15,
)


@given(VALUES, st.lists(st.lists(st.sampled_from(["a", "b", "*", "0"]), min_size=1, max_size=3), max_size=3))
def test_it_does_what_it_says(value: Any, paths: list[list[str]]) -> None:
    def expected(value: Any, paths: list[list[str]]) -> Any:
        if [] in paths:
            return "***"
        if isinstance(value, dict):
            return {k: expected(v, [p[1:] for p in paths if p[0] in (k, "*")]) for k, v in value.items()}
        if isinstance(value, list):
            return [expected(v, [p[1:] for p in paths if p[0] in (str(i), "*")]) for i, v in enumerate(value)]
        return value

    text = json.dumps(value)
    masked = Mask([".".join(path) for path in paths]).apply(text)
    assert masked is not None
    assert json.loads(masked) == expected(value, paths)
    veiled = Mask([".".join(path) for path in paths]).veiled
    for written in (text, json.dumps(value, ensure_ascii=False)):
        if veiled is not None and not any(one in written for one in veiled):
            assert json.loads(written) == expected(value, paths), "no text without what veils it has a masked field"


@pytest.mark.parametrize(
    ("paths", "veiled"),
    [
        ((), ()),
        (("card.number", "users.*.secret", "pins.0"), ('"number"', '"pins"', '"secret"', "\\u", "\\/")),
        (("a", "*"), None),
        (("1.*",), None),
        (('say "hi"',), None),
    ],
)
def test_what_veils_a_text(paths: tuple[str, ...], veiled: tuple[str, ...] | None) -> None:
    assert Mask(paths).veiled == veiled
