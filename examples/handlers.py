"""Handlers: functions that a worker runs.

dhara worker examples.handlers
"""

import asyncio
import time

from dhara import Context, DeadLetter, Registry, Retry, RetryPolicy, Snooze

tasks = Registry()


@tasks.task("email.send", queue="mail", timeout=30, retry=RetryPolicy(max_retries=5, base=1, cap=3600))
async def send_email(to: str, subject: str, *, ctx: Context) -> str:
    """An async handler. Its arguments are the payload's keys; what it returns is the task's result."""
    if "@" not in to:
        raise DeadLetter(f"{to!r} is no address")  # trying again would not help
    ctx.log.info("sending to %s", to)  # kept with the attempt
    await asyncio.sleep(0.1)
    return f"<{ctx.idempotency_key}@example.org>"


@tasks.task("report.make")
def make_report(month: str, ctx: Context) -> dict[str, str]:
    """A sync handler runs in a thread. It asks now and then whether it should stop."""
    for _ in range(3):
        ctx.check_canceled()
        time.sleep(0.1)
    return {"month": month, "file": f"report-{month}.csv"}


@tasks.task("rates.fetch")
async def fetch_rates(ready: bool = True, busy: bool = False) -> int:
    """Handlers say how an attempt ends by what they raise."""
    if not ready:
        raise Snooze(60)  # come again in a minute; that is no failure
    if busy:
        raise Retry(after=5)  # a failure, with a wait of its own
    return 42
