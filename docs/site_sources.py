"""Pages of the site whose sources lie outside `docs/`, or that are made when it is built; all in `docs/generated/`."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
GENERATED = "generated"
# Source in the repository -> page.
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    **{
        f"benchmarks/{name}.md": f"benchmarks/{name}.md"
        for name in ("README", "claims", "export", "recipes", "surgery_survey", "tickets")
    },
}
_LINK = re.compile(r"(?<!`)(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()#\s:]+)(#[^()\s]*)?\)")


def write(docs: Path) -> None:
    """Writes all pages anew."""
    import site_coverage

    folder = docs / GENERATED
    shutil.rmtree(folder / "api", ignore_errors=True)  # a name that is gone has no page
    for source, page in {**PAGES, **notebooks()}.items():
        _write(folder / page, (ROOT / source).read_text())
    _write(folder / "coverage.md", site_coverage.page())


def notebooks() -> dict[str, str]:
    return {
        f"notebooks/{p.name}": f"notebooks/{p.name}" for p in sorted((ROOT / "notebooks").glob("*.ipynb"))
    }


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists() or file.read_text() != text:  # what is unchanged is not read again
        file.write_text(text)


def on_source_read(app: Any, docname: str, content: list[str]) -> None:
    """Sphinx's event: links between files of the repository lead to the pages made of them."""
    if Path(app.env.doc2path(docname)).suffix == ".md":
        content[0] = linked(content[0], docname)


def linked(text: str, docname: str) -> str:
    """The text of a page, with its links to files of the repository as links of the site.

    A file that has a page becomes that page, a picture is taken from where it lies, and the name of any other file
    stays as text, as the site has no copy of it.

    >>> linked("[all](tickets.md#lenet) by [a script](imp.py)", "generated/benchmarks/README")
    '[all](/generated/benchmarks/tickets.md#lenet) by a script'
    >>> linked("[measured](../../benchmarks/claims.md), [see](../start.md)", "guides/speed")
    '[measured](/generated/benchmarks/claims.md), [see](/start.md)'
    """
    pages = {**PAGES, **notebooks()}
    sources = {f"{GENERATED}/{page}": source for source, page in pages.items()}
    here = sources.get(f"{docname}.md", f"docs/{docname}.md")

    def of_site(match: re.Match[str]) -> str:
        picture, label, target, anchor = match.groups()
        file = os.path.normpath(os.path.join(os.path.dirname(here), target))
        if file in pages:
            return f"{picture}[{label}](/{GENERATED}/{pages[file]}{anchor or ''})"
        if file.startswith("docs/") and not target.startswith("/"):
            return f"{picture}[{label}](/{file.removeprefix('docs/')}{anchor or ''})"
        if (ROOT / file).exists() and not target.startswith("/"):
            return label
        return match[0]

    return _LINK.sub(of_site, text)
