"""What is made from the code is current: making it again changes nothing."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from scripts import make_docs

from dhara.api.routes import TABLE as ROUTES
from dhara.domain.lifecycle import TRANSITIONS, Event
from dhara.settings import TABLE as SETTINGS
from dhara.telemetry.metrics import TABLE as METRICS
from tests.docs.pages import ROOT

WHOLE = sorted(f"docs/reference/{name}.md" for name in make_docs.REFERENCE)


@pytest.mark.parametrize("name", WHOLE)
def test_a_reference_page_is_current(name: str) -> None:
    made = make_docs.REFERENCE[name.removeprefix("docs/reference/").removesuffix(".md")]()
    assert (ROOT / name).read_text() == made, f"{name} is stale; run `python scripts/make_docs.py`"


@pytest.mark.parametrize("name", make_docs.WITH_BLOCKS)
def test_generated_blocks_are_current(name: str) -> None:
    text = (ROOT / name).read_text()
    assert make_docs.with_blocks(text) == text, f"{name} is stale; run `python scripts/make_docs.py`"
    assert text.count("<!-- generated: ") == sum(make() in text for make in make_docs.BLOCKS.values()) > 0


def test_the_schema_page_is_current(dsn: str) -> None:
    async def read() -> make_docs.Catalogue:
        connection = await asyncpg.connect(dsn)
        try:
            return await make_docs.catalogue(connection)
        finally:
            await connection.close()

    made = make_docs.schema_page(asyncio.run(read()))
    assert (ROOT / "docs/reference/schema.md").read_text() == made, "stale; run `python scripts/make_docs.py`"


def test_a_scratch_schema_gives_the_same_page(empty_dsn: str) -> None:
    """What the script writes (from a scratch schema) is what the test above makes (from `dhara`)."""
    made = make_docs.schema_page(asyncio.run(make_docs.read(empty_dsn)), make_docs.SCRATCH)
    assert (ROOT / "docs/reference/schema.md").read_text() == made


def test_the_pages_name_every_row_of_their_tables() -> None:
    states, settings, metrics, http = (
        (ROOT / f"docs/reference/{name}.md").read_text() for name in ("states", "settings", "metrics", "http-api")
    )
    assert all(f"`{event}`" in states for event in Event)
    assert all(f"{source} → {target}" in states for source, moves in TRANSITIONS.items() for target in moves.values())
    assert all(f"`{setting.variable}`" in settings for setting in SETTINGS)
    assert all(f"`{metric.name}`" in metrics for metric in METRICS)
    assert all(f"### {route.method} {route.paths[0]}" in http for route in ROUTES)
