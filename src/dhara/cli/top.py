"""`dhara top`: the fleet at a glance, live, as `htop` shows a machine. Plain ANSI, no library."""

from __future__ import annotations

import os
import re
import select
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click

from dhara.cli.console import Command, Console

if TYPE_CHECKING:
    from dhara.store.pool import Pool
    from dhara.store.queues import Queue
    from dhara.store.stats import Fleet, Past, Sample
    from dhara.store.workers import RunningTask, WorkerRow

_BARS = " ▁▂▃▄▅▆▇█"
# The other screen, no cursor; and back.
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_COLOUR = re.compile("(\x1b\\[[0-9;]*m)")
_HOME, _REST_OF_LINE, _REST = "\x1b[H", "\x1b[K", "\x1b[J"


class View:
    """What one look has found."""

    def __init__(
        self,
        queues: list[Queue],
        recent: dict[str, Past],
        fleet: Fleet,
        workers: list[WorkerRow],
        running: list[RunningTask],
        samples: list[Sample],
        at: str,
    ) -> None:
        self.queues = queues
        self.recent = recent
        self.fleet = fleet
        self.workers = workers
        self.running = running
        self.samples = samples
        self.at = at


@click.command("top", cls=Command, examples="dhara top\ndhara top --interval 5s\ndhara top --once")
@click.option("--interval", default="1s", show_default=True, help="How often to look: 1s, 5s.")
@click.option("--once", is_flag=True, help="Look once, print, and end; so does output that is no terminal.")
@click.pass_obj
def top(console: Console, interval: str, once: bool) -> None:
    """Watch queues, workers and running tasks. Keys: q ends, s sorts queues by depth, name or rate."""
    from dhara.cli.values import Span

    seconds = Span().convert(interval, None, click.get_current_context())
    if console.json:
        _answer(console)
    elif once or not console.fancy:
        console.print("\n".join(draw(_look_once(console), shutil.get_terminal_size((100, 60)), "depth", fancy=False)))
    else:
        _live(console, max(0.2, seconds))


async def look(pool: Pool) -> View:
    """The figures, by statements that cost little whatever the number of tasks."""
    from dhara.cli.tables import when
    from dhara.store.queues import Queues
    from dhara.store.stats import Stats
    from dhara.store.workers import Workers

    schema = pool.settings.schema
    stats, store = Stats(pool, schema), Workers(pool, schema)
    workers = [worker for worker in await store.recent(60) if worker.state != "stopped"]
    return View(
        queues=await Queues(pool, schema).list(),
        recent=await stats.recent(),
        fleet=await stats.fleet(),
        workers=workers,
        running=await store.running([worker.id for worker in workers], 200),
        samples=await stats.samples("*", 60),
        at=when((await stats.clock()).now) or "",
    )


