"""The roles of `dhara migrate roles`: every statement by every role, what nobody may do, and what else the catalogue says."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from dhara.domain.lifecycle import State
from dhara.errors import ConfigError, SchemaError
from dhara.store import migrate, roles
from dhara.store.sql import load, names
from tests.conftest import Databases
from tests.factories import make_task
from tests.store.test_illegal_moves import REFUSED

pytestmark = pytest.mark.asyncio(loop_scope="module")

PREFIX = f"dhara_test_{secrets.token_hex(4)}"
PARTS = (roles.API, roles.WORKER, roles.MAINTENANCE, roles.READER)
API, WORKER, MAINTENANCE, READER = ({part} for part in PARTS)
# Who needs which statement: these may, all others may not. A new statement needs a line here, and perhaps a grant.
USES: dict[str, set[str]] = {
    "audit/list": API,
    "audit/record": API | MAINTENANCE,
    "doctor/*": API | WORKER | MAINTENANCE | READER,
    "failures/groups": API,
    "failures/groups_within": API | MAINTENANCE,
    "failures/mute": API,
    "failures/unmute": API,
    "keys/*": API,
    "operations/cancel": API | WORKER | MAINTENANCE,
    "operations/create": API,
    "operations/outcomes": API | WORKER | MAINTENANCE | READER,
    "operations/retry": API | WORKER | MAINTENANCE,
    "operations/purge": MAINTENANCE,
    "operations/tasks": API | WORKER,
    "operations/*": API | MAINTENANCE,
    "schedules/create": API,
    "schedules/delete": API,
    "schedules/prune": MAINTENANCE,
    "schedules/*": API | MAINTENANCE,
    "queues/aim": API,
    "queues/least_retention": API | WORKER | MAINTENANCE | READER,
    "queues/limit": API,
    "queues/list": API | WORKER | MAINTENANCE | READER,
    "queues/loads": API | WORKER | MAINTENANCE,
    "queues/pause": API,
    "queues/resume": API,
    "queues/retain": API,
    "queues/unlimit": API,
    "sessions/*": API,
    "stats/clock": API | WORKER | MAINTENANCE | READER,
    "stats/flows": API | WORKER | MAINTENANCE | READER,
    "stats/fold_counters": MAINTENANCE,
    "stats/histograms": API | WORKER | MAINTENANCE | READER,
    "stats/health": API | WORKER | MAINTENANCE | READER,
    "stats/observe": WORKER,
    "stats/prune_rates": MAINTENANCE,
    "stats/recent": API | MAINTENANCE | READER,
    "stats/sample": MAINTENANCE,
    "stats/samples": API | MAINTENANCE | READER,
    "stats/origin": API | WORKER | MAINTENANCE | READER,
    "stats/ready": API | WORKER | MAINTENANCE | READER,
    "stats/span": API | WORKER | MAINTENANCE | READER,
    "stats/total": API | WORKER | MAINTENANCE | READER,
    "stats/unroutable": API | WORKER | MAINTENANCE | READER,
    "stats/workers": API | WORKER | MAINTENANCE | READER,
    "tasks/attempts": API | WORKER,
    "tasks/claim": WORKER,
    "tasks/complete": WORKER,
    "tasks/count_enqueued": API | WORKER | MAINTENANCE,
    "tasks/enqueue": API | WORKER | MAINTENANCE,
    "tasks/enqueue_plain": API | WORKER | MAINTENANCE,
    "tasks/existing": API | WORKER,
    "tasks/explain": API,
    "tasks/expire": API | WORKER | MAINTENANCE,
    "tasks/final": API | WORKER | MAINTENANCE | READER,
    "tasks/get": API | WORKER,
    "tasks/get_many": API | WORKER,
    "tasks/held": API | WORKER | MAINTENANCE | READER,
    "tasks/held_of": API | WORKER | MAINTENANCE | READER,
    "tasks/lanes": API | WORKER | MAINTENANCE | READER,
    "tasks/slice": API | WORKER | MAINTENANCE | READER,
    "tasks/lapse": API | WORKER | MAINTENANCE,
    "tasks/logs": API | WORKER | MAINTENANCE | READER,
    "tasks/prune": MAINTENANCE,
    "tasks/prune_history": MAINTENANCE,
    "tasks/reap": WORKER | MAINTENANCE,
    "tasks/reject": API | WORKER | MAINTENANCE,
    "tasks/replace": API | WORKER,
    "tasks/report": WORKER,
    "tasks/request_cancel": API | MAINTENANCE,
    "tasks/revive": API,
    "tasks/settle": WORKER,
    "tasks/settled": API | WORKER | MAINTENANCE | READER,
    "waits/briefly": API | WORKER | MAINTENANCE | READER,
    "workers/ask_drain": API,
    "workers/beat": WORKER,
    "workers/chore": API | MAINTENANCE,
    "workers/drain": WORKER | MAINTENANCE,
    "workers/drain_asked": API | WORKER | MAINTENANCE | READER,
    "workers/get_up": API | WORKER | MAINTENANCE | READER,
    "workers/lead": MAINTENANCE,
    "workers/lie_down": API | WORKER | MAINTENANCE | READER,
    "workers/list": API | WORKER | MAINTENANCE | READER,
    "workers/lose": WORKER | MAINTENANCE,
    "workers/prune": MAINTENANCE,
    "workers/register": WORKER,
    "workers/running": API | WORKER | MAINTENANCE | READER,
    "workers/stop": WORKER | MAINTENANCE,
    "workers/witness": API | WORKER | MAINTENANCE | READER,
}
# Beyond dhara's own statements: what somebody with that role's password would like to do.
FORBIDDEN: dict[str, set[str]] = {
    # statement: who may all the same
    "SELECT payload FROM dhara.tasks": API | WORKER,
    "SELECT result FROM dhara.tasks": API | WORKER,
    "SELECT * FROM dhara.attempts": API | WORKER,
    "SELECT error FROM dhara.task_history": API | WORKER | MAINTENANCE,
    "SELECT digest FROM dhara.api_keys": API,
    "INSERT INTO dhara.api_keys (id, name, digest, scopes) VALUES ('abcdefabcdef', 'x', sha256('x'), '{admin}')": API,
    "UPDATE dhara.api_keys SET scopes = '{admin}'": API,
    "DELETE FROM dhara.api_keys": set(),
    "DELETE FROM dhara.tasks": MAINTENANCE,
    "DELETE FROM dhara.task_history": MAINTENANCE,
    "DELETE FROM dhara.workers": MAINTENANCE,
    "DELETE FROM dhara.queues": set(),
    "UPDATE dhara.queues SET paused_at = NULL": API,
    "UPDATE dhara.task_history SET event = 'COMPLETED'": set(),
    "UPDATE dhara.tasks SET result = '1'": WORKER,
    "UPDATE dhara.tasks SET payload = '1'": API | WORKER,
    "UPDATE dhara.migrations SET checksum = ''": set(),
    "INSERT INTO dhara.migrations (version, name, checksum) VALUES (9999, 'x', 'x')": set(),
    "UPDATE dhara.audit_log SET actor = 'somebody else'": set(),
    "DELETE FROM dhara.audit_log": set(),
    "UPDATE dhara.schedules SET type = 'x'": API | MAINTENANCE,
    "TRUNCATE dhara.tasks": set(),
    "TRUNCATE dhara.counters": set(),
    "TRUNCATE dhara.api_keys": set(),
    "DROP TABLE dhara.histograms": set(),
    "ALTER TABLE dhara.tasks DISABLE TRIGGER tasks_refuse_update": set(),
    "CREATE TABLE dhara.mine ()": set(),
    "CREATE OR REPLACE FUNCTION dhara.new_id() RETURNS uuid LANGUAGE sql AS 'SELECT gen_random_uuid()'": set(),
    "SELECT dhara.complete('{}')": WORKER,
    "SELECT nextval('dhara.task_history_seq')": API | WORKER | MAINTENANCE,
    "SELECT setval('dhara.task_history_seq', 1)": set(),
}
STATEMENTS = {
    "cancel a running task": "UPDATE dhara.tasks SET status = 'CANCELED' WHERE id = $1",
    "complete it": "UPDATE dhara.tasks SET status = 'COMPLETED' WHERE id = $1",
    "bury it": "UPDATE dhara.tasks SET status = 'DEAD' WHERE id = $1",
    "take it back": "UPDATE dhara.tasks SET status = 'PENDING' WHERE id = $1",
}
MAY_END = {
    "cancel a running task": WORKER | MAINTENANCE,
    "complete it": WORKER,
    "bury it": WORKER | MAINTENANCE,
    "take it back": WORKER | MAINTENANCE,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def db(databases: Databases, template: str) -> AsyncIterator[Any]:
    """A database with roles; its login may become any of them."""
    name = databases.create(template)
    connection = await asyncpg.connect(databases.dsn(name))
    assert await roles.apply(connection, prefix=PREFIX) == [f"{PREFIX}_{role}" for role in roles.ROLES]
    yield connection
    await connection.execute("RESET ROLE")
    everybody = ", ".join(roles.names(PREFIX).values())
    await connection.execute(f"DROP OWNED BY {everybody} CASCADE; DROP ROLE {everybody}")
    await connection.close()
    databases.drop(name)


async def allowed(db: Any, role: str, statement: str, *args: Any) -> bool:
    """Whether `role` may do that; nothing of it stays."""
    transaction = db.transaction()
    await transaction.start()
    try:
        await db.execute(f"SET LOCAL ROLE {PREFIX}_{role}")
        await db.execute(statement, *args)
    except asyncpg.InsufficientPrivilegeError:  # 42501
        return False
    finally:
        await transaction.rollback()
    return True


def users(name: str) -> set[str]:
    found = USES.get(name, USES.get(name.split("/")[0] + "/*"))
    assert found is not None, f"say in USES of this test who needs {name}, and grant it in store/roles.py"
    return found


# `dhara audit` reads everything and makes tables of its own for the time: the owner's work.
NAMES = [name for name in names() if not name.startswith("invariants/")]


@pytest.mark.parametrize("name", NAMES)
async def test_every_statement_by_every_role(db: Any, name: str) -> None:
    text = load(name, "dhara")
    types = [p.name for p in (await db.prepare(text)).get_parameters()]
    nulls = ", ".join(["NULL"] * len(types))
    await db.execute(f"PREPARE s AS {text}")
    try:
        explain = f"EXPLAIN EXECUTE s{f'({nulls})' if nulls else ''}"
        may = {role for role in PARTS if await allowed(db, role, explain)}
    finally:
        await db.execute("DEALLOCATE s")
    assert may == users(name)


@pytest.mark.parametrize("statement", FORBIDDEN)
async def test_what_others_would_like_to_do(db: Any, statement: str) -> None:
    may = set()
    for role in PARTS:
        try:
            if await allowed(db, role, statement):
                may.add(role)
        except asyncpg.CheckViolationError:
            may.add(role)  # The rights are there; the trigger refuses it all the same.
    assert may == FORBIDDEN[statement]


@pytest.mark.parametrize("deed", STATEMENTS)
async def test_only_workers_and_the_reaper_end_attempts(db: Any, deed: str) -> None:
    task = await make_task(db, State.RUNNING)
    assert {role for role in PARTS if await allowed(db, role, STATEMENTS[deed], task.id)} == MAY_END[deed]


async def test_the_worker_is_refused_every_illegal_move_too(db: Any) -> None:
    """S29: the rights of a role change nothing about the moves."""
    for source, target in REFUSED:
        task = await make_task(db, source)
        for extra in ("", ", lease = gen_random_uuid(), attempts = attempts + 1", ", generation = generation + 1"):
            with pytest.raises(asyncpg.CheckViolationError):
                await allowed(
                    db, roles.WORKER, f"UPDATE dhara.tasks SET status = $2{extra} WHERE id = $1", task.id, target
                )


async def test_there_are_cells_enough() -> None:
    refused = sum(len(PARTS) - len(users(name)) for name in NAMES)
    assert refused + sum(len(PARTS) - len(may) for may in FORBIDDEN.values()) >= 60


async def test_the_owner_owns_everything_and_cannot_log_in(db: Any) -> None:
    owner = f"{PREFIX}_owner"
    assert await roles._owned(db, "dhara", owner) == []
    assert not await db.fetchval(
        "SELECT bool_or(rolcanlogin OR rolsuper) FROM pg_roles WHERE rolname LIKE $1", PREFIX + "%"
    )
    config = await db.fetchval("SELECT rolconfig FROM pg_roles WHERE rolname = $1", f"{PREFIX}_migrator")
    assert config == [f"role={owner}"]
    # Once made, the owner keeps them in order: what `migrate up --roles` of the migrator does.
    await db.execute(f"SET ROLE {owner}")
    try:
        await roles.apply(db, prefix=PREFIX)
        assert await migrate.up(db) == []
    finally:
        await db.execute("RESET ROLE")


async def test_every_table_is_granted_to_somebody(db: Any) -> None:
    granted = {table for grant in roles.GRANTS for table in grant.tables.split(", ")}
    tables = {row[0] for row in await db.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'dhara'")}
    assert tables <= granted, "grant it in store/roles.py to whoever needs it"


async def test_functions_are_safe(db: Any) -> None:
    """S28: each with a search_path of its own, none for everybody, none with its owner's rights."""
    query = """SELECT proname, proconfig, prosecdef, EXISTS (
                   SELECT FROM aclexplode(COALESCE(proacl, acldefault('f', proowner))) WHERE grantee = 0) AS anybody
               FROM pg_proc WHERE pronamespace = 'dhara'::regnamespace"""
    functions = await db.fetch(query)
    assert len(functions) >= 9
    for name, config, definer, anybody in functions:
        assert config == ["search_path=pg_catalog, pg_temp"], name
        assert not definer, name
        assert not anybody, f"REVOKE ALL ON FUNCTION dhara.{name} FROM PUBLIC in its migration"


