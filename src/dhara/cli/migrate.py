"""`dhara migrate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from dhara.cli.console import Console, Group

if TYPE_CHECKING:
    from dhara.store.migrate import Migration, Status
    from dhara.store.pool import Pool


@click.group(cls=Group, invoke_without_command=True)
@click.pass_context
def migrate(ctx: click.Context) -> None:
    """Bring the database's schema up to date, or look at it. Without a command: up."""
    if ctx.invoked_subcommand is None:
        _up(ctx.ensure_object(Console), None)


@migrate.command("up", examples="dhara migrate up\ndhara migrate\ndhara migrate up --roles")
@click.option("--roles", "with_roles", is_flag=True, help="Then do what `dhara migrate roles` does.")
@click.option("--prefix", default="dhara", show_default=True, help="What the roles' names begin with.")
@click.pass_obj
def up(console: Console, with_roles: bool, prefix: str) -> None:
    """Apply the migrations that are missing. Safe to run again, and by many at once."""
    _up(console, prefix if with_roles else None)


@migrate.command(
    "roles",
    short_help="Make PostgreSQL roles, one a component, with their rights.",
    examples="dhara migrate roles\ndhara migrate roles --prefix shop_dhara",
)
@click.option("--prefix", default="dhara", show_default=True, help="What the roles' names begin with.")
@click.pass_obj
def roles(console: Console, prefix: str) -> None:
    """Make PostgreSQL roles for owner, migrator, api, worker, maintenance and reader, and set their rights.

    They cannot log in: give them to accounts of yours. Run it again after an upgrade with new tables.
    """
    made: list[str] = _with(console, lambda pool, schema: _roles(pool, schema, prefix))
    if console.json:
        console.answer({"roles": made})
    for name in () if console.json else made:
        console.print(f"role  {name}")


@migrate.command(
    "down",
    short_help="Take back the last migrations, with their data.",
    examples="dhara migrate down --yes\ndhara migrate down 2 --yes",
)
@click.argument("steps", type=click.IntRange(min=1), default=1)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def down(console: Console, steps: int, yes: bool) -> None:
    """Take back the last STEPS migrations (1), with the data in their tables."""
    if not yes:
        if console.json:
            raise click.UsageError("this deletes data; say --yes")
        click.confirm(f"Take back {steps} migration(s), with the data in their tables?", abort=True, err=True)
    from dhara.store import migrate as steps_of

    async def work(pool: Pool, schema: str) -> list[Migration]:
        async with pool.acquire() as connection:
            return await steps_of.down(connection, steps, schema)

    _show(console, "taken back", _with(console, work))


@migrate.command("status", examples="dhara migrate status\ndhara migrate status --json")
@click.pass_obj
def status(console: Console) -> int:
    """Which migrations are applied and which are missing. Exits 3 if any is."""
    from dhara.store import migrate as steps_of

    async def work(pool: Pool, schema: str) -> Status:
        async with pool.acquire() as connection:
            return await steps_of.status(connection, schema)

    found: Status = _with(console, work)
    if console.json:
        console.answer({"applied": _names(found.applied), "missing": _names(found.missing)})
    else:
        for name in _names(found.applied):
            console.print(f"applied  {name}")
        for name in _names(found.missing):
            console.print(f"missing  {name}")
        console.print("run `dhara migrate up`" if found.missing else "the schema is up to date")
    return 3 if found.missing else 0


async def _roles(pool: Pool, schema: str, prefix: str) -> list[str]:
    from dhara.store import roles as roles_of

    async with pool.acquire() as connection:
        return await roles_of.apply(connection, schema, prefix)


def _up(console: Console, prefix: str | None) -> None:
    from dhara.store import migrate as steps_of

    async def work(pool: Pool, schema: str) -> list[Migration]:
        async with pool.acquire() as connection:
            done = await steps_of.up(connection, schema)
        if prefix is not None:
            await _roles(pool, schema, prefix)
        return done

    _show(console, "applied", _with(console, work))


def _with(console: Console, work: Any) -> Any:
    from dhara.cli.database import with_pool

    return with_pool(console, lambda pool: work(pool, pool.settings.schema), check=False)


def _show(console: Console, what: str, steps: list[Migration]) -> None:
    if console.json:
        console.answer({what.replace(" ", "_"): _names(steps)})
    elif not steps:
        console.print("nothing to do")
    for name in () if console.json else _names(steps):
        console.print(f"{what}  {name}")


def _names(steps: list[Migration]) -> list[str]:
    return [f"{step.version:04}_{step.name}" for step in steps]
