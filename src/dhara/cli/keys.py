"""`dhara keys`: API keys of the HTTP interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from dhara.cli.console import Console, Group
from dhara.cli.values import Span

if TYPE_CHECKING:
    from dhara.domain.access import ApiKey
    from dhara.store.keys import Keys, MadeKey
    from dhara.store.pool import Pool


@click.group(cls=Group)
def keys() -> None:
    """Make, list, rotate and revoke API keys."""


@keys.command(
    "create",
    examples="""
    dhara keys create shop --scope enqueue --queue 'mail*'
    dhara keys create grafana --scope metrics
    dhara keys create ops --scope operate --scope read:payload --expires 90d
    """,
)
@click.argument("name")
@click.option(
    "--scope", "scopes", multiple=True, required=True, help="What it may do (read, enqueue, ...); repeatable."
)
@click.option("--queue", "queues", multiple=True, help="Only these queues, * for any characters; repeatable.")
@click.option("--rate", type=float, help="Requests a second that it may send to a server.")
@click.option("--expires", type=Span(), help="How long it is valid, as in 90d; default: for ever.")
@click.pass_obj
def create(
    console: Console,
    name: str,
    scopes: tuple[str, ...],
    queues: tuple[str, ...],
    rate: float | None,
    expires: float | None,
) -> None:
    """Make a key called NAME. Its text is shown this once and kept nowhere."""
    from dhara.cli.database import actor
    from dhara.domain.access import problems

    if wrong := problems(name, scopes, queues, rate, expires):
        raise click.UsageError("; ".join(f"{field}: {message}" for field, message in wrong))
    made = _on_keys(console, lambda store: store.create(name, scopes, queues, rate=rate, lifetime=expires, by=actor()))
    _show(console, made)


@keys.command("list", examples="dhara keys list\ndhara keys list --json | jq '.keys[] | select(.valid)'")
@click.pass_obj
def list_keys(console: Console) -> None:
    """Every key, the newest first; expired and revoked ones too."""
    from dhara.api.shapes import key_out
    from dhara.cli.tables import ago, table

    found: list[ApiKey] = _on_keys(console, lambda store: store.list())
    if console.json:
        console.answer({"keys": [key_out(key) for key in found]})
        return
    rows = [
        (
            key.id,
            _state(key),
            ", ".join(key.scopes),
            ", ".join(key.queues) or "all",
            ago(key.created_at),
            ago(key.last_used_at) if key.last_used_at else "never",
            key.name,
        )
        for key in found
    ]
    head = ("ID", "STATE", "SCOPES", "QUEUES", "CREATED", "LAST USED", "NAME")
    console.print(table(head, rows, fancy=console.fancy) if rows else "no API key has been made")


@keys.command(
    "rotate",
    short_help="Make a key in place of another.",
    examples="dhara keys rotate 4k2j9x0abcde\ndhara keys rotate 4k2j9x0abcde --overlap 1d",
)
@click.argument("id")
@click.option("--overlap", type=Span(), default="1h", show_default=True, help="How long the old key stays valid.")
@click.pass_obj
def rotate(console: Console, id: str, overlap: float) -> None:
    """Make a key in place of another: same name, scopes, queues and rate, valid as long again."""
    from dhara.cli.database import actor

    _show(console, _on_keys(console, lambda store: store.rotate(id, overlap, actor())))


@keys.command("revoke", examples="dhara keys revoke 4k2j9x0abcde")
@click.argument("id")
@click.pass_obj
def revoke(console: Console, id: str) -> None:
    """End a key; every server knows it within a few seconds."""
    from dhara.api.shapes import key_out
    from dhara.cli.database import actor

    key: ApiKey = _on_keys(console, lambda store: store.revoke(id, actor()))
    if console.json:
        console.answer(key_out(key))
    else:
        console.print(f"revoked  {key.id}  {key.name}")


def _state(key: ApiKey) -> str:
    from datetime import UTC, datetime

    from dhara.cli.tables import ago

    if key.revoked_at:
        return "revoked"
    if not key.valid(datetime.now(UTC)):
        return "expired"
    return f"ends {ago(key.expires_at)}" if key.expires_at else "valid"


def _show(console: Console, made: MadeKey) -> None:
    from dhara.api.shapes import made_key_out

    if console.json:
        console.answer(made_key_out(made))
        return
    console.print(made.text)
    console.say(f"API key {made.key.id} of {made.key.name}; this is the only time that it is shown")


def _on_keys(console: Console, work: Any) -> Any:
    from dhara.cli.database import with_pool
    from dhara.store.keys import Keys

    async def inner(pool: Pool) -> Any:
        store: Keys = Keys(pool, pool.settings.schema)
        return await work(store)

    return with_pool(console, inner)
