"""The documentation site: no public name without a page, no page that nothing leads to."""

import importlib
import inspect
import json
import re
import sys
from pathlib import Path

import pytest
from test_public_names import PUBLIC

import jaxprune as jp

DOCS = Path(__file__).parents[1] / "docs"
API = sorted((DOCS / "api").glob("*.md"))


@pytest.fixture
def site(monkeypatch):
    """Imports one of the site's own modules."""
    monkeypatch.syspath_prepend(DOCS)
    yield importlib.import_module
    for name in ("site_coverage", "site_docstrings", "site_sources"):
        sys.modules.pop(name, None)


def found(name):
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def with_pages():
    """The full names in the reference's tables."""
    text = "\n".join(page.read_text() for page in API)
    return re.findall(r"^   (jaxprune\.[\w.]+)$", text, re.MULTILINE)


def public():
    """Full name -> object, for all that `jp` and its public modules offer, modules and types' names aside."""
    modules = [
        "jaxprune",
        *(f"jaxprune.{name}" for name in (*PUBLIC, "delivery", "healing", "shrinking", "targets", "tickets")),
    ]
    names = [f"{module}.{name}" for module in modules for name in importlib.import_module(module).__all__]
    return {
        name: found(name) for name in names if inspect.isclass(found(name)) or inspect.isfunction(found(name))
    }


def test_every_public_name_has_one_page():
    pages = {name: found(name) for name in with_pages()}
    ids = {id(offered) for offered in pages.values()}
    assert len(pages) == len(with_pages()) == len(ids)
    offered = public()
    assert {name for name in offered if id(offered[name]) not in ids} == set()
    # What stands in `jp` itself is shown under that name; IMP has two names.
    assert {name for name in jp.__all__ if f"jaxprune.{name}" in offered.keys() - pages.keys()} == {"imp"}
    assert all(inspect.getdoc(offered) for offered in pages.values())


def test_every_page_is_in_a_table_of_contents_and_every_entry_is_a_page(site):
    sources = site("site_sources")
    made = {
        "generated/coverage",
        *(
            f"generated/{p}".rsplit(".", 1)[0]
            for p in (*sources.PAGES.values(), *sources.notebooks().values())
        ),
    }
    pages = {str(file.relative_to(DOCS).with_suffix("")) for file in DOCS.rglob("*.md")} - {"index"}
    pages = {page for page in pages if not page.startswith("generated/")} | made
    entries = []
    for file in [DOCS / "index.md", DOCS / "api/index.md"]:
        for block in re.findall(r"```\{toctree\}\n(.*?)```", file.read_text(), re.DOTALL):
            lines = [line for line in block.split("\n") if line and not line.startswith(":")]
            entries += [str((file.parent / line).relative_to(DOCS)) for line in lines]
    assert sorted(entries) == sorted(pages)


def test_notebooks_are_stored_with_their_outputs():
    for file in (DOCS.parent / "notebooks").glob("*.ipynb"):
        code = [cell for cell in json.loads(file.read_text())["cells"] if cell["cell_type"] == "code"]
        assert any(cell["outputs"] for cell in code), file.name
        assert all(output["output_type"] != "error" for cell in code for output in cell["outputs"]), file.name


def test_docstrings_become_what_sphinx_reads(site):
    text = """\
    Scores by a norm: `sum |w|`, or $\\|w\\|^2$ and \\(a_i\\)s of *all* units_.

    Args:
      a, b: two `things`: with a colon
        and a second line.
      *inputs: arrays.

    Raises:
      ValueError: if it is wrong.

    After the sections.

    Example:
      >>> 2 * 3
      6
      >>> {"a": 1}
      {'a': 1}

    References:
      A, B, A Title: With
      two lines, 2016, arXiv:1611.06440. C, Another, 2020, arXiv:2003.02389.
    """
    assert site("site_docstrings").converted(inspect.cleandoc(text).split("\n")) == [
        r"Scores by a norm: ``sum |w|``, or :math:`\|w\|^2` and :math:`a_i`\ s of \*all\* units\_.",
        "",
        ":Arguments:",
        "  * **a, b** – two ``things``: with a colon",
        "    and a second line.",
        r"  * **\*inputs** – arrays.",
        "",
        ":Raises:",
        "  * **ValueError** – if it is wrong.",
        "",
        "After the sections.",
        "",
        ".. rubric:: Example",
        "",
        ">>> 2 * 3",
        "6",
        ">>> {\"a\": 1}",
        "{'a': 1}",
        "",
        ".. rubric:: References",
        "",
        "* A, B, A Title: With two lines, 2016, `arXiv:1611.06440 <https://arxiv.org/abs/1611.06440>`__.",
        "* C, Another, 2020, `arXiv:2003.02389 <https://arxiv.org/abs/2003.02389>`__.",
        "",
    ]  # fmt: skip


def test_links_between_files_of_the_repository_lead_to_pages(site):
    linked = site("site_sources").linked
    assert linked("[t](tickets.md#a) ![p](../docs/claims/scope.png)", "generated/benchmarks/README") == (
        "[t](/generated/benchmarks/tickets.md#a) ![p](/claims/scope.png)"
    )
    assert linked("[n](../../notebooks/tickets.ipynb), [s](../start.md#x)", "guides/resume") == (
        "[n](/generated/notebooks/tickets.ipynb), [s](/start.md#x)"
    )
    assert linked("[a script](imp.py) `[x](y)` [w](https://a.org/b)", "generated/benchmarks/README") == (
        "a script `[x](y)` [w](https://a.org/b)"
    )


def test_the_page_of_coverage_shows_the_tables_of_code_and_tests(site):
    coverage = site("site_coverage")
    text = coverage.page()
    for name in (
        "`dot_general`",
        "`scan`",
        "`pure_callback`",
        "`nnx.Conv`",
        "`adamw`",
        "| 43 | mlp; residual CNN;",
    ):
        assert text.count(name) == 1
    assert set(coverage.frozen_primitives()) >= {"pure_callback", "rng_uniform"}
    assert sum(map(len, coverage.surveyed().values())) == 70
