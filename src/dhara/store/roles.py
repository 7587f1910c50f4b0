"""PostgreSQL roles for the parts of dhara, each with no more rights than its statements need.

    owner        owns everything, cannot log in
    migrator     becomes owner when it logs in
    api          enqueues, reads, cancels, revives, pauses, manages API keys; cannot claim or end an attempt
    worker       claims, settles, beats, enqueues; cannot touch queues, API keys, or delete anything
    maintenance  reaps, expires, prunes, folds, fires schedules, drives bulk operations; sees no payload of a task
    reader       sees states and figures, no payloads, results or keys

Roles belong to the whole server, so they are no numbered migration. All are made without login and password: give an
account of yours the role (`CREATE ROLE web LOGIN PASSWORD ... IN ROLE dhara_api, dhara_maintenance`). `apply` may be run
again, and must be after a migration that brings new tables. Whatever `GRANTS` does not name nobody but the owner may do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import asyncpg
from msgspec import Struct

from dhara.errors import ConfigError, SchemaError
from dhara.store.sql import check_schema, qualify

OWNER, MIGRATOR, API, WORKER, MAINTENANCE, READER = "owner", "migrator", "api", "worker", "maintenance", "reader"
ROLES = (OWNER, MIGRATOR, API, WORKER, MAINTENANCE, READER)

_REVIVED = (
    "status, run_at, completed_at, unique_slot, cancel_requested_at, updated_at, reason, payload, queue, priority,"
    " max_retries, generation, failures, crashes, snoozes, lease, locked_by, claim_seq, expires_at, fingerprint"
)
_REAPED = (
    "status, failures, crashes, snoozes, run_at, unique_slot, logs, completed_at, updated_at, reason, fingerprint,"
    " last_error, generation, lease, locked_by, claim_seq, cancel_requested_at, expires_at"
)
# All of a task but payload, result, progress, and what its handler said.
_SHOWN = (
    "id, lease, locked_by, claim_seq, run_at, created_at, updated_at, started_at, completed_at, cancel_requested_at,"
    " expires_at, unique_until, timeout, retention, attempts, generation, priority, max_retries, failures, crashes,"
    " snoozes, status, type, queue, idempotency_key, unique_key, unique_slot, unique_scope, concurrency_key, traceparent,"
    " reason, fingerprint, tags"
)
_SHOWN_HISTORY = "seq, task_id, lease, worker_id, claim_seq, claimed_at, at, generation, attempt, event, reason"


class Grant(Struct, frozen=True):
    """`rights` on tables and views, as SQL writes them, perhaps with columns."""

    role: str
    rights: str
    tables: str


GRANTS: tuple[Grant, ...] = (
    Grant(API, "SELECT, INSERT", "tasks, task_history, counters"),
    Grant(API, f"UPDATE ({_REVIVED})", "tasks"),
    Grant(API, "SELECT", "workers, histograms, leaders, migrations, task_logs, attempts"),
    Grant(API, "SELECT, INSERT, UPDATE", "queues, api_keys"),
    Grant(API, "SELECT, INSERT, UPDATE, DELETE", "queue_limits, sessions"),
    Grant(API, "SELECT, INSERT", "audit_log, operations, schedule_fires, worker_drains"),
    Grant(API, "UPDATE", "operations"),
    Grant(API, "SELECT, INSERT, UPDATE, DELETE", "failure_groups, schedules"),
    Grant(API, "SELECT", "rates"),
    Grant(WORKER, "SELECT, INSERT, UPDATE", "tasks, workers, histograms"),
    Grant(WORKER, "SELECT, INSERT", "task_history, counters"),
    Grant(WORKER, "SELECT", "queues, leaders, migrations, task_logs, attempts, worker_drains"),
    Grant(MAINTENANCE, f"SELECT ({_SHOWN}, logs, last_error), UPDATE ({_REAPED}), INSERT, DELETE", "tasks"),
    Grant(MAINTENANCE, "SELECT, INSERT, DELETE", "task_history"),
    # A lock on what is folded asks for UPDATE.
    Grant(MAINTENANCE, "SELECT, INSERT, UPDATE, DELETE", "counters"),
    Grant(MAINTENANCE, "SELECT, UPDATE (state, stopped_at, running), DELETE", "workers"),
    Grant(MAINTENANCE, "SELECT, INSERT, UPDATE", "leaders"),
    Grant(MAINTENANCE, "SELECT", "queues, histograms, migrations, task_logs"),
    Grant(MAINTENANCE, "SELECT, UPDATE", "schedules, operations"),
    Grant(MAINTENANCE, "SELECT, INSERT, UPDATE, DELETE", "schedule_fires, rates"),
    Grant(MAINTENANCE, "SELECT", "failure_groups, worker_drains"),
    Grant(MAINTENANCE, "INSERT", "audit_log"),
    # A lock on what is freed asks for UPDATE.
    *(Grant(role, "SELECT, INSERT, UPDATE, DELETE", "full_queues") for role in (API, WORKER, MAINTENANCE)),
    Grant(WORKER, "SELECT", "queue_limits"),
    Grant(MAINTENANCE, "SELECT", "queue_limits"),
    Grant(READER, f"SELECT ({_SHOWN})", "tasks"),
    Grant(READER, f"SELECT ({_SHOWN_HISTORY})", "task_history"),
    Grant(
        READER,
        "SELECT",
        "workers, worker_drains, queues, queue_limits, full_queues, counters, histograms, leaders, migrations, rates,"
        " task_logs",
    ),
)
SEQUENCES: dict[str, tuple[str, ...]] = {"task_history_seq": (API, WORKER, MAINTENANCE)}
# Who may call which function; what they do their caller must be allowed to do.
FUNCTIONS: dict[str, tuple[str, ...]] = {
    "new_id": (API, WORKER, MAINTENANCE),
    "refuse_field": (API, WORKER, MAINTENANCE),
    "replace_pending": (API, WORKER),
    "enqueue": (API, WORKER, MAINTENANCE),
    "enqueue_all": (API, WORKER, MAINTENANCE),
    "complete": (WORKER,),
}
# Columns cannot say that the API may cancel a PENDING task but not end a RUNNING one; whoever may not write what a
# settlement writes may not end an attempt, and who may not write results may not complete.
_TRIGGER = """
CREATE OR REPLACE TRIGGER tasks_refuse_role AFTER UPDATE ON dhara.tasks FOR EACH ROW
    WHEN (OLD.status = 'RUNNING' AND NEW.status <> 'RUNNING'
          AND NOT has_column_privilege('dhara.tasks'::regclass,
                                       CASE NEW.status WHEN 'COMPLETED' THEN 'result' ELSE 'logs' END, 'UPDATE'))
    EXECUTE FUNCTION dhara.refuse_role()"""


def names(prefix: str) -> dict[str, str]:
    """The roles' names. Raises `ConfigError` for a prefix that is none."""
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,39}", prefix) or prefix.startswith("pg_"):
        raise ConfigError(f"prefix {prefix!r} is not a name: use a-z, 0-9 and _, at most 40, not starting with pg_")
    return {role: f"{prefix}_{role}" for role in ROLES}


