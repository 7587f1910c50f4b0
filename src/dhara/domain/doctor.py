"""What a look at the database and the fleet says about their health, and what to do about it. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from dhara.domain.explain import span

OK, WARN, FAIL = "ok", "warn", "fail"
OLDEST_TRANSACTION = 300.0
CLOCK_SECONDS = 2.0
NOTIFY_USAGE = 0.5
DEAD_ROWS = 50_000
FIRST_POSTGRES = 150_000


class Finding(Struct, frozen=True):
    """One check: `ok`, `warn` or `fail`, what was seen, and what to do."""

    check: str
    status: str
    seen: str
    cure: str | None = None


class TableHealth(Struct, frozen=True):
    """A table's rows by the statistics; `vacuumed` seconds ago, None: never."""

    name: str
    live: int
    dead: int
    vacuumed: float | None


class Holder(Struct, frozen=True):
    """Who keeps vacuum from removing rows: a session, a prepared transaction or a replication slot; `age` is seconds."""

    kind: str
    name: str
    age: float


class Wait(Struct, frozen=True):
    """How long a queue's oldest ready task has waited, in seconds; and its own objective, None: the general one."""

    queue: str
    age: float
    objective: float | None = None


class Examined(Struct, frozen=True, kw_only=True):
    """What was looked at. `missing` migrations; `denied`: what the role may not do; `clock`: seconds that this machine's clock
    is ahead of the database's; `unroutable` types with their ready tasks; `silent`: live workers' oldest beat, seconds."""

    server_version: int
    version_text: str
    standby: bool = False
    read_only: bool = False
    missing: list[str] = []
    role: str = ""
    denied: list[str] = []
    autovacuum: bool = True
    fsync: bool = True
    synchronous_commit: str = "on"
    connections: int = 0
    max_connections: int = 100
    tables: list[TableHealth] = []
    holders: list[Holder] = []
    notify_usage: float = 0.0
    clock: float = 0.0
    own_version: str = ""
    versions: dict[str, int] = {}
    workers: int = 0
    silent: float = 0.0
    unroutable: dict[str, int] = {}
    paused: dict[str, int] = {}
    waits: list[Wait] = []
    stopped_schedules: list[str] = []


def examine(seen: Examined, stale_after: float = 30.0, wait_objective: float = 300.0) -> list[Finding]:
    """Every check, in the order in which one would look. The settings are seconds."""
    return [*_database(seen), *_vacuum(seen), *_fleet(seen, stale_after), *_backlog(seen, wait_objective)]


def _database(s: Examined) -> Iterator[Finding]:
    if s.server_version < FIRST_POSTGRES:
        yield Finding("version", FAIL, f"PostgreSQL {s.version_text}", "dhara needs PostgreSQL 15 or newer")
    else:
        yield Finding("version", OK, f"PostgreSQL {s.version_text}")
    if s.standby or s.read_only:
        what = "a standby" if s.standby else "read-only"
        cure = "point DHARA_DATABASE_URL to the primary; several hosts with target_session_attrs=read-write find it"
        yield Finding("writable", FAIL, f"the database is {what}", cure)
    else:
        yield Finding("writable", OK, "it takes writes")
    if s.missing:
        yield Finding("migrations", FAIL, "missing: " + ", ".join(s.missing), "run `dhara migrate up`")
    else:
        yield Finding("migrations", OK, "up to date")
    if s.denied:
        yield Finding("role", FAIL, f"{s.role} may not: {', '.join(s.denied)}", "GRANT it, or use another login")
    else:
        yield Finding("role", OK, s.role)
    if not s.fsync:
        yield Finding("durability", FAIL, "fsync is off", "set fsync = on: a crash of the machine would lose tasks")
    elif s.synchronous_commit == "off":
        cure = "set synchronous_commit = on: a crash could lose tasks that were accepted"
        yield Finding("durability", WARN, "synchronous_commit is off", cure)
    else:
        yield Finding("durability", OK, f"fsync on, synchronous_commit {s.synchronous_commit}")
    text = f"{s.connections} of {s.max_connections} connections"
    full = s.connections > 0.8 * s.max_connections
    cure = "lower DHARA_POOL_MAX, use a pooler, or raise max_connections"
    yield Finding("connections", WARN if full else OK, text, cure if full else None)
    ahead = f"this machine is {span(abs(s.clock))} {'ahead' if s.clock > 0 else 'behind'}"
    if abs(s.clock) > CLOCK_SECONDS:
        cure = "set the clocks by NTP; dhara goes by the database's, but logs and run_at of clients do not"
        yield Finding("clock", WARN, ahead, cure)
    else:
        yield Finding("clock", OK, f"this machine's and the database's agree to {span(abs(s.clock))}")
    usage = f"{s.notify_usage:.0%} full"
    if s.notify_usage > NOTIFY_USAGE:
        cure = "a session listens in a long transaction; end it (see `vacuum horizon`)"
        yield Finding("notify queue", FAIL, usage, cure)
    else:
        yield Finding("notify queue", OK, usage)


