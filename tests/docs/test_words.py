"""One word for one thing (docs/reference/glossary.md), and the style of the pages."""

from __future__ import annotations

import re

import pytest

from dhara.domain.lifecycle import State
from tests.docs.pages import ROOT, Page, pages

# What must not be said -> what is said here. Other systems have their own words: docs/explanation/comparison.md may.
NOT_OURS = {
    r"jobs?": "task",
    r"cancell(ed|ing)": "canceled, canceling",
    r"dead[- ]lettered queue|dead letter queue|DLQ": "DEAD tasks stay in the tasks table",
    r"consumers?": "worker",
    r"re-?queu(e|ed|es)": "released, or reaped",
    r"visibility time-?out": "lease",
    r"celery worker": "worker",
    r"whitelist|blacklist": "allow-list, block-list",
    r"simply|just|easily|obviously|blazing(ly)?|seamless(ly)?": "leave it out",
}
MAY = ("docs/explanation/comparison.md",)


def _prose(page: Page) -> str:
    """Without code, links' targets and generated notices."""
    text = re.sub(r"`[^`\n]*`", "", page.prose)
    return re.sub(r"\]\([^)]*\)", "]", text)


@pytest.mark.parametrize("pattern", NOT_OURS)
def test_words_that_are_not_ours(pattern: str) -> None:
    found = [
        f"{page.name}: {match[0]!r} (here: {NOT_OURS[pattern]})"
        for page in pages()
        if page.name not in MAY
        for match in re.finditer(rf"\b(?:{pattern})\b", _prose(page), re.IGNORECASE)
    ]
    assert found == []


def test_states_are_upper_case() -> None:
    """In running text a state is PENDING, not Pending; `dead` and `running` as plain English words are fine."""
    odd = [
        f"{page.name}: {match[0]}"
        for page in pages()
        for state in State
        for match in re.finditer(
            rf"(?<![\w`/-])(?:{state.capitalize()}|{state.lower()})(?= (?:task|state)\b)", _prose(page)
        )
        if match[0].lower() not in ("dead", "running", "completed")
    ]
    assert odd == []


def test_the_glossary_has_every_word_once_in_order() -> None:
    text = (ROOT / "docs/reference/glossary.md").read_text()
    words = [word.strip().lower() for word in re.findall(r"(?m)^\| \*\*(.+?)\*\*", text)]
    assert len(words) > 30
    assert words == sorted(words)
    assert len(words) == len(set(words))


def test_every_page_has_one_title() -> None:
    bad = [page.name for page in pages() if len(re.findall(r"(?m)^# ", page.prose)) != 1]
    assert bad == []


def test_no_page_names_a_place_on_somebodys_machine() -> None:
    pattern = r"/work/|/tmp/v/|/root/|/home/(?!dhara|you)\w+|:54(15|18)\b"
    assert [(page.name, found[0]) for page in pages() for found in re.finditer(pattern, page.text)] == []
