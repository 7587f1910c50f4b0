"""The memory that a runner shares with its keeper."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from dhara.worker.board import NOBODY, STARTED, STOPPED, Board, Entry, attach, share

moments = st.floats(min_value=0.001, max_value=1e12)


def _boards(processes: int, slots: int) -> list[Board]:
    fd = share(processes, slots)
    try:
        return attach(fd, processes, slots)
    finally:
        os.close(fd)


def test_a_fresh_board_is_empty() -> None:
    (board,) = _boards(1, 5)
    header = board.header()
    assert (header.worker, header.pid, header.running, header.tick, header.flags) == (NOBODY, 0, 0, 0.0, 0)
    assert board.entries() == []


def test_a_runner_s_life() -> None:
    (board,) = _boards(1, 2)
    worker = UUID(int=7)
    board.announce(worker, 1.5)
    header = board.header()
    assert (header.worker, header.pid, header.running, header.tick, header.flags) == (
        worker,
        os.getpid(),
        0,
        1.5,
        STARTED,
    )
    board.tick(2.5, 1)
    header = board.header()
    assert (header.worker, header.running, header.tick, header.flags) == (worker, 1, 2.5, STARTED)
    assert not board.drain_asked()
    board.ask_drain()
    assert board.drain_asked() and board.header().drain
    board.stopped()
    assert board.header().flags == STOPPED
    board.begin(1, 9.0, UUID(int=1), UUID(int=2))
    board.reset()
    assert (board.header().flags, board.header().drain, board.entries()) == (0, False, [])


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 3), moments, st.uuids(), st.uuids(), st.booleans(), st.booleans()),
        max_size=30,
    )
)
def test_slots_are_told_apart(
    steps: list[tuple[int, int, float, UUID, UUID, bool, bool]],
) -> None:
    """Whatever begins and ends anywhere, every board shows what its own slots run, and no other's."""
    boards = _boards(3, 4)
    expected: dict[tuple[int, int], tuple[float, UUID, UUID, bool]] = {}
    for board, slot, deadline, task, lease, exclusive, ends in steps:
        boards[board].begin(slot, deadline, task, lease, exclusive)
        expected[board, slot] = (deadline, task, lease, exclusive)
        if ends:
            boards[board].end(slot)
            del expected[board, slot]
    for index, board_ in enumerate(boards):
        wanted = [(s, *row) for (b, s), row in sorted(expected.items()) if b == index]
        assert [(e.index, e.deadline, e.task, e.lease, e.exclusive) for e in board_.entries()] == wanted
        assert board_.header().worker == NOBODY


@given(moments, moments)
def test_a_limit_changes_only_the_deadline(first: float, second: float) -> None:
    (board,) = _boards(1, 1)
    board.begin(0, first, UUID(int=1), UUID(int=2), True)
    board.limit(0, second)
    assert board.entries() == [Entry(0, second, UUID(int=1), UUID(int=2), True)]


@given(st.uuids(), moments, st.integers(0, 10_000))
def test_headers_round_trip(worker: UUID, tick: float, running: int) -> None:
    board = _boards(2, 3)[1]
    board.announce(worker, tick)
    board.tick(tick, running)
    header = board.header()
    assert (header.worker, header.tick, header.running, header.flags) == (worker, tick, running, STARTED)


def test_another_process_sees_it() -> None:
    fd = share(1, 1)
    try:
        (board,) = attach(fd, 1, 1)
        code = (
            "import sys; from uuid import UUID; from dhara.worker.board import attach;"
            "attach(int(sys.argv[1]), 1, 1)[0].begin(0, 4.5, UUID(int=1), UUID(int=2))"
        )
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        subprocess.run([sys.executable, "-c", code, str(fd)], pass_fds=(fd,), check=True, env=environment)
        assert [(e.deadline, e.task, e.lease) for e in board.entries()] == [(4.5, UUID(int=1), UUID(int=2))]
    finally:
        os.close(fd)


def test_deadlines_lie_on_whole_words() -> None:
    """So that a keeper that reads while a runner writes sees the old deadline or the new one."""
    (board,) = _boards(1, 3)
    for slot in range(3):
        board.begin(slot, 1.25, UUID(int=0), UUID(int=0))
    raw = bytes(board._memory)
    places = [i for i in range(0, len(raw) - 7, 8) if struct.unpack_from("=d", raw, i)[0] == 1.25]
    assert len(places) == 3
