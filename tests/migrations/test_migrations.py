"""Migrations: up, down, all at once, interrupted, refused."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from dhara.errors import ConfigError, SchemaError, Unavailable
from dhara.store import migrate
from dhara.store.migrate import Migration
from dhara.store.sql import qualify
from dhara.store.tasks import Tasks
from tests.factories import Connection, lane, make_task, new_task
from tests.migrations.catalogue import describe
from tests.waiting import blocked_on_lock

ROOT = Path(__file__).parents[2]
STEPS = migrate.all_migrations()


@pytest.fixture
async def empty(empty_dsn: str) -> Any:
    """A connection to an empty database."""
    connection = await asyncpg.connect(empty_dsn)
    yield connection
    await connection.close()


@pytest.fixture
async def other(empty_dsn: str) -> Any:
    connection = await asyncpg.connect(empty_dsn)
    yield connection
    await connection.close()


def fake(monkeypatch: pytest.MonkeyPatch, *steps: Migration) -> None:
    monkeypatch.setattr(migrate, "all_migrations", lambda: list(steps))


# the steps themselves


def test_numbers_are_1_to_n_and_names_unique() -> None:
    assert [step.version for step in STEPS] == list(range(1, len(STEPS) + 1))
    assert len({step.name for step in STEPS}) == len(STEPS)
    assert all(step.down.strip() for step in STEPS)


async def test_all_steps_add_up_to_schema_sql(empty: Connection) -> None:
    text = (ROOT / "src/dhara/store/schema.sql").read_text()
    await migrate.up(empty)
    await empty.execute('CREATE SCHEMA "again"')
    await empty.execute(qualify(text, "again"))
    steps, whole = await describe(empty), await describe(empty, "again")
    assert len(steps) > 100
    assert steps == whole


def test_schema_sql_is_current() -> None:
    spec = importlib.util.spec_from_file_location("make_schema", ROOT / "scripts/make_schema.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.FILE.read_text() == module.schema_text(STEPS)
    with pytest.raises(ValueError, match="0001_x: teach this script to merge ALTER"):
        module.schema_text([Migration(1, "x", "ALTER TABLE dhara.tasks ADD x int;", "")])


async def test_each_step_down_leaves_nothing_behind(empty: Connection) -> None:
    """The catalogue after `down` is the one before `up`, for every step, with data in the tables."""
    await migrate._next_up(empty, "dhara")
    await migrate.down(empty)
    bare = await describe(empty)
    assert bare == []
    before: list[list[str]] = [bare]
    while await migrate._next_up(empty, "dhara"):
        before.append(await describe(empty))
    await make_task(empty, "DEAD")
    await make_task(empty, "RUNNING")
    for step in reversed(STEPS):
        assert await describe(empty) == before.pop()
        assert await migrate.down(empty) == [step]
    assert await describe(empty) == before.pop()
    assert await migrate.down(empty) == []
    assert await empty.fetch("SELECT FROM dhara.migrations") == []
    assert await migrate.up(empty) == STEPS


async def test_nothing_is_made_outside_the_schema(empty: Connection) -> None:
    query = """SELECT count(*) FROM pg_class WHERE relnamespace NOT IN
               (SELECT oid FROM pg_namespace WHERE nspname IN ('pg_catalog', 'pg_toast', 'information_schema', 'dhara'))
               UNION ALL SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
               UNION ALL SELECT count(*) FROM pg_namespace UNION ALL SELECT count(*) FROM pg_extension"""
    before = [row[0] for row in await empty.fetch(query)]
    await migrate.up(empty)
    after = [row[0] for row in await empty.fetch(query)]
    assert [b - a for a, b in zip(before, after, strict=True)] == [0, 0, 1, 0]


# up and down


async def test_up_is_idempotent(empty: Connection) -> None:
    assert await migrate.up(empty) == STEPS
    assert await migrate.up(empty) == []
    status = await migrate.status(empty)
    assert (status.applied, status.missing) == (STEPS, [])
    await migrate.check(empty)


async def test_status_on_nothing(empty: Connection) -> None:
    status = await migrate.status(empty)
    assert (status.applied, status.missing) == ([], STEPS)
    assert await empty.fetchval("SELECT to_regnamespace('dhara')") is None


async def test_several_steps_down(empty: Connection) -> None:
    await migrate.up(empty)
    assert await migrate.down(empty, 99) == STEPS[::-1]
    assert (await migrate.status(empty)).applied == []


@pytest.mark.parametrize("schema", ["q", "my_queue_2", "_x", "select", "s" * 40])
async def test_another_schemas_name(empty: Connection, schema: str) -> None:
    await migrate.up(empty, schema)
    await migrate.check(empty, schema)
    tasks = Tasks(empty, schema)
    await tasks.enqueue([new_task()])
    await empty.execute(f"SELECT \"{schema}\".enqueue(type => 't')")
    claims = await tasks.claim(new_task().id, ["t"], 10, [lane()])
    assert len(claims) == 2
    assert await empty.fetchval("SELECT to_regnamespace('dhara')") is None
    await migrate.down(empty, 99, schema)
    assert await describe(empty, schema) == []


async def test_two_schemas_side_by_side(empty: Connection) -> None:
    await migrate.up(empty, "one")
    await migrate.up(empty, "two")
    await Tasks(empty, "one").enqueue([new_task()])
    assert await empty.fetchval("SELECT count(*) FROM two.tasks") == 0
    assert await describe(empty, "one") == await describe(empty, "two")


@pytest.mark.parametrize("schema", ["", 'a"b', "A", "x; DROP"])
async def test_names_that_are_none(empty: Connection, schema: str) -> None:
    for ask in (migrate.up, migrate.status, migrate.check):
        with pytest.raises(ConfigError):
            await ask(empty, schema)


# all at once


async def test_ten_at_once(empty_dsn: str) -> None:
    barrier = asyncio.Barrier(10)

    async def starts() -> int:
        connection = await asyncpg.connect(empty_dsn)
        try:
            await barrier.wait()
            return len(await migrate.up(connection))
        finally:
            await connection.close()

    assert sum(await asyncio.gather(*(starts() for _ in range(10)))) == len(STEPS)


async def test_processes_at_once(empty_dsn: str, empty: Connection) -> None:
    program = (
        "import asyncio, asyncpg, sys; from dhara.store import migrate\n"
        "async def main():\n"
        "    connection = await asyncpg.connect(sys.argv[1])\n"
        "    print(len(await migrate.up(connection)))\n"
        "    await connection.close()\n"
        "asyncio.run(main())"
    )
    command = [sys.executable, "-c", program, empty_dsn]
    running = [await asyncio.create_subprocess_exec(*command, stdout=-1, stderr=-1) for _ in range(4)]
    answers = [await process.communicate() for process in running]
    assert [error for _, error in answers] == [b""] * 4
    assert sum(int(output) for output, _ in answers) == len(STEPS)
    await migrate.check(empty)


async def test_a_killed_migrator_leaves_nothing(empty: Connection, other: Connection) -> None:
    """Its session ends in the middle of a step: no object, no record, no lock."""
    transaction = empty.transaction()
    await transaction.start()
    assert await migrate._next_up(empty, "dhara")
    pid = empty.get_server_pid()
    await other.execute("SELECT pg_terminate_backend($1, 5000)", pid)
    assert await describe(other, without=()) == []
    assert await migrate.up(other) == STEPS


async def test_a_failing_step_leaves_nothing_of_itself(empty: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = Migration(2, "bad", "CREATE TABLE dhara.half (a int); SELECT 1/0;", "DROP TABLE dhara.half;")
    fake(monkeypatch, STEPS[0], bad)
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate.up(empty)
    assert [step.version for step in (await migrate.status(empty)).applied] == [1]
    assert await empty.fetchval("SELECT to_regclass('dhara.half')") is None


async def test_waiting_for_another_migrator_ends(
    empty: Connection, other: Connection, empty_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "_LOCK_TIMEOUT", "200ms")
    monkeypatch.setattr(migrate, "_PATIENCE", 0.0)
    async with other.transaction():
        await migrate._lock(other, "dhara")
        with pytest.raises(Unavailable, match="nothing was changed, try again"):
            await migrate.up(empty)
        # Another schema is another lock.
        assert await migrate.up(empty, "elsewhere") == STEPS
    assert await migrate.up(empty) == STEPS


async def test_a_step_asks_for_locks_briefly_and_again(
    empty: Connection, other: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F27: behind a long reader it gives way, so that nobody queues behind it, and goes through once the reader has gone."""
    monkeypatch.setattr(migrate, "_PAUSE", 0.0)
    altering = Migration(2, "altering", "ALTER TABLE dhara.tasks ADD COLUMN more int;", "")
    fake(monkeypatch, STEPS[0])
    await migrate.up(empty)
    fake(monkeypatch, STEPS[0], altering)
    gave_way = asyncio.Event()
    briefly, asked = migrate.ask_briefly, 0

    async def counted(connection: Any) -> None:
        nonlocal asked
        asked += 1
        if asked > 2:
            gave_way.set()
        await briefly(connection)

    monkeypatch.setattr(migrate, "ask_briefly", counted)
    async with other.transaction():
        await other.fetchval("SELECT count(*) FROM dhara.tasks")
        waiting = asyncio.ensure_future(migrate.up(empty))
        await asyncio.wait_for(gave_way.wait(), 30)
        assert not waiting.done()
    assert await waiting == [altering]


