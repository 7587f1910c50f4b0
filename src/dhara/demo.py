"""The demo's handlers: one that answers, one that takes a while, one that always fails, one whose service is down for some
seconds, one that can be canceled.

`dhara worker dhara.demo` runs them; `dhara dev --demo` does everything at once.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

from dhara.domain.backoff import RetryPolicy
from dhara.worker.context import Context
from dhara.worker.registry import Registry

tasks = Registry()
ALWAYS = 'this handler always fails, unless it is retried with the payload {"fail": false}'


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
async def always_fail(ctx: Context, message: str = ALWAYS, fail: bool = True) -> str:
    """Fail, so that retries, backoff and the dead letters can be seen; and be mended, by another payload."""
    if not fail:
        return "mended"
    ctx.log.warning("attempt %d is about to fail", ctx.attempt)
    raise RuntimeError(message)


@tasks.task("charge_card", queue="payments", retry=RetryPolicy(max_retries=1, base=0.4))
async def charge_card(order: int, cents: int, down_until: str, *, ctx: Context) -> dict[str, Any]:
    """Pretend to charge a card at a service that is down until then (RFC 3339): what it fails at, a later retry mends."""
    ctx.log.info("order %d: asking payments.example for %.2f", order, cents / 100)
    if datetime.now(UTC) < datetime.fromisoformat(down_until):
        raise ConnectionError(f"payments.example answers 503, for maintenance until {down_until[11:19]} UTC")
    return {"order": order, "charged": cents}


@tasks.task("slow_task", timeout=3600)
async def slow_task(ctx: Context, seconds: float = 3.0, steps: int = 5) -> dict[str, Any]:
    """Take `seconds`, in steps; stops between two of them when it is canceled."""
    steps = max(1, steps)
    for step in range(1, steps + 1):
        ctx.check_canceled()
        await asyncio.sleep(seconds / steps)
        ctx.log.info("step %d of %d", step, steps)
        await ctx.progress(100 * step / steps, f"step {step} of {steps}")
    return {"slept": seconds}
