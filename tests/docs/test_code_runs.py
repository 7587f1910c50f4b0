"""The commands and programs of README, tutorials and how-tos do what their pages say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Databases
from tests.docs.pages import RUN, Page, follow, followed, missing, pages

BEGINNERS = ("README.md", "docs/tutorials/first-task.md")


@pytest.mark.slow
@pytest.mark.parametrize("page", followed(), ids=lambda page: page.name)
def test_following_the_page_works(page: Page, databases: Databases, template: str, tmp_path: Path) -> None:
    # Who reads these two has an empty database; the how-tos are for those who have one that is set up.
    name = databases.create(None if page.name in BEGINNERS else template)
    try:
        walk = follow(page, tmp_path, databases.dsn(name))
    finally:
        databases.drop(name)
    assert walk.code == 0, f"{page.name} ended with {walk.code}\n{walk.printed}\n{walk.complained}"
    assert missing(page, walk.printed) == [], f"{page.name} shows what is not printed:\n{walk.printed}"


def test_only_what_cannot_run_is_left_out() -> None:
    reasons = [
        (page.name, block.line, block.skipped)
        for page in followed()
        for block in page.blocks
        if block.language in RUN and block.skipped is not None
    ]
    assert all(len(reason or "") > 20 for _, _, reason in reasons), reasons
    assert len(reasons) <= 10, f"too much of the documentation is not run: {reasons}"


def test_every_block_says_its_language() -> None:
    nameless = [(page.name, block.line) for page in pages() for block in page.blocks if not block.language]
    assert nameless == []
