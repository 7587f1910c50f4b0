"""The pictures of the dashboard in README and docs, taken by a headless chromium from a shop's tasks.

    scripts/screenshots.py [--out docs/images] [--all FOLDER] [--serve] [--seconds 70]

Starts a PostgreSQL of its own, a server and a worker for `examples.shop`, enqueues as a shop would, waits while it runs,
and takes the pictures. The charts' hour before that is made up: nobody should wait an hour for a picture. `--all` takes
every page, light and dark, wide and narrow, for looking at; `--serve` goes on serving instead. Needs chromium (Debian:
apt-get install chromium) and make install.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from examples import shop  # noqa: E402

from dhara import AsyncClient  # noqa: E402
from dhara.app import App  # noqa: E402
from dhara.domain.task import Call  # noqa: E402
from dhara.embedded import EmbeddedPostgres, find_binaries  # noqa: E402
from dhara.settings import Settings  # noqa: E402

if TYPE_CHECKING:
    from playwright.async_api import Browser

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--font-render-hinting=none",
)
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
WIDE, NARROW, WIDEST = ({"width": w, "height": h} for w, h in ((1280, 800), (360, 740), (1920, 1080)))
PAGES = {
    "overview": "/",
    "tasks": "/tasks",
    "dead-tasks": "/tasks?status=DEAD",
    "no-match": "/tasks?q=nothing-like-this",
    "queues": "/queues",
    "workers": "/workers",
    "failures": "/failures",
    "dead-letters": "/dead-letters",
    "schedules": "/schedules",
    "schedule": "/schedules/nightly-report",
    "audit": "/audit",
    "task-dead": "{dead}",
    "task-running": "{running}",
    "task-done": "{done}",
    "group": "/dead-letters?fingerprint={group}",
    "settings": "/settings",
    "missing": "/no-such-page",
}
# What README and docs show: name -> (page, theme).
SHOWN = {
    "overview": ("overview", "light"),
    "overview-dark": ("overview", "dark"),
    "tasks": ("tasks", "light"),
    "task": ("task-dead", "light"),
}


# queue -> its share of a shop's tasks.
SHARES = {"mail": 0.55, "payments": 0.27, "default": 0.1, "media": 0.08}


async def remember(dsn: str) -> None:
    """An hour of samples, and the totals that they come to: a busy morning, with a partner that was away for a while."""
    from dhara.store.pool import DatabaseSettings, Pool

    rng = random.Random(3)
    sums = {queue: [0, 0, 0, 0] for queue in SHARES}
    samples = []
    for ago in range(60, 0, -1):
        away = 34 <= ago <= 41
        for queue, share in SHARES.items():
            came = round(share * (330 + 90 * math.sin(ago / 9) + rng.randrange(-45, 45)))
            failed = round(came * rng.uniform(0.06, 0.12)) + (
                rng.randrange(14, 26) if away and queue == "default" else 0
            )
            more = (
                came,
                came + (rng.randrange(-4, 4) if ago > 1 else 0),
                failed,
                round(came * rng.uniform(0.01, 0.03)),
            )
            sums[queue] = [a + b for a, b in zip(sums[queue], more, strict=True)]
            samples.append((ago, queue, *sums[queue]))
        samples.append((ago, "*", *(sum(column) for column in zip(*sums.values(), strict=True))))
    minute = "date_trunc('minute', now()) - $1 * interval '1 minute'"
    # The last one is of this moment: what comes is reckoned from here.
    at = f"CASE WHEN $1 = 1 THEN now() ELSE {minute} END"
    async with Pool(DatabaseSettings(dsn=dsn)) as pool, pool.acquire() as connection:
        # The server has begun to sample nothing.
        await connection.execute("DELETE FROM dhara.rates")
        await connection.executemany(
            "INSERT INTO dhara.rates (minute, at, queue, enqueued, completed, failed, dead, depth)"
            f" VALUES ({minute}, {at}, $2, $3, $4, $5, $6, 0)",
            samples,
        )
        await connection.executemany(
            "INSERT INTO dhara.counters (n, queue, event, from_state, to_state) VALUES ($1, $2, $3, $4, $5)",
            [flow for queue, (came, _, failed, dead) in sums.items() for flow in _flows(queue, came, failed, dead)],
        )


def _flows(queue: str, came: int, failed: int, dead: int) -> list[tuple[int, str, str, str | None, str | None]]:
    """What so many tasks, all pruned by now, have left in the counters; `failed` attempts, the last ones of `dead` tasks too."""
    return [
        (came, queue, "ENQUEUED", None, "PENDING"),
        (came + failed - dead, queue, "CLAIMED", "PENDING", "RUNNING"),
        (failed - dead, queue, "RETRIED", "RUNNING", "PENDING"),
        (dead, queue, "DEAD", "RUNNING", "DEAD"),
        (dead, queue, "PRUNED", "DEAD", None),
        (came - dead, queue, "COMPLETED", "RUNNING", "COMPLETED"),
        (came - dead, queue, "PRUNED", "COMPLETED", None),
    ]


def _call(rng: random.Random) -> Call:
    match rng.choices(list(SHARES), list(SHARES.values()))[0]:
        case "mail":
            to = "not an address" if rng.random() < 0.01 else f"customer{rng.randrange(9_999)}@example.org"
            return shop.send_email.s(to=to, subject="Your order")
        case "payments":
            return shop.capture_payment.s(order=rng.randrange(10_000, 99_999), cents=rng.randrange(500, 20_000))
        case "media":
            return shop.resize_image.s(name=f"product-{rng.randrange(999)}.jpg", width=480)
        case _:
            return shop.sync_stock.s(warehouse=f"w{rng.randrange(5)}")


async def shopping(dsn: str) -> None:
    """Customers, for as long as anybody looks: five or six tasks a second, and now and then many at once."""
    rng = random.Random(7)
    async with AsyncClient(dsn) as dhara:
        await dhara.enqueue_many([shop.capture_payment.s(order=13 * n, cents=4_990) for n in range(1_001, 1_019)])
        while True:
            crowd = 40 if rng.random() < 0.02 else rng.randrange(0, 4)
            await dhara.enqueue_many([_call(rng) for _ in range(crowd)])
            await asyncio.sleep(0.35)


async def enqueue(dsn: str) -> None:
    """What stands out."""
    rng = random.Random(5)
    async with AsyncClient(dsn) as dhara:
        for n in range(60):
            await dhara.enqueue("newsletter.send", {"issue": n}, queue="newsletter")
        for n in range(40):
            await dhara.enqueue("campaign.push", {"n": n}, queue="marketing", delay=rng.randrange(600, 90_000))
        await dhara.enqueue("invoice.archive", {"year": 2025}, queue="reports")
        for month, seconds in (("2026-09", 240.0), ("2026-10", 300.0), ("2026-11", 10.0)):
            await dhara.enqueue(shop.build_report.s(month=month, seconds=seconds), tags=["finance", "monthly"])


async def operate(dsn: str) -> None:
    """What an operator would have done by now."""
    from dhara.domain.plan import spec_of
    from dhara.maintenance.scheduler import Scheduler
    from dhara.store.pool import DatabaseSettings, Pool
    from dhara.store.queues import Queues
    from dhara.store.schedules import Schedules

    async with Pool(DatabaseSettings(dsn=dsn)) as pool:
        schedules = Schedules(pool)
        night = {"name": "nightly-report", "type": "report.build", "queue": "reports", "cron": "0 3 * * *"}
        payload = '{"month": "2026-11", "seconds": 15}'
        await schedules.create(spec_of(night | {"timezone": "Europe/Berlin"}, payload), "ann")
        stock = {"name": "stock-sync", "type": "stock.sync", "every": 20.0}
        await schedules.create(spec_of(stock, '{"warehouse": "w1"}'), "ann")
        mails = {"name": "weekly-newsletter", "type": "newsletter.send", "queue": "newsletter", "cron": "30 8 * * 1"}
        await schedules.create(spec_of(mails), "ann")
        await schedules.pause("weekly-newsletter", "ben")
        await Scheduler(pool).run_now("nightly-report", "ann")
        await Queues(pool).pause("newsletter", "ben")
        await Queues(pool).limit("newsletter", 500, "ben")
        await Queues(pool).aim("mail", 30.0, "ann")


async def find(dsn: str) -> dict[str, str]:
    """The paths of a dead, a running and a done task."""
    from dhara.domain.lifecycle import State
    from dhara.store.pool import DatabaseSettings, Pool
    from dhara.store.search import Filter, Search

    found = {}
    async with Pool(DatabaseSettings(dsn=dsn)) as pool:
        for name, state, type in (
            ("dead", State.DEAD, "payment.capture"),
            ("running", State.RUNNING, "report.build"),
            ("done", State.COMPLETED, "report.build"),
        ):
            page = await Search(pool).page(Filter(status=(state,), type=type), limit=1)
            found[name] = f"/tasks/{page.tasks[0].id}" if page.tasks else "/"
            if name == "dead" and page.tasks:
                found["group"] = page.tasks[0].fingerprint or ""
    return found


async def picture(browser: Browser, address: str, file: Path, *, theme: str, size: Any, whole: bool) -> None:
    page = await browser.new_page(viewport=size, color_scheme=theme, device_scale_factor=1)  # type: ignore[arg-type]
    page.on("console", lambda message: print(f"{file.name}: {message.type}: {message.text}"))
    await page.goto(address, wait_until="load")
    await page.wait_for_timeout(1_300)
    if not whole:
        # Tracebacks hold the paths of the machine that the picture was taken on.
        await page.evaluate(
            "document.querySelectorAll('.attempt details:has(pre)').forEach((one) => (one.open = false))"
        )
    await page.screenshot(path=str(file), full_page=whole)
    await page.close()


async def take(address: str, paths: dict[str, str], args: argparse.Namespace) -> None:
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        where = {name: address + path.format(**paths) for name, path in PAGES.items()}
        if args.all:
            args.all.mkdir(parents=True, exist_ok=True)
            for name, url in where.items():
                if args.only and name not in args.only:
                    continue
                await picture(browser, url, args.all / f"{name}.png", theme="light", size=WIDE, whole=True)
                await picture(browser, url, args.all / f"{name}-dark.png", theme="dark", size=WIDE, whole=True)
                await picture(browser, url, args.all / f"{name}-360.png", theme="light", size=NARROW, whole=True)
                await picture(browser, url, args.all / f"{name}-1920-dark.png", theme="dark", size=WIDEST, whole=True)
        else:
            args.out.mkdir(parents=True, exist_ok=True)
            for name, (page, theme) in SHOWN.items():
                await picture(browser, where[page], args.out / f"{name}.png", theme=theme, size=WIDE, whole=False)
        await browser.close()


async def main(args: argparse.Namespace, dsn: str) -> None:
    logging.basicConfig(level=logging.WARNING)
    started: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    settings = Settings(database_url=dsn, port=args.port, log_level="error", worker_count=12)
    environ = os.environ | {"DHARA_DATABASE_URL": dsn, "DHARA_LOG_LEVEL": "critical", "PYTHONPATH": str(ROOT)}
    app = App(
        settings,
        worker=["examples.shop", "--concurrency", "12"],
        environ={**environ, "DHARA_LOG_LEVEL": "error"},
        any_port=True,
        on_started=lambda host, port: started.set_result(f"http://{host}:{port}"),
    )
    serving = asyncio.create_task(app.run())
    address = await started
    await remember(dsn)
    await enqueue(dsn)
    customers = asyncio.create_task(shopping(dsn))
    await operate(dsn)
    print(f"serving at {address}", flush=True)
    if args.serve:
        await serving
        return
    await asyncio.sleep(args.seconds)
    await take(address, await find(dsn), args)
    customers.cancel()
    app.stop()
    await serving


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--all", type=Path)
    parser.add_argument("--only", action="append")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=70.0)
    parser.add_argument("--serve", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dhara-pictures-") as folder:
        Path(folder).chmod(0o711)
        postgres = EmbeddedPostgres(Path(folder) / "postgres", binaries=find_binaries())
        try:
            asyncio.run(main(arguments, postgres.start()))
        finally:
            postgres.stop()
