"""The page that says what is covered, made from the tables that the code, the tests and the surveys themselves use."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

TITLES = {
    "pointwise": "entry by entry",
    "shapes": "shapes",
    "contractions": "products and convolutions",
    "reductions": "reductions",
    "indexing": "indexing",
    "creation": "constants and positions",
    "effects": "effects",
    "collectives": "collectives",
}


def page() -> str:
    """The whole page, in Markdown."""
    return "\n".join(
        [
            "# Coverage",
            "",
            "This page is made with the site, from the tables that the code and its tests use.",
            *_primitives(),
            *_layers(),
            *_optimizers(),
            *_architectures(),
            "",
        ]
    )


def _primitives() -> list[str]:
    import jax

    from jaxprune.jaxprs.calls import KINDS
    from jaxprune.surgery.inference.rules import RULES

    frozen = frozen_primitives()
    kinds: dict[str, list[str]] = {}
    for name in RULES:
        kinds.setdefault(_kind(name), []).append(name)
    rows = [[TITLES[kind], str(len(names)), _code(sorted(names))] for kind, names in kinds.items()]
    rows.append(["calls, loops and branches", str(len(KINDS)), _code(sorted(KINDS))])
    return [
        "",
        "## Primitives of JAX in surgery",
        "",
        f"`jp.find_groups` follows units through {len(RULES) + len(KINDS)} primitives (JAX {jax.__version__}). An axis "
        "that meets any other primitive is frozen, and the table that `print(groups)` shows says so: nothing is "
        "guessed.",
        "",
        *_table(["kind", "number", "primitives with a rule"], rows),
        "",
        "### Primitives without a rule",
        "",
        f"The {len(frozen)} primitives that freeze what they touch. A test lists them, so that a primitive of a new "
        "JAX gets a rule or a place here.",
        "",
        _code(frozen),
    ]


def _kind(name: str) -> str:
    """The file of `jaxprune/surgery/inference/rules/` that has the rule."""
    from jaxprune.surgery.inference import rules

    return next(kind for kind in TITLES if name in getattr(rules, kind).RULES)


def frozen_primitives() -> list[str]:
    """The list that the tests hold against the primitives of the installed JAX."""
    tree = ast.parse((ROOT / "tests/surgery/test_surgery_primitives.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "FROZEN":
            (text,) = (n.value for n in ast.walk(node) if isinstance(n, ast.Constant))
            return sorted(str(text).split())
    raise LookupError("tests/surgery/test_surgery_primitives.py has no list FROZEN")


def _layers() -> list[str]:
    from jaxprune.surgery.nnx_sizes import _READERS

    kinds = [kind for entry, _ in _READERS for kind in (entry if isinstance(entry, tuple) else (entry,))]
    return [
        "",
        "## Layers that `jp.surgery.shrink_module` resizes in place",
        "",
        "The layers of Flax NNX that store sizes beside their variables. `plan.compact` needs no such list: it works "
        "for a model of any framework.",
        "",
        _code(f"nnx.{kind.__name__}" for kind in kinds),
    ]


def _optimizers() -> list[str]:
    names = runpy.run_path(str(ROOT / "tests/optimizers.py"))["OPTIMIZERS"]
    return [
        "",
        "## Optimizers that are tested",
        "",
        "Each runs inside `jp.masked` and `jp.gradual`: pruned weights stay at exactly zero and no state of the "
        "optimizer remembers them. Other optax optimizers are treated alike.",
        "",
        _code(names),
    ]


def _architectures() -> list[str]:
    rows = [[library, str(len(models)), "; ".join(models)] for library, models in surveyed().items()]
    return [
        "",
        "## Architectures that were surveyed",
        "",
        f"{sum(int(row[1]) for row in rows)} models lost a random half of every group at once, and the small function "
        "equalled the masked one. The [survey](benchmarks/surgery_survey.md) has the figures.",
        "",
        *_table(["written with", "models", "names"], rows),
    ]


def surveyed() -> dict[str, list[str]]:
    """Library -> its models, from the tables about units in the survey."""
    found: dict[str, list[str]] = {}
    units = (ROOT / "benchmarks/surgery_survey.md").read_text().split("\n## Layers\n")[0]
    for section in re.split(r"\n## ", units)[1:]:
        title, *lines = section.split("\n")
        cells = [[cell.strip() for cell in line.split("|")[1:]] for line in lines if line.startswith("|")]
        # `|---|` and the row of titles are no models; a model without figures did not run.
        found[title] = [row[0] for row in cells[2:] if row[1].isdigit()]
    return found


def _code(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _table(titles: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (titles, ["---"] * len(titles), *rows)]
