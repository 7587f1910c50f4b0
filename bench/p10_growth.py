"""P10: drain and claims with millions of finished, ready or delayed tasks in the table, against an empty one."""

from __future__ import annotations

import time

from bench import seed
from bench.rows import Figure, Row
from bench.world import SCHEMA, Limit, World

BIG, READY, DELAYED = f"{SCHEMA}_big", f"{SCHEMA}_ready", f"{SCHEMA}_delayed"


async def big(world: World) -> str:
    """The schema with the finished tasks, made once a run."""
    if BIG not in world.kept:
        await world.fresh(BIG)
        count, began = world.sizes.finished, time.monotonic()
        await seed.finished(world.dsn, BIG, count, say=world.say)
        await world.db.execute(f"VACUUM (ANALYZE) {BIG}.tasks, {BIG}.task_history", timeout=600)
        world.say(f"{count:,} final tasks and their history in {time.monotonic() - began:.0f} s")
        await world.checkpoint()
        world.kept[BIG] = True
    return BIG


async def _backlogs(world: World) -> None:
    """The schemas with tasks that wait: ready, and delayed in a higher priority."""
    if READY in world.kept:
        return
    count = world.sizes.backlog
    await world.fresh(READY)
    await world.fill(count, READY)
    await world.fresh(DELAYED)
    await world.fill(count, DELAYED, priority=50, due_in=7_200.0)
    world.say(f"{count:,} ready tasks, and {count:,} delayed ones")
    await world.checkpoint()
    world.kept[READY] = True


async def measure(world: World) -> dict[str, float]:
    schema, count, part = await big(world), world.sizes.drain, world.sizes.backlog_part
    await _backlogs(world)

    async def compare(where: str, name: str) -> tuple[float, Limit]:
        """A worker's rate, and the bare loop's claims, in one state of the table."""
        n = part if where == READY else count
        if where == SCHEMA:
            await world.fresh()
        await world.fill(n, where)
        rate = await world.drain(n, where, curve=name)
        await world.fill(n, where)
        return rate, await world.limit(n, where)

    empty, finished, ready, delayed = await world.in_turn(
        lambda: compare(SCHEMA, "empty"),
        lambda: compare(schema, "finished"),
        lambda: compare(READY, "ready"),
        lambda: compare(DELAYED, "delayed"),
    )
    found = {"empty": empty[0], "claim p99, empty": empty[1].claim_p99_ms, "the limit": empty[1].rate}
    for name, (rate, bare) in (("finished", finished), ("ready", ready), ("delayed", delayed)):
        found |= {
            f"{name}": rate,
            f"{name} against empty": 100 * rate / empty[0],
            f"claim p99, {name} against empty": bare.claim_p99_ms / empty[1].claim_p99_ms,
        }
    return found


_NAMES = ("finished", "ready", "delayed")
ROW = Row(
    id="P10",
    title="growth: drain and claims beside finished tasks, ready ones, delayed ones of a higher priority",
    figures=(
        *(Figure(f"{name} against empty", "%", bar=90) for name in _NAMES),
        *(Figure(f"claim p99, {name} against empty", "×", bar=2, most=True) for name in _NAMES),
        *(Figure(name) for name in ("empty", *_NAMES)),
        Figure("claim p99, empty", "ms"),
        Figure("the limit"),
    ),
    measure=measure,
    warm=False,
    limit=900,
)
