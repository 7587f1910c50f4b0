"""`dhara server` and `dhara worker`."""

from __future__ import annotations

from typing import Any

import click

from dhara.cli.console import Command, Console


class Slots(click.ParamType[tuple[str, int | None]]):
    """A queue and its slots: mail=20, or mail alone for as many as there are."""

    name = "queue[=slots]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int | None]:
        from dhara.domain import limits

        name, given, slots = value.partition("=")
        if not limits.NAME.fullmatch(name):
            self.fail(f"{name!r} is no queue name: {limits.NAME_HINT}", param, ctx)
        if not given:
            return name, None
        if not slots.isascii() or not slots.isdigit() or not 1 <= int(slots) <= 10_000:
            self.fail(f"{value!r}: slots must be 1 to 10000, as in mail=20", param, ctx)
        return name, int(slots)


def worker_options(command: Any) -> Any:
    """The options that a worker takes, wherever it is started."""
    for option in (
        click.option("--processes", type=click.IntRange(1, 64), help="Worker processes (DHARA_PROCESSES, 1)."),
        click.option("--concurrency", type=click.IntRange(1, 10_000), help="Slots of each (DHARA_WORKER_COUNT, 100)."),
        click.option(
            "--queue",
            "queues",
            type=Slots(),
            multiple=True,
            help="A queue to serve, with its slots; repeatable. Default: all queues.",
        ),
    ):
        command = option(command)
    return command


@click.command(
    "worker",
    cls=Command,
    examples="""
    dhara worker examples.handlers
    dhara worker myapp.tasks:registry --queue mail=20 --queue reports=2
    dhara worker myapp.tasks --concurrency 200 --processes 4
    """,
)
@click.argument("module", metavar="MODULE[:REGISTRY]")
@worker_options
@click.option("--parent", type=int, hidden=True)
@click.pass_obj
def worker(
    console: Console,
    module: str,
    queues: tuple[tuple[str, int | None], ...],
    concurrency: int | None,
    processes: int | None,
    parent: int | None,
) -> int:
    """Run the handlers that MODULE registers in REGISTRY (tasks), until SIGTERM or Ctrl-C.

    The first signal drains: nothing more is claimed, and what runs may finish within DHARA_SHUTDOWN_TIMEOUT. The
    second gives it back at once.
    """
    import gc
    import signal

    from dhara.telemetry.log import configure
    from dhara.worker.process import die_with_parent
    from dhara.worker.supervisor import ENDS, WorkerSpec, supervise

    if parent is not None:
        die_with_parent(parent, signal.SIGTERM)
    settings = console.settings()
    configure(settings.log_level, settings.log_format)
    name, _, registry = module.partition(":")
    slots = concurrency or settings.worker_count
    spec = WorkerSpec(
        settings=settings,
        module=name,
        registry=registry or "tasks",
        queues={queue: n or slots for queue, n in queues} or None,
        concurrency=slots,
        processes=processes or settings.processes,
    )
    # From here to this process's end, so that a signal at the very last moment leaves the exit code as it is.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
    # What is imported stays: the runners share its memory, and the interpreter need not go through it all as it ends, which
    # takes a second of a busy machine.
    gc.freeze()
    return supervise(spec)


@click.command(
    "server",
    cls=Command,
    examples="""
    dhara server --no-worker
    dhara server myapp.tasks --concurrency 50
    DHARA_API_KEYS=... dhara server --host 0.0.0.0
    """,
)
@click.argument("module", metavar="[MODULE[:REGISTRY]]", default="dhara.demo")
@click.option("--host", help="The address to bind (DHARA_HOST, 127.0.0.1).")
@click.option("--port", type=click.IntRange(0, 65_535), help="The port; 0 takes a free one (DHARA_PORT, 8080).")
@click.option("--no-worker", is_flag=True, help="Only the API and maintenance, no worker processes beside them.")
@click.option("--i-know-this-is-open", is_flag=True, help="Serve other machines without API keys.")
@worker_options
@click.pass_obj
def server(
    console: Console,
    module: str,
    host: str | None,
    port: int | None,
    no_worker: bool,
    i_know_this_is_open: bool,
    queues: tuple[tuple[str, int | None], ...],
    concurrency: int | None,
    processes: int | None,
) -> int:
    """Serve the HTTP API and do the maintenance, with a worker of MODULE's handlers (dhara.demo) beside it."""
    settings = console.settings({"host": host, "port": port})
    from dhara.app import App, run, until_told
    from dhara.telemetry.log import configure

    configure(settings.log_level, settings.log_format)
    beside = None if no_worker else worker_arguments(console, module, queues, concurrency, processes)

    def started(host: str, port: int) -> None:
        what = "no worker" if beside is None else f"worker of {module}"
        console.say(f"dhara serves {url(host, port)} (docs: {url(host, port)}/docs), {what}; Ctrl-C stops it")

    async def main() -> int:
        app = App(settings, open_is_fine=i_know_this_is_open, worker=beside, on_started=started)
        return await until_told(app.run, app.stop)

    return run(main)


def worker_arguments(
    console: Console,
    module: str,
    queues: tuple[tuple[str, int | None], ...] = (),
    concurrency: int | None = None,
    processes: int | None = None,
) -> list[str]:
    """The command line of a `dhara worker` beside a server; no secrets in it."""
    arguments = [module]
    for queue, slots in queues:
        arguments += ["--queue", queue if slots is None else f"{queue}={slots}"]
    if concurrency is not None:
        arguments += ["--concurrency", str(concurrency)]
    if processes is not None:
        arguments += ["--processes", str(processes)]
    if console.config is not None:
        arguments += ["--config", str(console.config)]
    return arguments


def url(host: str, port: int) -> str:
    """Where a browser on this machine finds the server."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{shown}:{port}"
