"""Private names of JAX stand in one module, and this is the list of them."""

import ast
from pathlib import Path

import jaxprune

PACKAGE = Path(jaxprune.__file__).parent
PRIVATE = {
    "jax._src.source_info_util",
    "jax._src.interpreters.partial_eval",
}


def private_names(file: Path) -> set[str]:
    """What a file imports from `jax._src`, or reaches through an attribute of that name."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jax._src"):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("jax._src")}
        elif isinstance(node, ast.Attribute) and node.attr == "_src":
            names.add(ast.unparse(node))
    return names


def test_the_private_names_of_jax_are_those_listed_and_stand_in_one_module():
    found = {file.relative_to(PACKAGE): private_names(file) for file in PACKAGE.rglob("*.py")}
    assert {str(file): names for file, names in found.items() if names} == {"jax_compat.py": PRIVATE}
