"""Whether the time of a refusal tells an unknown API key from a wrong secret (trust S4).

    python -m fuzz.timings [--times 20000]

Times `Auth.sign_in` in this process, so that no network hides a difference: a key whose id is known, with a wrong
secret, against keys whose ids are not. Both kinds in turn, in a random order, so that whatever else the machine does
befalls both. What must differ by less than 2 % are the medians; the bound for the difference that chance alone makes, by
comparing one kind with itself, is printed beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import random
import statistics
import sys
import time
from contextlib import suppress
from typing import Any

from dhara.api.auth import Auth
from dhara.api.buckets import Failures
from dhara.api.problems import Refused
from dhara.domain.access import READ
from fuzz.server import KEY, served

BAR = 0.02
SCOPE: dict[str, Any] = {"type": "http", "client": ("127.0.0.1", 5), "headers": [], "dhara.headers": {}}


def seconds(auth: Auth, key: bytes) -> float:
    """How long one refusal takes."""
    # A source's count of failures is another limit, the same for both.
    auth._failures = Failures()
    started = time.perf_counter()
    with suppress(Refused):
        auth.sign_in(key, SCOPE)
    return time.perf_counter() - started


def compare(auth: Auth, kinds: dict[str, list[bytes]], times: int) -> dict[str, float]:
    """The median of each kind."""
    rng = random.Random(0)
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for n in range(times):
        for kind in rng.sample(list(kinds), len(kinds)):
            keys = kinds[kind]
            found[kind].append(seconds(auth, keys[n % len(keys)]))
    return {kind: statistics.median(values) for kind, values in found.items()}


async def main(times: int) -> int:
    async with served(api_keys=(KEY,)) as (_, _, app):
        made = [await app.parts.keys.create("timed", [READ]) for _ in range(50)]
        await app.parts.ring.refresh()
        texts = [one.text for one in made]
        wrong = [f"{text[:-1]}{'A' if text[-1] != 'A' else 'B'}".encode() for text in texts]
        unknown = [f"dh_{text[3:15][::-1]}_{text[16:]}".encode() for text in texts]
        kinds = {"wrong secret": wrong, "unknown id": unknown, "wrong secret again": list(wrong)}
        logging.disable(logging.CRITICAL)  # the pipe that a log goes to has times of its own
        gc.disable()
        compare(app.parts.auth, kinds, 1_000)
        medians = compare(app.parts.auth, kinds, times)
        gc.enable()
    base = medians["wrong secret"]
    for kind, median in medians.items():
        print(f"{kind}: median {median * 1e6:.3f} µs of {times:,}")
    difference = abs(medians["unknown id"] - base) / base
    chance = abs(medians["wrong secret again"] - base) / base
    print(f"difference of medians: {difference:.2%} (the same twice: {chance:.2%}); bar: {BAR:.0%}")
    return 0 if difference < BAR else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20_000)
    sys.exit(asyncio.run(main(parser.parse_args().times)))
