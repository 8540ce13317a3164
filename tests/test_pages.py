"""The pages of README and docs/ lead to each other: no link is broken, no page is left alone, no figure is missing."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if "generated" not in page.parts),
]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
INCLUDED = re.compile(r"\{literalinclude\} (\S+)")


def prose(page):
    """The text outside of code blocks, which may hold brackets of their own."""
    return re.sub(r"^```(?!\{literalinclude\}).*?^```", "", page.read_text(), flags=re.M | re.S)


def targets(page):
    found = LINK.findall(prose(page)) + INCLUDED.findall(page.read_text())
    return [(page.parent / target).resolve() for target in found if "://" not in target]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file(page):
    missing = [str(target) for target in targets(page) if not target.exists()]
    assert [
        target for target in missing if not Path(target + ".md").exists()
    ] == []  # Sphinx takes both forms


def test_every_guide_is_reached_from_readme():
    linked = set(targets(ROOT / "README.md"))
    guides = {page.resolve() for page in (ROOT / "docs" / "guides").glob("*.md")}
    assert guides - linked == set()