async def test_a_malicious_schema_catches_nothing(db: Any) -> None:
    """Functions, operators and tables of a stranger in front of the caller's search_path are never used."""
    transaction = db.transaction()
    await transaction.start()
    try:
        await db.execute("""
            CREATE SCHEMA evil;
            CREATE TABLE evil.caught (what text);
            CREATE FUNCTION evil.trap(text, text) RETURNS boolean LANGUAGE plpgsql AS
                $$ BEGIN INSERT INTO evil.caught VALUES ($1); RETURN true; END $$;
            CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.trap);
            CREATE OPERATOR evil.!~ (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.trap);
            CREATE FUNCTION evil.length(text) RETURNS integer LANGUAGE plpgsql AS
                $$ BEGIN INSERT INTO evil.caught VALUES ($1); RETURN 1; END $$;
            CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS
                $$ BEGIN INSERT INTO evil.caught VALUES ('clock'); RETURN now(); END $$;
            CREATE FUNCTION evil.pg_notify(text, text) RETURNS void LANGUAGE plpgsql AS
                $$ BEGIN INSERT INTO evil.caught VALUES ($1); END $$;
            CREATE TABLE evil.tasks AS SELECT * FROM dhara.tasks;
            SET LOCAL search_path = evil, pg_catalog;
        """)
        found = await db.fetchrow("SELECT * FROM dhara.enqueue('echo', '{\"a\": 1}', idempotency_key => 'k')")
        again = await db.fetchrow(
            'SELECT * FROM dhara.enqueue_all(\'[{"type": "echo", "idempotency_key": "k", "payload": {"a": 1}}]\')'
        )
        assert again["task_id"] == found["task_id"]
        outcome = json.dumps({"id": str(found["task_id"]), "lease": str(found["task_id"])})
        await db.fetchval("SELECT dhara.complete($1)", outcome)
        assert await db.fetch("SELECT * FROM evil.caught") == []
        assert await db.fetchval("SELECT count(*) FROM evil.tasks WHERE id = $1", found["task_id"]) == 0
    finally:
        await transaction.rollback()


async def test_who_cannot_make_roles_is_told(db: Any) -> None:
    await db.execute(f"SET ROLE {PREFIX}_worker")
    try:
        with pytest.raises(SchemaError, match="may not make the roles"):
            await roles.apply(db, prefix=f"{PREFIX}2")
    finally:
        await db.execute("RESET ROLE")
    for prefix in ("A", "pg_x", 'x"y', "", "x" * 41):
        with pytest.raises(ConfigError, match="prefix"):
            await roles.apply(db, prefix=prefix)
