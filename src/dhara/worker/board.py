"""The board: memory that a runner shares with its keeper. The runner writes what it runs until when; the keeper, which
no handler can starve, reads it.

    header  worker id 16 · pid i64 · running i64 · tick f64 (monotonic time of the loop's last turn) · flags i64
            · acked f64 (the keeper writes: when the last beat that the database acknowledged was sent)
            · drain i64 (either writes: an operator wants this runner to drain, and none in its place)
    slot    deadline f64 (monotonic; 0: free; after it the process is killed) · task id 16 · lease 16 · exclusive i64

The clock is CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import mmap
import os
import struct
from uuid import UUID

from msgspec import Struct

_HEADER = struct.Struct("=16sqqdqdq")
_SLOT = struct.Struct("=d16s16sq")
_DEADLINE = struct.Struct("=d")
_HEADER_SIZE = 64
NOBODY = UUID(int=0)
_WARNING, _LAST = 0.8, 0.93
_WATCHING = 0.75
STARTED, STOPPED = 1, 2


def first_moment(lease: float) -> float:
    """Seconds without an acknowledged beat after which an exclusive attempt is told to stop, for a lease of L."""
    return _WARNING * lease


def last_moment(lease: float) -> float:
    """Seconds after which it is killed: before L, with room for those who watch to see it twice."""
    return max(_WARNING * lease, min(_LAST * lease, lease - _WATCHING))


class Header(Struct, frozen=True):
    """A runner as its keeper sees it. `flags`: 0 not started, STARTED, STOPPED (in order)."""

    worker: UUID
    pid: int
    running: int
    tick: float
    flags: int
    acked: float
    drain: bool


class Entry(Struct, frozen=True):
    """A slot that must be free at `deadline`."""

    index: int
    deadline: float
    task: UUID
    lease: UUID
    exclusive: bool


class Board:
    """One runner's part of the shared memory."""

    def __init__(self, memory: mmap.mmap, offset: int, slots: int) -> None:
        self._memory = memory
        self._offset = offset
        self.slots = slots
        self._first = offset + _HEADER_SIZE

    @staticmethod
    def size(slots: int) -> int:
        """Bytes that a board of so many slots takes."""
        return _HEADER_SIZE + slots * _SLOT.size

    def reset(self) -> None:
        """Empty, for a new runner."""
        self._memory[self._offset : self._offset + self.size(self.slots)] = bytes(self.size(self.slots))

    # the runner's side

    def announce(self, worker: UUID, tick: float) -> None:
        _HEADER.pack_into(self._memory, self._offset, worker.bytes, os.getpid(), 0, tick, STARTED, tick, 0)

    def tick(self, now: float, running: int) -> None:
        struct.pack_into("=qd", self._memory, self._offset + 24, running, now)

    def stopped(self) -> None:
        struct.pack_into("=q", self._memory, self._offset + 40, STOPPED)

    def acked(self) -> float:
        """When the last acknowledged beat was sent, monotonic."""
        return float(_DEADLINE.unpack_from(self._memory, self._offset + 48)[0])

    def ask_drain(self) -> None:
        """An operator wants this runner to drain."""
        struct.pack_into("=q", self._memory, self._offset + 56, 1)

    def drain_asked(self) -> bool:
        """Whether an operator wants that."""
        return bool(struct.unpack_from("=q", self._memory, self._offset + 56)[0])

    def begin(self, slot: int, deadline: float, task: UUID, lease: UUID, exclusive: bool = False) -> None:
        _SLOT.pack_into(self._memory, self._first + slot * _SLOT.size, deadline, task.bytes, lease.bytes, exclusive)

    def limit(self, slot: int, deadline: float) -> None:
        _DEADLINE.pack_into(self._memory, self._first + slot * _SLOT.size, deadline)

    def end(self, slot: int) -> None:
        _DEADLINE.pack_into(self._memory, self._first + slot * _SLOT.size, 0.0)

    # the keeper's side

    def header(self) -> Header:
        worker, pid, running, tick, flags, acked, drain = _HEADER.unpack_from(self._memory, self._offset)
        return Header(UUID(bytes=worker), pid, running, tick, flags, acked, bool(drain))

    def acknowledge(self, sent: float) -> None:
        """The beat sent at `sent` has been acknowledged by the database."""
        _DEADLINE.pack_into(self._memory, self._offset + 48, sent)

    def entries(self) -> list[Entry]:
        """The slots in use."""
        found = []
        for index in range(self.slots):
            deadline, task, lease, exclusive = _SLOT.unpack_from(self._memory, self._first + index * _SLOT.size)
            if deadline:
                found.append(Entry(index, deadline, UUID(bytes=task), UUID(bytes=lease), bool(exclusive)))
        return found


def share(processes: int, slots: int) -> int:
    """A file descriptor of fresh memory for so many boards, without a name in any file system."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("dhara-board", 0)
    else:
        import tempfile

        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, processes * Board.size(slots))
    return fd


def attach(fd: int, processes: int, slots: int) -> list[Board]:
    """The boards in that memory."""
    memory = mmap.mmap(fd, processes * Board.size(slots))
    return [Board(memory, i * Board.size(slots), slots) for i in range(processes)]
