"""Measures dhara's rows on one machine in one go.

    make bench                  all rows, into docs/reports/speed/
    make bench ROWS="P1 P4"     some of them, printed only; with ARGS="--out DIR" kept there
    make bench-smoke            a few, small, in under a minute: printed, never failing

The server is one of its own (DHARA_BENCH_POSTGRES=15 for Debian's 15; DHARA_BENCH_FOLDER for where its data lies) or
DHARA_DATABASE_URL's, with the scratch schemas dhara_bench*. A row that fails or takes too long leaves the others alone; what
is there is written after each. Exit code 1 if a row could not be measured; bars that are missed do not change it.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import uvloop
from msgspec.structs import replace

from bench import machine, plots, report
from bench.rows import NAMES, SMOKE, SMOKE_ROWS, Row, Sizes, row
from bench.world import World


def say(text: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S}  {text}", flush=True)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {' '.join(NAMES)}; none: all")
    parser.add_argument("--runs", type=int, help="runs of a row (3); the median counts")
    parser.add_argument("--smoke", action="store_true", help="few rows, small, one run")
    parser.add_argument("--long", action="store_true", help="P14 for ten minutes")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SIZE=N", help="change a size, as finished=1000000"
    )
    parser.add_argument("--out", type=Path, help="folder for JSON, table and plots")
    options = parser.parse_args(given)
    options.rows = [name.upper() for name in options.rows] or list(SMOKE_ROWS if options.smoke else NAMES)
    if unknown := set(options.rows) - set(NAMES):
        parser.error(f"no such row: {' '.join(sorted(unknown))}; there are {' '.join(NAMES)}")
    if options.out is None and not options.smoke and set(NAMES) <= set(options.rows):
        options.out = report.FOLDER
    options.runs = options.runs or (1 if options.smoke else 3)
    return options


def sizes_of(options: argparse.Namespace) -> Sizes:
    sizes = SMOKE if options.smoke else Sizes()
    if options.long:
        sizes = replace(sizes, steady=600.0)
    changes = dict(change.split("=", 1) for change in options.set)
    if unknown := set(changes) - set(Sizes.__struct_fields__):
        sys.exit(f"no such size: {' '.join(sorted(unknown))}; there are {' '.join(Sizes.__struct_fields__)}")
    return msgspec.convert(msgspec.to_builtins(sizes) | changes, Sizes, strict=False)


async def measure(world: World, wanted: Row, options: argparse.Namespace) -> dict[str, Any]:
    """One row: a run that does not count, then those whose median does. What fails is an answer, too."""
    runs: list[Any] = []
    error = ""
    count = min(options.runs, wanted.runs or options.runs)
    try:
        async with asyncio.timeout(wanted.limit + world.sizes.steady):
            if wanted.warm and not options.smoke:
                await wanted.measure(world)
            for n in range(count):
                world.turn = n
                runs.append(await wanted.measure(world))
                say(f"{wanted.id} {n + 1}/{count}: " + _line(report.figures_of(wanted, runs[-1:])))
    except TimeoutError:
        error = f"took longer than {wanted.limit + world.sizes.steady:.0f} s"
    except Exception as caught:
        error = " ".join(f"{type(caught).__name__}: {caught}".split())
    if error:
        say(f"{wanted.id} failed: {error}")
    figures = report.figures_of(wanted, runs)
    return {"id": wanted.id, "title": wanted.title, "count": len(runs), "figures": figures, "error": error}


def _line(figures: Sequence[dict[str, Any]]) -> str:
    return ", ".join(f"{f['name']} {report.shown(f['value'], f['unit'])}" for f in figures)


async def run(dsn: str, options: argparse.Namespace) -> dict[str, Any]:
    """All rows; what is there is written after each."""
    sizes, began = sizes_of(options), time.monotonic()
    db = await asyncpg.connect(dsn)
    found: dict[str, Any] = {
        "machine": await machine.described(db),
        "begun": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "runs": options.runs,
        "sizes": msgspec.to_builtins(sizes),
        "rows": [],
    }
    world = World(dsn, db, sizes, say)
    try:
        for name in options.rows:
            start = time.monotonic()
            if world.db.is_closed():
                world.db = await asyncpg.connect(dsn)
            found["rows"].append(await measure(world, row(name), options))
            found["rows"][-1]["seconds"] = round(time.monotonic() - start)
            found["seconds"] = round(time.monotonic() - began)
            _keep(found, world, options.out)
    finally:
        with suppress(Exception):
            await world.drop_all()
        await world.db.close()
    return found


def _keep(found: dict[str, Any], world: World, folder: Path | None) -> None:
    found["curves"] = {name: [[round(x, 2), round(y)] for x, y in curve] for name, curve in world.curves.items()}
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        found["plots"] = plots.draw(world.curves, folder, f"pg{found['machine']['major']}")
        report.save(found, folder)


def main() -> int:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with machine.server() as dsn:
        found = uvloop.run(run(dsn, options))
    print()
    print(report.markdown(found))
    if options.out is not None:
        say(f"written to {options.out}")
    return 0 if options.smoke or not any(line["error"] for line in found["rows"]) else 1


if __name__ == "__main__":
    sys.exit(main())