def draw(view: View, size: os.terminal_size, sort: str, *, fancy: bool) -> list[str]:
    """The screen, at most `size.lines` lines; where it is `fancy`, of at most `size.columns` characters each."""
    from dhara.cli.tables import ago, span, table

    width = size.columns
    fleet = view.fleet
    # A narrow screen has no room for ornaments before the figures.
    wide = width >= 100 or not fancy
    head = (
        f"dhara top  {f'{view.at}   ' if wide else ''}workers {fleet.workers}   "
        f"slots {f'{_bar(fleet.running, fleet.slots)} ' if wide else ''}{fleet.running}/{fleet.slots}   "
        f"pending {sum(q.depth for q in view.queues):,}   dead {sum(q.dead for q in view.queues):,}"
    )
    lines = [_styled(head, fancy, bold=True), _sparks(view.samples, width), ""]
    queues = sorted(view.queues, key=_order(view, sort))
    rows = [
        (
            q.name,
            "paused" if q.paused_at else "open",
            f"{q.ready:,}{'+' if q.ready_capped else ''}",
            f"{q.delayed:,}",
            f"{q.running:,}",
            f"{q.dead:,}",
            f"{_rate(view, q):.1f}/s",
            "" if q.oldest_ready_age is None else span(q.oldest_ready_age),
            _outlook(view, q),
        )
        for q in queues[: max(3, size.lines // 3)]
    ]
    titles = ("QUEUE", "STATE", "READY", "DELAYED", "RUNNING", "DEAD", "DONE", "OLDEST", "OUTLOOK")
    lines += table(titles, rows, fancy=fancy).splitlines() if rows else ["no queue has held a task yet"]
    lines.append("")
    workers = [
        (f"{w.host}:{w.pid}", w.state, f"{w.running}/{w.slots}", span(w.beat_age), ago(w.started_at), w.version)
        for w in view.workers[: max(3, size.lines // 5)]
    ]
    if workers:
        lines += table(("WORKER", "STATE", "RUNNING", "BEAT", "STARTED", "VERSION"), workers, fancy=fancy).splitlines()
    else:
        lines.append("no worker; start one with `dhara worker MODULE`")
    lines.append("")
    running = [(str(t.id), t.type, t.queue, t.attempt, ago(t.started_at)) for t in view.running]
    if running:
        lines += table(("RUNNING TASK", "TYPE", "QUEUE", "ATTEMPT", "STARTED"), running, fancy=fancy).splitlines()
    lines = lines[: size.lines - 1]
    return [_cut(line, width) for line in lines] if fancy else lines


def _cut(line: str, width: int) -> str:
    """At most `width` characters of `line`, colours not counted: what is longer would wrap, and shift the lines below."""
    cut, left = "", width
    for part in _COLOUR.split(line):
        if _COLOUR.fullmatch(part):
            cut += part
        else:
            cut, left = cut + part[:left], left - min(left, len(part))
    return cut


def _order(view: View, sort: str) -> Callable[[Queue], Any]:
    if sort == "name":
        return lambda queue: queue.name
    if sort == "rate":
        return lambda queue: (-_rate(view, queue), queue.name)
    return lambda queue: (-queue.depth - queue.running, queue.name)


def _rate(view: View, queue: Queue) -> float:
    past = view.recent.get(queue.name)
    return 0.0 if past is None or past.age < 1 else max(0, queue.completed - past.completed) / past.age


def _outlook(view: View, queue: Queue) -> str:
    from dhara.api.figures import outlook
    from dhara.cli.tables import span

    found = outlook(queue, view.recent.get(queue.name))
    if found.kind == "drains":
        return f"drains in {span(found.seconds or 0)}"
    return f"grows by {found.rate:.1f}/s" if found.kind == "grows" else found.kind


def _sparks(samples: list[Sample], width: int) -> str:
    from dhara.api.shapes import history_out

    # So wide are the words beside them.
    told, ever = (59, " in the last hour") if width >= 100 else (38, "")
    done = history_out(samples).completed[-max(1, min(60, width - told)) :]
    most = max(done, default=0)
    bars = "".join(_BARS[round(rate / most * 8)] if most else " " for rate in done)
    return f"completed  {bars}  {done[-1] if done else 0:.1f}/s now, {most:.1f}/s at most{ever}"


def _bar(used: int, whole: int, width: int = 12) -> str:
    filled = round(width * min(1.0, used / whole)) if whole else 0
    return "[" + "|" * filled + " " * (width - filled) + "]"


def _styled(text: str, fancy: bool, **style: Any) -> str:
    return click.style(text, **style) if fancy else text


def _look_once(console: Console) -> View:
    from dhara.cli.database import with_pool

    return with_pool(console, look)


def _answer(console: Console) -> None:
    from dhara.api.figures import outlook
    from dhara.api.shapes import history_out, queue_out, worker_out

    view = _look_once(console)
    queues = [queue_out(q, None, outlook(q, view.recent.get(q.name))) for q in view.queues]
    workers = [worker_out(worker, view.running) for worker in view.workers]
    console.answer({"fleet": view.fleet, "queues": queues, "workers": workers, "history": history_out(view.samples)})


def _live(console: Console, interval: float) -> None:
    from dhara.cli.database import with_pool

    with_pool(console, lambda pool: _watch(pool, interval))


async def _watch(pool: Pool, interval: float) -> None:
    """Until q, Ctrl-C or the end of input. A database that is away for a while is said, and tried again."""
    import asyncio

    from dhara.store.pool import TRANSIENT

    sorts = ["depth", "name", "rate"]
    with _screen() as key:
        while True:
            size = shutil.get_terminal_size()
            try:
                lines = draw(await look(pool), size, sorts[0], fancy=True)
            except TRANSIENT as error:
                lines = [f"the database does not answer: {' '.join(str(error).split())[: size.columns]}"]
            lines.append(_styled(f"q ends · s sorts queues (now by {sorts[0]})", True, dim=True))
            sys.stdout.write(_HOME + (_REST_OF_LINE + "\r\n").join(lines) + _REST_OF_LINE + _REST)
            sys.stdout.flush()
            until = time.monotonic() + interval
            while time.monotonic() < until:
                pressed = key()
                if pressed in ("q", "\x03", "\x04"):
                    return
                if pressed == "s":
                    sorts.append(sorts.pop(0))
                    break
                await asyncio.sleep(0.05)


@contextmanager
def _screen() -> Iterator[Callable[[], str]]:
    """The terminal's other screen, with keys as they are pressed; as it was, whatever happens."""
    import termios
    import tty

    try:
        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (OSError, ValueError, AttributeError, termios.error):
        descriptor, before = -1, None
    sys.stdout.write(_ENTER)
    try:
        if before is not None:
            tty.setcbreak(descriptor)
        yield lambda: _key(descriptor) if before is not None else ""
    finally:
        if before is not None:
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        with suppress(OSError, ValueError):
            sys.stdout.write(_LEAVE)
            sys.stdout.flush()


def _key(descriptor: int) -> str:
    if not select.select([descriptor], [], [], 0)[0]:
        return ""
    return os.read(descriptor, 1).decode("latin-1") or "\x04"