async def test_the_second_waits_and_finds_nothing_to_do(empty: Connection, other: Connection, empty_dsn: str) -> None:
    watcher = await asyncpg.connect(empty_dsn)
    async with empty.transaction():
        await migrate._lock(empty, "dhara")
        waiting = asyncio.ensure_future(migrate.up(other))
        await blocked_on_lock(watcher, other.get_server_pid())
        assert await migrate.up(empty) == STEPS
    assert await waiting == []
    await watcher.close()


# refusals, one clear line each


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    assert ";" in text, "says no way out"
    return text


async def refused(connection: Connection, fault: str, schema: str = "dhara") -> None:
    for ask in (migrate.check, migrate.up):
        with pytest.raises(SchemaError) as caught:
            await ask(connection, schema)
        assert fault in one_line(caught.value)


async def test_missing_and_older(empty: Connection) -> None:
    with pytest.raises(SchemaError) as caught:
        await migrate.check(empty)
    assert "'dhara' is missing; run `dhara migrate up`" in one_line(caught.value)
    await migrate._next_up(empty, "dhara")
    with pytest.raises(SchemaError) as caught:
        await migrate.check(empty)
    assert f"lacks {len(STEPS) - 1} migration(s); run `dhara migrate up`" in one_line(caught.value)
    assert await migrate.up(empty) == STEPS[1:]


