"""The parsers that `python -m fuzz.parsers` fuzzes for long, here for a moment and without guidance."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz.frames import mutated
from fuzz.parsers import NAMES
from fuzz.targets import PARSERS

PIECES = st.sampled_from(
    [
        b"postgresql://u:p@h/d",
        b"password=",
        b"dh_",
        b"1.5h",
        b"2026-01-31T12:00:00Z",
        b'{"a":',
        b"limit=1&q=%ff",
        b"\\u0000",
    ]
)
INPUTS = st.lists(PIECES | st.binary(max_size=20), max_size=6).map(b"".join)


@pytest.mark.parametrize("name", PARSERS)
@given(data=INPUTS)
def test_parsers_raise_only_what_they_say(name: str, data: bytes) -> None:
    PARSERS[name](data)


@given(st.randoms(use_true_random=False))
def test_frames_are_made_of_anything(rng: object) -> None:
    assert isinstance(mutated(rng), bytes)  # type: ignore[arg-type]


def test_all_are_named() -> None:
    assert list(PARSERS) == NAMES
