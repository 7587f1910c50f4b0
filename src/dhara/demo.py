"""The demo's handlers: one that answers, one that takes a while, one that always fails, one that can be canceled.

`dhara worker dhara.demo` runs them; `dhara dev --demo` does everything at once.
"""

from __future__ import annotations

import asyncio
from typing import Any

from dhara.domain.backoff import RetryPolicy
from dhara.worker.context import Context
from dhara.worker.registry import Registry

tasks = Registry()


@tasks.task("echo")
async def echo(ctx: Context, **payload: Any) -> dict[str, Any]:
    """Give the payload back."""
    ctx.log.info("echoing %d value(s)", len(payload))
    return payload


@tasks.task("send_email", timeout=30, retry=RetryPolicy(base=1, cap=60))
async def send_email(to: str, subject: str = "", *, ctx: Context) -> dict[str, str]:
    """Pretend to send a mail. The idempotency key is what a real mail service should be given."""
    ctx.log.info("connecting to the mail server")
    await asyncio.sleep(0.3)
    ctx.log.info("sent to %s", to)
    return {"message_id": f"<{ctx.idempotency_key}@demo>", "to": to, "subject": subject}


@tasks.task("always_fail", retry=RetryPolicy(max_retries=3, base=0.4, cap=2))
async def always_fail(ctx: Context, message: str = "this handler always fails", fail: bool = True) -> str:
    """Fail, so that retries, backoff and the dead letters can be seen; and be mended, by another payload."""
    if not fail:
        return "mended"
    ctx.log.warning('attempt %d is about to fail; with the payload {"fail": false} it would not', ctx.attempt)
    raise RuntimeError(message)


@tasks.task("slow_task", timeout=3600)
async def slow_task(ctx: Context, seconds: float = 3.0, steps: int = 5) -> dict[str, Any]:
    """Take `seconds`, in steps; stops between two of them when it is canceled."""
    steps = max(1, steps)
    for step in range(1, steps + 1):
        ctx.check_canceled()
        await asyncio.sleep(seconds / steps)
        ctx.log.info("step %d of %d", step, steps)
    return {"slept": seconds}
