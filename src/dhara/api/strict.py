"""Strict JSON: what RFC 8259 allows and PostgreSQL can keep, nothing else, and exactly so.

Most bodies are beyond doubt: msgspec reads them, and what it read, written again, lacks nothing. The others are looked at
closer. There Python's C scanner checks the grammar, duplicate keys and number ranges in one pass. What it cannot see
(depth, long numbers, unstorable characters) is looked for only when a cheap sign says that it could be there: the sign may
be wrong, the check that follows it is exact.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import msgspec

from dhara.api.problems import Refused
from dhara.domain import limits, validate
from dhara.domain.validate import LONG_NUMBER, has_long_number, text_problem

_SUSPECT = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"')
_NO_BRACKET = re.compile(r"[^\[\]{}]+")
# Whatever has that many digits in a row has ten of them among every hundredth byte.
_STRIDE = limits.NUMBER_DIGITS // 10
_LONG_STRIDES = re.compile(rb"[0-9]{10}")
_STEP = {"[": 1, "{": 1, "]": -1, "}": -1}


def parse(body: bytes, levels: int = limits.JSON_DEPTH) -> Any:
    """The value of `body`, whose arrays and objects may nest `levels` deep.

    Raises `Refused`: `invalid_json` (400) or, for characters that cannot be stored, `invalid_string` (422).
    """
    value = _beyond_doubt(body, levels)
    return _parse_closely(body, levels) if value is _IN_DOUBT else value


def _beyond_doubt(body: bytes, levels: int) -> Any:
    """The value, or `_IN_DOUBT`; a third of the cost of the closer look.

    Without backslashes each key and text costs two quotes, here and when written again: a key that was there twice, and was
    dropped, leaves fewer.
    """
    if b"\\" in body or (_brackets(body) > levels and not _is_flat(body, levels)):
        return _IN_DOUBT
    if len(body) > limits.NUMBER_DIGITS and _LONG_STRIDES.search(body[::_STRIDE]):
        return _IN_DOUBT
    try:
        value = _read(body)
        again = _write(value)
    except (msgspec.MsgspecError, ValueError, Refused):
        return _IN_DOUBT
    return value if again.count(b'"') == body.count(b'"') else _IN_DOUBT


def _brackets(text: bytes) -> int:
    """At least as many as the levels of `text`."""
    return text.count(b"[") + text.count(b"{")


def _is_flat(body: bytes, levels: int) -> bool:
    """Whether a batch has so few brackets in each of its items that none can be too deep."""
    try:
        if body[:1] == b"[":
            return all(_brackets(bytes(item)) < levels for item in _read_list(body))
        return all(_brackets(bytes(item)) < levels - 1 for items in _read_lists(body).values() for item in items)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False


def _parse_closely(body: bytes, levels: int) -> Any:
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _invalid(f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    if not text:
        raise _invalid("the body is empty")
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise _invalid(f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise _too_deep(levels) from None
    except ValueError:
        raise _invalid(LONG_NUMBER) from None
    if text.count("[") + text.count("{") > levels and _depth(text) > levels:
        raise _too_deep(levels)
    if has_long_number(text):
        raise _invalid(LONG_NUMBER)
    if _SUSPECT.search(text):
        _refuse_unstorable(value)
    return value


def _invalid(detail: str) -> Refused:
    return Refused("invalid_json", detail)


def _too_deep(levels: int) -> Refused:
    return _invalid(f"the body is nested deeper than {levels} levels")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _invalid("an object has the same key twice")
    return found


def _number(text: str) -> float:
    try:
        return validate.number(text)
    except ValueError as error:
        raise _invalid(str(error)) from None


def _constant(text: str) -> Any:
    raise _invalid(f"{text} is not JSON")


_IN_DOUBT: Any = object()
_read = msgspec.json.Decoder(float_hook=_number).decode
_read_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_read_lists = msgspec.json.Decoder(dict[str, list[msgspec.Raw]]).decode
_write = msgspec.json.Encoder().encode
_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_number, parse_constant=_constant)


def _depth(text: str) -> int:
    """How deep valid JSON nests."""
    brackets = _NO_BRACKET.sub("", _STRING.sub("", text))
    return max(accumulate(map(_STEP.__getitem__, brackets)), default=0)


def _refuse_unstorable(value: Any) -> None:
    for path, text in _strings(value):
        if problem := text_problem(text):
            raise Refused("invalid_string", f"a text of the body {problem}", errors=((path or "body", problem),))


def _strings(value: Any) -> Iterator[tuple[str, str]]:
    """Every key and text in `value`, with its path."""
    stack: list[tuple[str, Any]] = [("", value)]
    while stack:
        path, item = stack.pop()
        if isinstance(item, str):
            yield path, item
        elif isinstance(item, list):
            stack.extend((f"{path}[{i}]", part) for i, part in enumerate(item))
        elif isinstance(item, dict):
            for key, part in item.items():
                if text_problem(key):
                    yield path, key
                stack.append((f"{path}.{key}" if path else key, part))
