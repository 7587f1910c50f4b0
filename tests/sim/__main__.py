"""`python -m tests.sim [--seeds N] [--from N]`: many seeds on every core; `--seed N`: one, with all that is wrong with it."""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections import Counter
from multiprocessing import Pool

from tests.sim.judge import judge
from tests.sim.stage import play, staged

_CHUNK = 50


def _play(first: int) -> tuple[list[str], Counter[str]]:
    wrong: list[str] = []
    seen: Counter[str] = Counter()
    with staged():
        for seed in range(first, first + _CHUNK):
            try:
                story = play(seed)
                wrong += judge(story)
            except Exception:
                wrong.append(f"seed {seed}: {traceback.format_exc()}")
                continue
            seen["starts"] += len(story.starts)
            seen["faults"] += len(story.faults)
            seen["tasks"] += len(story.db.rows)
    return wrong, seen


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10_000, help=f"how many, in chunks of {_CHUNK}")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first of them")
    parser.add_argument("--seed", type=int, help="this one alone")
    given = parser.parse_args()
    if given.seed is not None:
        with staged():
            wrong = judge(play(given.seed))
        print("\n\n".join(wrong) or f"seed {given.seed}: nothing is wrong")
        return bool(wrong)
    begin, found, total = time.perf_counter(), list[str](), Counter[str]()
    with Pool(os.cpu_count()) as pool:
        for wrong, seen in pool.imap_unordered(_play, range(given.first, given.first + given.seeds, _CHUNK)):
            found += wrong
            total += seen
            for what in wrong[:1]:
                print(what, flush=True)
    print(
        f"{given.seeds:,} seeds in {time.perf_counter() - begin:.0f} s: {total['tasks']:,} tasks, {total['starts']:,} starts, "
        f"{total['faults']:,} faults; {len(found)} violations"
    )
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
