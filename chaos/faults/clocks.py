"""Clocks: a worker's wall clock must not matter, the server's (by libfaketime) may jump."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chaos import measure
from chaos.faults.row import fault
from dhara.embedded import Binaries
from dhara.embedded.account import account_for
from dhara.embedded.copies import readable_binaries
from tests.e2e.kit import G

if TYPE_CHECKING:
    from chaos.arena import Arena

LIBRARIES = tuple(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))


# Not libfaketime for workers: it spoils Python's waits for the interpreter's lock, so that a runner spins or stands still.
_SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static time_t offset(void) {
    const char *given = getenv("CHAOS_CLOCK_OFFSET");
    return given ? atol(given) : 0;
}

int clock_gettime(clockid_t id, struct timespec *at) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(id, at);
    if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) at->tv_sec += offset();
    return failed;
}

int gettimeofday(struct timeval *at, void *zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""


def shim(folder: Path) -> Path:
    """A library that shifts the wall clock, and no other, of whatever has it loaded before all others."""
    source, library = folder / "clock.c", folder / "clock.so"
    source.write_text(_SHIM)
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"], check=True)
    return library


@contextmanager
def shifted(library: Path, seconds: int) -> Iterator[None]:
    """What is started within has a wall clock that is so much ahead."""
    added = {"LD_PRELOAD": str(library), "CHAOS_CLOCK_OFFSET": str(seconds)}
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def wall_clock(library: Path, seconds: int) -> float:
    """What a Python with such a clock takes for the time: the proof that it is shifted."""
    with shifted(library, seconds):
        told = subprocess.run(
            [sys.executable, "-c", "import time; print(time.time())"], capture_output=True, check=True
        )
    return float(told.stdout)


def beside(folder: Path, binaries: Binaries, clock: Path) -> Binaries:
    """The same programs, but that `postgres` takes its time from the file `clock`.

    Not by our own environment: libfaketime's shared memory, made by root, cannot be opened once privileges are dropped.
    """
    real = readable_binaries(binaries, account_for(folder) if os.geteuid() == 0 else None)
    folder.mkdir()
    for program in real.bindir.iterdir():
        (folder / program.name).symlink_to(program)
    (folder / "postgres").unlink()
    settings = {
        "LD_PRELOAD": LIBRARIES[0],
        "FAKETIME_DONT_FAKE_MONOTONIC": 1,
        "FAKETIME_TIMESTAMP_FILE": clock,
        "FAKETIME_NO_CACHE": 1,
    }
    words = " ".join(f"{name}={value}" for name, value in settings.items())
    (folder / "postgres").write_text(f'#!/bin/sh\nexec env {words} {real.program("postgres")} "$@"\n')
    (folder / "postgres").chmod(0o755)
    return replace(real, bindir=folder)


_WRONG = """SELECT count(*) FROM dhara.attempts WHERE ended_at > $1 AND outcome IN ('RETRIED', 'DEAD', 'REAPED')
            AND task_id NOT IN (SELECT id FROM dhara.tasks WHERE type IN ('flaky', 'fail'))"""


@fault(
    "F46", "worker clock", "the workers' clocks are an hour ahead and an hour late", every=20.0, lasting=True,
    bar="no effect: nobody reaped, no failure counted, start delay p99 at most 2 ×, retries when they should be (I15)",
)  # fmt: skip
async def worker_clock(arena: Arena, rng: random.Random) -> dict[str, Any]:
    calm, _ = await measure.calm_and(arena, 6.0)
    library, offsets = shim(arena.folder), (3600, -3600)
    really = [round(wall_clock(library, seconds) - time.time(), -1) for seconds in offsets]
    old = [member.process for member in arena.members]
    for n, member in enumerate(arena.members):
        with shifted(library, offsets[n % 2]):
            member.start()
    codes = {await process.stop(G + 30) for process in old}
    await arena.until_live()
    await asyncio.sleep(5.0)  # what has waited for them
    async with measure.session(arena) as db:
        start = await measure.now(db)
        await asyncio.sleep(10.0)
        found, wrong = await measure.since(arena, start), await db.fetchval(_WRONG, start)
    clocks = " and ".join(f"{seconds:+g}" for seconds in really)
    return {
        "offsets": really, "exits": sorted(codes),
        "measured": f"clocks {clocks} s: {wrong} reaped or failed, {found.against(calm)}",
        "met": codes == {0} and really == [*offsets] and not wrong and found.p99 <= max(2 * calm.p99, 0.1),
    }  # fmt: skip


@fault(
    "F47", "server clock", "the server's clock jumps two hours ahead, and back", every=24.0, needs="faketime",
    skips="overlaps order early reaped fires", lasting=True,
)  # fmt: skip
async def server_clock(arena: Arena, rng: random.Random) -> dict[str, Any]:
    assert arena.clock is not None
    arena.clock.write_text("+7200")
    await asyncio.sleep(8.0)
    arena.clock.write_text("+0")
    await asyncio.sleep(8.0)
    # Ahead again: what was enqueued in the meantime that never was is due then.
    arena.clock.write_text("+7300")
    return {"jumps": ["+2 h", "-2 h", "+2 h"]}
