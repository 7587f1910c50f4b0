"""Every link of the documentation leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

from tests.docs.pages import ROOT, Page, pages

_LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")


def _targets(page: Page) -> list[str]:
    return _LINK.findall(page.prose)


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"(?m)^#{1,6} (.+)$", re.sub(r"(?ms)^```.*?^```$", "", text))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_links_resolve() -> None:
    broken = []
    for page in pages():
        for target in _targets(page):
            if target.startswith(("http://", "https://", "mailto:")):
                continue
            path, _, anchor = target.partition("#")
            file = ((ROOT / page.name).parent / path).resolve() if path else ROOT / page.name
            if not file.exists() or (anchor and anchor not in _anchors(file.read_text())):
                broken.append(f"{page.name}: {target}")
    assert broken == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    known = {str((ROOT / page.name).resolve()): page for page in pages()}
    seen, waiting = set(), [str(ROOT / "README.md")]
    while waiting:
        here = waiting.pop()
        if here in seen or here not in known:
            continue
        seen.add(here)
        targets = [target.partition("#")[0] for target in _targets(known[here]) if "://" not in target]
        waiting += [str((Path(here).parent / target).resolve()) for target in targets if target]
    assert sorted(known[path].name for path in known.keys() - seen) == []


def test_decisions_are_numbered_and_listed() -> None:
    files = sorted(file.name for file in (ROOT / "docs/adr").glob("[0-9]*.md"))
    index = (ROOT / "docs/adr/index.md").read_text()
    assert [name[:4] for name in files] == [f"{number:04}" for number in range(1, len(files) + 1)]
    assert [name for name in files if f"({name})" not in index] == []
    for name in files:
        text = (ROOT / "docs/adr" / name).read_text()
        assert re.match(rf"# {name[:4]}\b", text), f"{name} must begin with its number"
        assert re.search(r"(?im)^\**status\b", text), f"{name} lacks its status"
