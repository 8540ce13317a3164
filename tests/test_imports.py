"""Imports between the files of the package run one way: no circles, and never upwards in CONTRIBUTING's list.

Imports inside functions and those for types count as well.
"""

import ast
import re
from pathlib import Path

import jaxprune

PACKAGE = Path(jaxprune.__file__).parent
CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"

# (from, to): why this import may close a circle.
ALLOWED = {
    (
        "jaxprune.masking.units",
        "jaxprune.masking.criterion",
    ): "for types: Units name the Criterion they are of",
}


def modules() -> dict[str, Path]:
    """Dotted name -> file, for each file of the package."""
    found = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imported(file: Path, names: dict[str, Path]) -> set[str]:
    """The modules among `names` that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: imports are absolute"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            of_names = inside & names.keys()
            found |= of_names if of_names == inside else {*of_names, node.module}
    return found & names.keys()


def graph() -> dict[str, set[str]]:
    names = modules()
    return {name: imported(file, names) - {name} for name, file in names.items()}


def layers() -> list[set[str]]:
    """The list in CONTRIBUTING, lowest first: dotted names inside the package."""
    (block,) = re.findall(r"\n    (params.*?)\n\n", CONTRIBUTING.read_text(), re.DOTALL)
    text = " ".join(line.split("#")[0] for line in block.splitlines())
    return [{name.strip() for name in layer.split(",")} for layer in text.split("->")]


def layer_of(module: str, ranks: dict[str, int]) -> int:
    """The place of a file in the list: that of the longest name that it or a package around it has."""
    parts = module.split(".")
    for end in range(len(parts), 0, -1):
        name = ".".join(parts[1:end]) or "jaxprune"
        if name in ranks and (end > 1 or len(parts) == 1):
            return ranks[name]
    raise AssertionError(f"CONTRIBUTING's list of layers lacks {module}")


def circle(edges: dict[str, set[str]]) -> list[str]:
    """The files of one circle, or of none."""
    left = dict(edges)
    while True:
        ends = {name for name, to in left.items() if not to & left.keys()}
        if not ends:
            break
        left = {name: to for name, to in left.items() if name not in ends}
    if not left:
        return []
    path = [next(iter(left))]
    while True:
        after = min(left[path[-1]] & left.keys())
        if after in path:
            return [*path[path.index(after) :], after]
        path.append(after)


def test_no_circle_between_files():
    edges = graph()
    for start, end in ALLOWED:
        assert end in edges[start], f"{start} no longer imports {end}: take it off the list"
        edges[start].discard(end)
    assert circle(edges) == []


def test_no_import_runs_upwards():
    ranks = {name: i for i, names in enumerate(layers()) for name in names}
    wrong = [
        f"{name} -> {other}"
        for name, others in graph().items()
        for other in others
        if (name, other) not in ALLOWED and layer_of(name, ranks) < layer_of(other, ranks)
    ]
    assert wrong == []


def test_each_file_is_in_the_list_and_the_list_names_only_what_is_there():
    names = modules()
    ranks = {name: i for i, layer in enumerate(layers()) for name in layer}
    assert sum(map(len, layers())) == len(ranks)
    for name in names:
        layer_of(name, ranks)
    assert {name for name in ranks if name != "jaxprune" and f"jaxprune.{name}" not in names} == set()


def test_circles_and_upward_imports_would_be_seen():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c", "b"]
    assert circle({"a": {"b"}, "b": set()}) == []
    ranks = {"low": 0, "high": 1, "high.part": 2, "jaxprune": 3}
    assert [layer_of(f"jaxprune.{n}", ranks) for n in ("low.x", "high", "high.y", "high.part.z")] == [
        0,
        1,
        1,
        2,
    ]
    assert layer_of("jaxprune", ranks) == 3
