"""Ids: UUIDv7, growing, never twice."""

from __future__ import annotations

import os
import sys
import threading
import time
from itertools import pairwise
from uuid import RFC_4122, UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhara.domain.ids import IdSource
from dhara.store.ids import new_id, new_ids

MOMENTS = st.integers(0, 2**48 - 10)


def milliseconds(id: UUID) -> int:
    return id.int >> 80


@given(st.lists(MOMENTS, min_size=1, max_size=50), st.integers(0, 255))
def test_they_grow_whatever_the_clock_does(moments: list[int], byte: int) -> None:
    """Also when it stands still or goes back, and with the dullest or wildest dice."""
    clock = iter(moments)
    source = IdSource(lambda: next(clock), lambda n: bytes([byte]) * n)
    ids = [source.new() for _ in moments]
    assert all(a < b for a, b in pairwise(ids))
    assert {(id.version, id.variant) for id in ids} == {(7, RFC_4122)}
    highest = -1
    for id, moment in zip(ids, moments, strict=True):
        highest = max(highest, moment)
        assert highest <= milliseconds(id) <= highest + len(moments)


def test_time_in_front() -> None:
    before, id, after = time.time(), new_id(), time.time()
    assert before - 0.002 <= milliseconds(id) / 1000 <= after + 1


def test_a_full_millisecond_runs_over_into_the_next() -> None:
    source = IdSource(lambda: 1_000, lambda n: b"\xff" * n)
    ids = [source.new() for _ in range(3)]
    assert [milliseconds(id) for id in ids] == [1_000, 1_001, 1_001]
    assert sorted(ids) == ids


def test_never_twice_among_threads() -> None:
    """Two equal ids would make the second task vanish as a repetition of the first."""
    source = IdSource(lambda: 1, lambda n: b"\x00" * n)
    found: list[list[UUID]] = [[] for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [
            threading.Thread(target=lambda own=own: own.extend(source.new() for _ in range(1_500))) for own in found
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert len({id for own in found for id in own}) == 4 * 1_500


def test_one_by_one_and_in_bulk_they_only_grow() -> None:
    made: list[UUID] = []
    for n in (1, 0, 5, 3_000, 1):
        made += [new_id(), *new_ids(n), new_id()]
    assert made == sorted(set(made))
    assert {(id.version, id.variant) for id in made} == {(7, RFC_4122)}
    assert all(id == UUID(str(id)) and hash(id) == hash(UUID(str(id))) for id in made)


def test_random_bits_that_run_over_are_carried() -> None:
    full = IdSource(clock_ms=lambda: 1_000, random_bytes=lambda n: b"\xff" * n)
    made = [full.new(), *full.many(3), full.new(), *full.many(2)]
    assert made == sorted(set(made))
    assert made[0].int >> 80 == 1_000
    assert made[-1].int >> 80 == 1_001


def test_low_bits_that_run_over_amid_many_go_on_from_the_last() -> None:
    tail = (5 << 62) | (1 << 62) - 3
    source = IdSource(lambda: 1_000, lambda n: tail.to_bytes(10, "big") if n == 10 else bytes(n))
    made = [*source.many(6), source.new()]
    assert made == sorted(set(made))
    assert {id.int >> 80 for id in made} == {1_000}


def test_a_clock_that_goes_back_does_no_harm() -> None:
    times = iter([2_000, 1_000, 1_500, 2_001])
    source = IdSource(clock_ms=lambda: next(times))
    made = [source.new(), source.new(), *source.many(50), source.new()]
    assert made == sorted(set(made))
    assert [id.int >> 80 for id in (made[0], made[1], made[-1])] == [2_000, 2_000, 2_001]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_ids_of_its_own() -> None:
    new_id()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, b"".join(id.bytes for id in [new_id(), *new_ids(3)]))
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(reader, 64)
    ours = b"".join(id.bytes for id in [new_id(), *new_ids(3)])
    os.close(reader)
    os.close(writer)
    assert len(theirs) == 64
    assert theirs[8:16] != ours[8:16]
