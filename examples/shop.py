"""A shop's handlers: quick ones, slow ones, and some that fail now and then. The docs' screenshots show them.

dhara worker examples.shop
"""

import asyncio
import random
from typing import Any

from dhara import Context, DeadLetter, Registry, RetryPolicy

tasks = Registry()


class CardDeclined(Exception):
    """The bank says no."""


class Unreachable(Exception):
    """A partner's service does not answer."""


@tasks.task("email.send", queue="mail", timeout=30, retry=RetryPolicy(max_retries=4, base=2))
async def send_email(to: str, subject: str, ctx: Context) -> dict[str, str]:
    """Mail goes out quickly, when there is an address."""
    if "@" not in to:
        raise DeadLetter(f"{to!r} is no address")
    ctx.log.info("sending to %s", to)
    await asyncio.sleep(random.uniform(0.05, 0.4))
    return {"message_id": f"<{ctx.idempotency_key}@shop.example>", "subject": subject}


@tasks.task("payment.capture", queue="payments", retry=RetryPolicy(max_retries=2, base=0.5))
async def capture_payment(order: int, cents: int, ctx: Context) -> dict[str, Any]:
    """Some cards are declined, whatever one tries."""
    ctx.log.info("asking the bank for %.2f EUR", cents / 100)
    await asyncio.sleep(random.uniform(0.1, 0.5))
    return await _charge(order, cents)


async def _charge(order: int, cents: int) -> dict[str, Any]:
    if order % 13 == 0:
        raise CardDeclined(f"order {order}: insufficient funds")
    return {"order": order, "cents": cents, "receipt": f"R-{order:06d}"}


@tasks.task("stock.sync", queue="default", retry=RetryPolicy(max_retries=6, base=3))
async def sync_stock(warehouse: str, ctx: Context) -> int:
    """The partner's service is down now and then; later it works."""
    await asyncio.sleep(random.uniform(0.1, 0.6))
    if random.random() < 0.35:
        raise Unreachable(f"https://{warehouse}.warehouse.example answered 503")
    ctx.log.info("%s is in step", warehouse)
    return random.randint(1, 500)


@tasks.task("image.resize", queue="media", timeout=120)
async def resize_image(name: str, width: int, ctx: Context) -> str:
    """Takes a moment, and says how far it is."""
    for done in range(0, 101, 20):
        await ctx.progress(done, f"{name} to {width} px")
        await asyncio.sleep(0.15)
    return f"{name.rpartition('.')[0]}-{width}.webp"


@tasks.task("report.build", queue="reports", timeout=900)
async def build_report(month: str, ctx: Context, seconds: float = 60.0) -> dict[str, str]:
    """A long one, with progress and log lines while it runs."""
    steps = ("orders", "refunds", "taxes", "shipping", "summary")
    for n, step in enumerate(steps):
        ctx.check_canceled()
        ctx.log.info("reading %s of %s", step, month)
        await ctx.progress(100 * n / len(steps), f"reading {step}")
        await asyncio.sleep(seconds / len(steps))
    return {"month": month, "file": f"report-{month}.pdf"}