def _vacuum(s: Examined) -> Iterator[Finding]:
    if not s.autovacuum:
        yield Finding("autovacuum", FAIL, "it is off", "set autovacuum = on: without it every claim gets slower")
    else:
        yield Finding("autovacuum", OK, "on")
    bad = [t for t in s.tables if t.dead > DEAD_ROWS and t.dead > t.live / 2]
    for table in bad:
        when = "never" if table.vacuumed is None else f"{span(table.vacuumed)} ago"
        text = f"{table.name}: {table.dead:,} dead rows beside {table.live:,}, vacuumed {when}"
        yield Finding("dead rows", WARN, text, f"VACUUM {table.name}; if that does not help, see `vacuum horizon`")
    if not bad:
        yield Finding("dead rows", OK, f"{sum(t.dead for t in s.tables):,} in all")
    holding = [h for h in s.holders if h.age > OLDEST_TRANSACTION]
    for one in holding:
        cure = {
            "session": f"end it: SELECT pg_terminate_backend({one.name.split()[0]})",
            "prepared transaction": "COMMIT PREPARED or ROLLBACK PREPARED it",
        }.get(one.kind, "drop the replication slot, or let its consumer go on")
        text = f"{one.kind} {one.name} has kept dead rows from being removed for {span(one.age)}"
        yield Finding("vacuum horizon", WARN, text, cure)
    if not holding:
        yield Finding(
            "vacuum horizon", OK, f"the oldest transaction is {span(max((h.age for h in s.holders), default=0))} old"
        )


def _fleet(s: Examined, stale_after: float) -> Iterator[Finding]:
    if not s.workers:
        yield Finding("workers", WARN, "no worker is alive", "start one: dhara worker MODULE")
    elif s.silent > stale_after / 2:
        text = f"{s.workers} alive, but one has not beaten for {span(s.silent)}"
        yield Finding("workers", WARN, text, "look at its log; at STALE_AFTER its tasks are taken back")
    else:
        yield Finding("workers", OK, f"{s.workers} alive")
    if others := {version: n for version, n in s.versions.items() if version != s.own_version}:
        text = ", ".join(f"{n} on {version}" for version, n in sorted(others.items())) + f"; this is {s.own_version}"
        yield Finding("worker versions", WARN, text, "fine during a deploy; otherwise bring them to one version")
    elif s.workers:
        yield Finding("worker versions", OK, s.own_version)
    if s.unroutable:
        text = ", ".join(f"{type} ({n:,} ready)" for type, n in list(s.unroutable.items())[:10])
        yield Finding("unroutable", WARN, text, "deploy a worker that knows the type, or cancel the tasks")
    else:
        yield Finding("unroutable", OK, "every ready task's type is known by a live worker")
    if s.paused:
        text = ", ".join(f"{queue} ({n:,} waiting)" for queue, n in list(s.paused.items())[:10])
        yield Finding("paused queues", WARN, text, "dhara queues resume NAME")
    if s.stopped_schedules:
        yield Finding("schedules", WARN, "stopped: " + ", ".join(s.stopped_schedules[:10]), "dhara schedules get NAME")


def _backlog(s: Examined, usual: float) -> Iterator[Finding]:
    """The queues that are late, those that are it most (for their objective) first; if none is, how old the oldest is."""
    late = [(w, goal) for w in s.waits if w.age > (goal := usual if w.objective is None else w.objective)]
    for wait, goal in sorted(late, key=lambda one: one[1] / one[0].age)[:10]:
        text = f"{wait.queue}: the oldest ready task has waited for {span(wait.age)}; it should be {span(goal)} at most"
        cure = f"dhara tasks list --due ready --queue {wait.queue}; dhara tasks explain ID"
        yield Finding("backlog", WARN, text, cure)
    if not late and s.waits:
        yield Finding("backlog", OK, f"the oldest ready task has waited for {span(max(w.age for w in s.waits))}")
    elif not late:
        yield Finding("backlog", OK, "no task is ready and waits")