async def apply(connection: Any, schema: str = "dhara", prefix: str = "dhara") -> list[str]:
    """Make the roles that are missing, hand the schema to the owner, and set everybody's rights anew; answers the roles'
    names. One transaction. Raises `SchemaError` where the login may not do that."""
    check_schema(schema)
    roles = names(prefix)
    try:
        async with connection.transaction():
            await _create(connection, roles)
            for statement in (
                *_ownership(await _owned(connection, schema, roles[OWNER]), roles[OWNER]),
                *_rights(roles),
            ):
                await connection.execute(_schema(statement, schema))
            await connection.execute(qualify(_TRIGGER, schema))
    except asyncpg.InsufficientPrivilegeError as error:
        raise SchemaError(
            f"this database user may not make the roles: {error}; the first time use a login with CREATEROLE that owns"
            f" schema {schema!r}, or a superuser"
        ) from error
    return list(roles.values())


async def _create(connection: Any, roles: dict[str, str]) -> None:
    there = {row[0] for row in await connection.fetch("SELECT rolname FROM pg_roles")}
    for name in roles.values():
        if name not in there:
            await connection.execute(f'CREATE ROLE "{name}" NOLOGIN')
    owner, migrator = roles[OWNER], roles[MIGRATOR]
    if not await connection.fetchval("SELECT pg_has_role(current_user, $1, 'USAGE')", owner):
        await connection.execute(f'GRANT "{owner}" TO CURRENT_USER')
    if migrator not in there:
        await connection.execute(f'GRANT "{owner}" TO "{migrator}"')
        await connection.execute(f'ALTER ROLE "{migrator}" SET role = "{owner}"')


_OWNED = """
SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE' WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END, format('%I.%I', $1::text, c.relname)
FROM pg_class AS c WHERE c.relnamespace = $1::text::regnamespace AND c.relkind IN ('r', 'v', 'S')
  AND c.relowner <> $2::text::regrole
  -- A sequence of a column goes with its table.
  AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.objid = c.oid AND d.deptype IN ('a', 'i') AND c.relkind = 'S')
UNION ALL
SELECT 'FUNCTION', p.oid::regprocedure::text FROM pg_proc AS p
WHERE p.pronamespace = $1::text::regnamespace AND p.proowner <> $2::text::regrole
UNION ALL
SELECT 'SCHEMA', format('%I', nspname) FROM pg_namespace
WHERE oid = $1::text::regnamespace AND nspowner <> $2::text::regrole"""


async def _owned(connection: Any, schema: str, owner: str) -> list[tuple[str, str]]:
    """What is not the owner's yet: kind and name."""
    await connection.execute("SET LOCAL search_path = pg_catalog")
    return [tuple(row) for row in await connection.fetch(_OWNED, schema, owner)]


def _ownership(things: list[tuple[str, str]], owner: str) -> Iterator[str]:
    for kind, name in things:
        yield f'ALTER {kind} {name} OWNER TO "{owner}"'


def _rights(roles: dict[str, str]) -> Iterator[str]:
    others = ", ".join(f'"{roles[role]}"' for role in ROLES if role not in (OWNER, MIGRATOR))
    for kind in ("TABLES", "SEQUENCES", "FUNCTIONS"):
        yield f"REVOKE ALL ON ALL {kind} IN SCHEMA :schema FROM PUBLIC, {others}"
    yield "REVOKE ALL ON SCHEMA :schema FROM PUBLIC"
    yield f"GRANT USAGE ON SCHEMA :schema TO {others}"
    for grant in GRANTS:
        tables = ", ".join(f":schema.{table}" for table in grant.tables.split(", "))
        yield f'GRANT {grant.rights} ON {tables} TO "{roles[grant.role]}"'
    for sequence, users in SEQUENCES.items():
        yield f"GRANT USAGE ON SEQUENCE :schema.{sequence} TO {_listed(users, roles)}"
    for function, users in FUNCTIONS.items():
        yield f"GRANT EXECUTE ON FUNCTION :schema.{function} TO {_listed(users, roles)}"


def _listed(users: tuple[str, ...], roles: dict[str, str]) -> str:
    return ", ".join(f'"{roles[user]}"' for user in users)


def _schema(statement: str, schema: str) -> str:
    return statement.replace(":schema", f'"{schema}"')
