"""The composition root: builds the parts of a server, starts them in order, stops them in reverse.

    pool -> migrations -> notifier -> maintenance -> HTTP -> worker processes beside it

`dhara server` and `dhara dev` run this; a worker composes itself (`worker/supervisor.py`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from typing import Any

from dhara import __version__
from dhara.api.asgi import Api, create_app
from dhara.api.auth import Auth, is_loopback
from dhara.api.keyring import KeyRing
from dhara.api.problems import Refused
from dhara.api.server import bind, serve
from dhara.crew import Crew
from dhara.dashboard import Principal, site
from dhara.errors import ConfigError, Unavailable
from dhara.maintenance import Maintenance
from dhara.maintenance.settings import MaintenanceSettings
from dhara.settings import Settings
from dhara.store import migrate
from dhara.store.keys import Keys
from dhara.store.pool import DatabaseSettings, Executor, Pool
from dhara.store.wakeup import Notifier

log = logging.getLogger(__name__)


async def check_exposure(settings: Settings, db: Executor) -> None:
    """Refuse to serve strangers without keys. Raises `ConfigError`."""
    if is_loopback(settings.host) or settings.api_keys or await Keys(db, settings.schema).list(1):
        return
    raise ConfigError(
        f"HOST {settings.host} can be reached from other machines, and there are no API keys; run `dhara keys create`,"
        " set DHARA_API_KEYS, bind 127.0.0.1, or say --i-know-this-is-open"
    )


class DoorKeys:
    """The API keys, as the dashboard's door asks about them."""

    def __init__(self, auth: Auth) -> None:
        self._auth = auth

    async def open(self) -> bool:
        return self._auth.open

    async def principal(self, key: str) -> Principal | None:
        with _unavailable():
            return None if self._auth.open else self._auth.find(key.encode("utf-8", "surrogateescape"))

    async def holder(self, id: str, proves: Callable[[bytes], bool]) -> Principal | None:
        with _unavailable():
            return None if self._auth.open else self._auth.recognize(id, proves)


@contextmanager
def _unavailable() -> Iterator[None]:
    """What the API answers by 503, as the exception that the dashboard knows."""
    try:
        yield
    except Refused as error:
        raise Unavailable(error.detail) from None


class App:
    """A server and what runs beside it.

    `worker`: arguments of the `dhara worker` beside it, None for no worker; it inherits `environ` (None: this
    process's). `any_port`: take a free port if the one of the settings is taken. `on_started` learns the address once
    requests are answered. `open_is_fine`: serve also strangers without any API key.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        open_is_fine: bool = False,
        worker: Sequence[str] | None = None,
        environ: Mapping[str, str] | None = None,
        any_port: bool = False,
        on_started: Callable[[str, int], None] = lambda host, port: None,
    ) -> None:
        self.settings = settings
        self._worker = worker
        self._environ = os.environ if environ is None else environ
        self._any_port = any_port
        self._open_is_fine = open_is_fine
        self._on_started = on_started
        self.pool = Pool(DatabaseSettings.of(settings), "dhara server")
        self.started = asyncio.Event()
        self._stopping = asyncio.Event()
        self._fatal = 0

    def stop(self) -> None:
        """Let `run` come to its end."""
        self._stopping.set()

    async def run(self) -> int:
        """Start everything, serve until `stop`, stop everything; answers the exit code.

        Raises `Unavailable`, `ConfigError` or `SchemaError` when it cannot start.
        """
        async with AsyncExitStack() as parts:
            await parts.enter_async_context(self.pool)
            await self._prepare_schema()
            if not self._open_is_fine:
                await check_exposure(self.settings, self.pool)
            notifier = Notifier(self.pool, self.settings.schema)
            parts.push_async_callback(notifier.close)
            maintenance = Maintenance(self.pool, MaintenanceSettings.of(self.settings), notifier)
            await maintenance.start()
            parts.push_async_callback(maintenance.stop)
            await self._serve(notifier if self.settings.wakeups else None, maintenance.hint)
        return self._fatal

    async def _prepare_schema(self) -> None:
        async with self.pool.acquire() as connection:
            if self.settings.auto_migrate:
                for step in await migrate.up(connection, self.settings.schema):
                    log.info("applied migration %04d_%s", step.version, step.name)
            await migrate.check(connection, self.settings.schema)

    async def _serve(self, notifier: Notifier | None, hint: Callable[[], None]) -> None:
        crew = None if self._worker is None else Crew(self._worker, self._environ, self.settings)
        http = asyncio.create_task(self._serve_http(self._application(notifier, hint), crew), name="http")
        told = asyncio.create_task(self._stopping.wait(), name="told")
        try:
            # The worker drains while the last requests are answered: both share one grace.
            await asyncio.wait({http, told}, return_when=asyncio.FIRST_COMPLETED)
            self._stopping.set()
            if crew is not None:
                await crew.stop()
            await http
        finally:
            if crew is not None:
                await crew.stop()
            http.cancel()
            told.cancel()

    async def _serve_http(self, application: Api, crew: Crew | None) -> None:
        watchers: set[asyncio.Task[Any]] = set()

        def started(host: str, port: int) -> None:
            if crew is not None:
                watchers.add(asyncio.ensure_future(self._start(crew)))
            self._on_started(host, port)
            self.started.set()

        await serve(
            application,
            host=self.settings.host,
            port=self._port(),
            stop=self._stopping,
            on_started=started,
            grace=min(10.0, self.settings.shutdown_timeout),
        )

    def _application(self, notifier: Notifier | None, hint: Callable[[], None]) -> Api:
        """The API, and the dashboard at every path that is not the API's."""
        auth = Auth(self.settings, KeyRing(Keys(self.pool, self.settings.schema)))
        pages = site(self.pool, DoorKeys(auth), notifier, __version__, self.settings)
        return create_app(
            pool=self.pool,
            settings=self.settings,
            notifier=notifier,
            version=__version__,
            site=pages,
            auth=auth,
            hint=hint,
        )

    def _port(self) -> int:
        """The port to bind; looked up as late as possible, since others look too."""
        wanted = self.settings.port
        if self._any_port:
            try:
                bind(self.settings.host, wanted).close()
            except ConfigError:
                return 0
        return wanted

    async def _start(self, crew: Crew) -> None:
        await crew.start()
        self._fatal = await crew.fatal
        self.stop()


def run(main: Callable[[], Awaitable[int]]) -> int:
    """Run a coroutine function to its end, on uvloop where there is one."""
    factory: Callable[[], asyncio.AbstractEventLoop]
    try:
        from uvloop import new_event_loop as factory
    except ImportError:  # Windows
        factory = asyncio.new_event_loop

    async def inner() -> int:
        return await main()

    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(inner())


async def until_told(work: Callable[[], Awaitable[int]], stop: Callable[[], None]) -> int:
    """`work`, ended in order by the first SIGTERM or SIGINT, at once by the second; answers the exit code.

    Ended by one signal it answers what `work` does, by two 128 + the signal.
    """
    loop = asyncio.get_running_loop()
    told: list[int] = []
    task = asyncio.ensure_future(work())

    def tell(number: int) -> None:
        told.append(number)
        if len(told) == 1:
            stop()
        else:
            task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, tell, number)
    try:
        return await task
    except asyncio.CancelledError:
        if len(told) > 1:
            return 128 + told[1]
        raise
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(ValueError):
                loop.remove_signal_handler(number)
