"""Enqueue from async code, and wait for a result.

dhara worker examples.handlers &
python -m examples.enqueue
"""

import asyncio
import os

from dhara import AsyncClient
from examples.handlers import make_report, send_email


async def main() -> None:
    async with AsyncClient(os.environ["DHARA_DATABASE_URL"]) as dhara:
        handle = await dhara.enqueue(send_email.s(to="ada@example.org", subject="Hi"), idempotency_key="welcome-ada")
        print(handle.id, "created" if handle.created else "stood already", await handle.result(timeout=30))

        # By name, where the handler's code is not at hand; with options.
        await dhara.enqueue(
            "email.send", {"to": "bob@example.org", "subject": "Hi"}, queue="mail", priority=50, delay=1.5
        )

        # Many: all or none, in one transaction.
        handles = await dhara.enqueue_many([make_report.s(month=f"2026-{month:02}") for month in range(1, 4)])
        for result in await asyncio.gather(*(handle.result() for handle in handles)):
            print(result["file"])


if __name__ == "__main__":
    asyncio.run(main())