async def test_newer(empty: Connection) -> None:
    await migrate.up(empty)
    await empty.execute("INSERT INTO dhara.migrations VALUES (9999, 'tomorrow', 'x')")
    await refused(empty, "is newer (9999_tomorrow)")


async def test_changed(empty: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    await migrate.up(empty)
    fake(monkeypatch, msgspec.structs.replace(STEPS[0], up=STEPS[0].up + "-- "), *STEPS[1:])
    await refused(empty, f"0001_{STEPS[0].name}")


async def test_a_gap(empty: Connection) -> None:
    await migrate.up(empty)
    await empty.execute("DELETE FROM dhara.migrations WHERE version = 1")
    await refused(empty, "lacks a migration in the middle")


@pytest.mark.parametrize("table", ["task_history", "workers", "queues", "counters", "histograms", "leaders"])
async def test_a_lost_table(empty: Connection, table: str) -> None:
    await migrate.up(empty)
    await empty.execute(f"DROP TABLE dhara.{table} CASCADE")
    with pytest.raises(SchemaError) as caught:
        await migrate.check(empty)
    assert f"damaged: no table {table}" in one_line(caught.value)


async def test_a_lost_record(empty: Connection) -> None:
    await migrate.up(empty)
    await empty.execute("DROP TABLE dhara.migrations")
    with pytest.raises(SchemaError) as caught:
        await migrate.up(empty)
    assert "no record of migrations" in one_line(caught.value)
    assert "DHARA_SCHEMA" in str(caught.value)


async def test_a_schema_that_others_use_too(empty: Connection) -> None:
    await empty.execute("CREATE TABLE public.orders (id int)")
    assert await migrate.up(empty, "public") == STEPS
    await migrate.check(empty, "public")
    assert await migrate.down(empty, 99, "public") == STEPS[::-1]
    assert await empty.fetchval("SELECT to_regclass('public.orders')") is not None


@pytest.fixture
async def stranger(empty: Connection, empty_dsn: str) -> Any:
    """A session of a role without rights, and the role's end."""
    role = f"dhara_test_stranger_{empty.get_server_pid()}"
    await empty.execute(f"CREATE ROLE {role}; REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    connection = await asyncpg.connect(empty_dsn)
    await connection.execute(f"SET SESSION AUTHORIZATION {role}")
    yield connection
    await connection.close()
    await empty.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_the_wrong_role(empty: Connection, stranger: Connection) -> None:
    with pytest.raises(SchemaError) as caught:
        await migrate.up(stranger)
    assert "may not" in one_line(caught.value)
    await migrate.up(empty)
    await refused(stranger, "may not")
    with pytest.raises(SchemaError, match="may not"):
        await migrate.down(stranger)
    role = await stranger.fetchval("SELECT current_user")
    await empty.execute(f"GRANT USAGE ON SCHEMA dhara TO {role}; GRANT SELECT ON ALL TABLES IN SCHEMA dhara TO {role}")
    await migrate.check(stranger)
    with pytest.raises(SchemaError, match="may not"):
        await migrate.down(stranger)


async def test_a_schema_that_an_administrator_made(empty: Connection, stranger: Connection) -> None:
    """The role may not create schemas, but owns this one."""
    role = await stranger.fetchval("SELECT current_user")
    await empty.execute(f"CREATE SCHEMA dhara AUTHORIZATION {role}")
    assert await migrate.up(stranger) == STEPS


async def test_read_only(empty: Connection) -> None:
    await empty.execute("SET default_transaction_read_only = on")
    with pytest.raises(SchemaError) as caught:
        await migrate.up(empty)
    assert "migrate on the primary" in one_line(caught.value)
    await empty.execute("SET default_transaction_read_only = off")
    await migrate.up(empty)
    await empty.execute("SET default_transaction_read_only = on")
    await migrate.check(empty)
    with pytest.raises(SchemaError, match="migrate on the primary"):
        await migrate.down(empty)
