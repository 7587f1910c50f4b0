"""Log records: one line each, whatever is in them, with the ids of what they belong to."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from uuid import UUID

import pytest

from dhara.telemetry import log as logs

ODD = "a\r\nFAKE 2026 line\x1b[31m\x00\u2028b\u2029\x85\u202e\ud800\x7f"
WORKER = UUID(int=7)


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    level = root.level
    yield io.StringIO()
    root.handlers[:] = [handler for handler in root.handlers if not getattr(handler, "dhara", False)]
    root.setLevel(level)


def only_ours() -> None:
    """pytest's own handler would hand lone surrogates to its report, which pytest-xdist cannot send."""
    root = logging.getLogger()
    root.handlers[:] = [handler for handler in root.handlers if getattr(handler, "dhara", False)]


def lines(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("format", ["text", "json"])
def test_each_record_is_one_line(stream: io.StringIO, format: str) -> None:
    logs.configure("info", format, stream)
    only_ours()
    log = logging.getLogger("x." + format)
    log.info("message %s", ODD, extra={"field": ODD})
    try:
        raise ValueError(ODD)
    except ValueError:
        log.exception("failed: %s", ODD)
    text = stream.getvalue()
    assert len(lines(stream)) == 2
    assert text.count("\n") == 2
    assert not set(text) & set("\r\x1b\x00\u2028\u2029\x85\u202e\ud800\x7f")
    assert "Traceback" in text
    text.encode()


def test_json_holds_what_was_said(stream: io.StringIO) -> None:
    logs.configure("info", "json", stream)
    with logs.bound(request_id="r-1", task_id="t-1", attempt=2, worker_id=WORKER):
        logging.getLogger("x").warning("it is %d", 5, extra={"n": 1})
    record = json.loads(stream.getvalue())
    assert record.pop("time").endswith("Z")
    assert record == {
        "event": "it is 5",
        "level": "warning",
        "logger": "x",
        "n": 1,
        "request_id": "r-1",
        "task_id": "t-1",
        "attempt": 2,
        "worker_id": str(WORKER),
    }


def test_text_holds_what_was_said(stream: io.StringIO) -> None:
    logs.configure("info", "text", stream)
    with logs.bound(request_id="r-1"):
        logging.getLogger("x").info("hello", extra={"path": 'a "b"'})
    line = stream.getvalue()
    assert "INFO" in line
    assert line.endswith(' x: hello request_id=r-1 path="a \\"b\\""\n')


def test_ids_end_with_their_block(stream: io.StringIO) -> None:
    logs.configure("info", "json", stream)
    with logs.bound(task_id="outer"):
        with logs.bound(task_id="inner"):
            logging.getLogger("x").info("one")
        logging.getLogger("x").info("two")
    logging.getLogger("x").info("three")
    assert [json.loads(line).get("task_id") for line in lines(stream)] == ["inner", "outer", None]


def test_configure_again_replaces_and_the_level_counts(stream: io.StringIO) -> None:
    logs.configure("debug", "text", io.StringIO())
    logs.configure("warning", "text", stream)
    logging.getLogger("x").info("no")
    logging.getLogger("x").warning("yes")
    assert len(lines(stream)) == 1


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_value_that_cannot_be_shown_does_no_harm(stream: io.StringIO, format: str) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no")

        __repr__ = __str__

    logs.configure("info", format, stream)
    logging.getLogger("x").info("seen", extra={"value": Broken()})
    assert "whose str() raises RuntimeError" in stream.getvalue()


def test_escape_keeps_what_is_printable() -> None:
    assert logs.escape("Grüße 😀 \\n") == "Grüße 😀 \\n"
    assert logs.escape("a\nb") == "a\\nb"


@pytest.mark.parametrize("format", ["text", "json"])
def test_secrets_stay_inside(stream: io.StringIO, format: str) -> None:
    """S21: canaries in message, arguments, fields, exceptions."""
    password, key = "c4n4ry", "dh_abcdefghijkl_" + "Zz9-" * 10 + "abc"
    dsn = f"postgresql://u:{password}@h/d"
    logs.configure("info", format, stream)
    only_ours()
    log = logging.getLogger("x")
    log.info("connecting to %s with Bearer %s", dsn, key, extra={"dsn": dsn, "headers": {"authorization": key}})
    log.info(f"password={password} {key}", extra={"error": ValueError(f"host=h password='{password}'")})  # noqa: G004
    try:
        raise ValueError(f"cannot reach {dsn} with {key}")
    except ValueError:
        log.exception("failed")
    text = stream.getvalue()
    assert password not in text
    assert "Zz9-" not in text
    assert text.count("dh_abcdefghijkl_***") >= 4
    if format == "json":
        assert all(json.loads(line) for line in lines(stream))
