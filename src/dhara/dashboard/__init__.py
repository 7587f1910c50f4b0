"""The operator's pages: see everything, understand any task, mend what failed.

Reads statistics and searches, acts through the same store methods as the API, adds nothing to the hot path. `dhara
server` serves it at `/`; `app` mounts it in any ASGI application.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata

from dhara.dashboard.desk import desk_on
from dhara.dashboard.door import Authorize, Door
from dhara.dashboard.keys import Keys, StoredKeys
from dhara.dashboard.sessions import SignedIn
from dhara.dashboard.site import Site
from dhara.domain.access import Principal
from dhara.domain.masking import Mask
from dhara.settings import Settings, field_paths, trace_address
from dhara.store import keys as stored
from dhara.store.pool import DatabaseSettings, Pool
from dhara.store.sessions import Sessions
from dhara.store.wakeup import Notifier

_USUAL = Settings()

__all__ = ["Authorize", "Principal", "Site", "app", "site"]


def site(pool: Pool, keys: Keys, notifier: Notifier | None, version: str, settings: Settings) -> Site:
    """The dashboard as the server serves it, beside its API."""
    return Site(
        desk_on(
            pool,
            notifier,
            settings.stale_after,
            Mask(settings.masked_fields),
            settings.trace_url,
            settings.wait_objective,
        ),
        Door(keys, SignedIn(Sessions(pool, pool.settings.schema))),
        version=version,
        api=True,
    )


def app(
    database: str | Pool,
    *,
    schema: str = "dhara",
    authorize: Authorize | None = None,
    trace_url: str = "",
    masked_fields: Sequence[str] = (),
    wait_objective: float = _USUAL.wait_objective,
    stale_after: float = _USUAL.stale_after,
) -> Site:
    """The dashboard for your own application: `Mount("/dhara", dhara.dashboard.app(dsn, authorize=...))`.

    `database` is a DSN (the pool opens with the first page; `await site.aclose()` closes it) or your own open pool.
    `authorize` takes the request and answers who it is (`Principal(name, scopes)`) or None for nobody. Without it people
    sign in with an API key of the database; while there is none, nobody but this machine's own browser may enter.
    `trace_url`: where traces are shown, `https://traces.example/{trace_id}`. `masked_fields`: fields of payloads and results
    that nobody sees, `["card.number", "*.password"]` or a text with commas. `wait_objective`, `stale_after`: seconds that a
    ready task may wait, and after which a worker without a heartbeat is lost. None of it is read from the environment. Raises
    ValueError for what is no such address, path or number.
    """
    own = None if isinstance(database, Pool) else Pool(DatabaseSettings(dsn=database, schema=schema), "dashboard")
    pool = own or database
    assert isinstance(pool, Pool)
    name = pool.settings.schema
    keys, sessions = StoredKeys(stored.Keys(pool, name)), SignedIn(Sessions(pool, name))
    door = Door(keys, sessions, authorize=authorize, loopback_only=True)
    return Site(
        desk_on(
            pool,
            Notifier(pool, name),
            float(stale_after),
            Mask(field_paths(masked_fields if isinstance(masked_fields, str) else [*masked_fields])),
            trace_url and trace_address(trace_url),
            float(wait_objective),
        ),
        door,
        version=metadata.version("dhara"),
        own=own,
    )
